"""Sheets: titled images at full resolution, below a verdict and its numbers, beside a color bar.

Text scales with the images, since a sheet is viewed as a whole: `em` is the font height in pixels.
"""

from collections.abc import Mapping
import functools
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uadjax.visualization import fonts, heatmap

_TEXT_COLOR, _MUTED_COLOR = (34, 34, 34), (90, 90, 90)
# Colors of a badge and its word, darker from OK to NG for readers who see no colors.
_LABEL_COLORS = {
  'OK': ((205, 236, 226), (0, 84, 62)),
  'review': ((240, 180, 40), (0, 0, 0)),
  'NG': ((170, 60, 0), (255, 255, 255)),
}
_MIN_EM, _MAX_EM = 14, 256
_MIN_WIDTH = 25  # Of a sheet, in em.


def draw_sheet(
  images: Mapping[str, UInt8[np.ndarray, 'h w 3']],
  name: str,
  caption: str = '',
  label: str = '',
  scale: heatmap.ColorScale | None = None,
) -> Image.Image:
  """Arrange images of one size in a row or, if they are very wide, in a column.

  Args:
    images: images by title.
    name: headline, which is shortened to fit.
    caption: line below the headline, such as score and thresholds.
    label: 'OK', 'review' or 'NG', shown as a badge; '' for none.
    scale: color scale of the anomaly map, shown as a color bar; None for no bar.
  """
  height, width = next(iter(images.values())).shape[:2]
  num_rows = len(images) if width > 2 * height else 1
  num_columns = len(images) // num_rows
  em = round(min(max(num_columns * width / 80, num_rows * height / 60, _MIN_EM), _MAX_EM))
  title_widths = [math.ceil(_font(0.85 * em).getlength(title)) for title in images]
  x_step, y_step = max(width, *title_widths) + em, height + 2 * em
  min_height = 6 * em if scale else 0  # The labels of a shorter color bar would overlap.
  grid_width = num_columns * x_step + (7 * em if scale else 0)
  total_width = max(grid_width, _MIN_WIDTH * em, math.ceil(_font(em).getlength(caption)) + em) + em
  top = 4 * em
  total_height = top + max(num_rows * y_step, min_height + 2 * em) + em
  canvas = Image.new('RGB', (total_width, total_height), (255, 255, 255))
  draw = ImageDraw.Draw(canvas)
  name_left = em + _draw_badge(draw, label, em)
  name_font, name = _fit(name, em, total_width - em - name_left)
  draw.text((name_left, 1.6 * em), name, _TEXT_COLOR, name_font, 'ls')
  draw.text((em, 3.4 * em), caption, _TEXT_COLOR, _font(em), 'ls')
  for index, (title, image) in enumerate(images.items()):
    row, column = divmod(index, num_columns)
    x, y = em + column * x_step, top + row * y_step + 2 * em
    draw.text((x, y - 0.4 * em), title, _MUTED_COLOR, _font(0.85 * em), 'ls')
    canvas.paste(Image.fromarray(image), (x, y))
  if scale:
    bar_x = (num_columns - 1) * x_step + width + 2 * em
    _draw_color_bar(canvas, (bar_x, top + 2 * em), max(height, min_height), scale, em)
  return canvas


def _draw_badge(draw: ImageDraw.ImageDraw, label: str, em: int) -> int:
  """Draw the badge of a label; return its width with the space beside it, or 0 for no label."""
  if not label:
    return 0
  font, (fill, color) = _font(1.2 * em, bold=True), _LABEL_COLORS[label]
  width = math.ceil(font.getlength(label) + 1.2 * em)
  draw.rounded_rectangle(
    (em, 0.4 * em, em + width, 2.1 * em), 0.4 * em, fill, color, max(1, em // 9)
  )
  draw.text((em + width / 2, 1.25 * em), label, color, font, 'mm')
  return width + em


def _draw_color_bar(
  canvas: Image.Image, corner: tuple[int, int], height: int, scale: heatmap.ColorScale, em: int
) -> None:
  """Draw a vertical color bar, labeled with the pixel threshold and the upper end."""
  x, y = corner
  canvas.paste(Image.fromarray(np.repeat(heatmap.color_bar(height)[:, None], em, 1)), corner)
  draw, font, text_x = ImageDraw.Draw(canvas), _font(0.8 * em), x + 1.5 * em
  draw.rectangle((x, y, x + em - 1, y + height - 1), outline=_MUTED_COLOR)
  draw.text((text_x, y), f'{scale.high:.4g}', _TEXT_COLOR, font, 'la')
  text = f'pixel\nthreshold\n{scale.low:.4g}'
  draw.multiline_text((text_x, y + height), text, _TEXT_COLOR, font, 'ld')


def _fit(text: str, size: int, max_width: int) -> tuple[ImageFont.FreeTypeFont, str]:
  """Return the font for a text, and the text in this font, shortened to a width."""
  family = fonts.best_family(text)
  font, text = _font(size, family=family), fonts.printable(text, family)
  num_letters = len(text)
  while num_letters and font.getlength(fonts.shorten_middle(text, num_letters)) > max_width:
    num_letters -= 1
  return font, fonts.shorten_middle(text, num_letters)


@functools.lru_cache(64)
def _font(
  size: float | int, bold: bool = False, family: str = fonts.DEFAULT_FAMILY
) -> ImageFont.FreeTypeFont:
  path = fonts.font_files()[family]
  path = path.replace('DejaVuSans.ttf', 'DejaVuSans-Bold.ttf') if bold else path
  # Raqm is not part of every Pillow; basic layout gives the same pixels everywhere.
  return ImageFont.truetype(path, max(1, round(size)), layout_engine=ImageFont.Layout.BASIC)
