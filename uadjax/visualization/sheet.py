"""Sheets: titled images below a verdict and its numbers, beside a color bar.

Images have full resolution, unless the sheet would be larger than MAX_PIXELS; then it says how much
they are reduced. They are read, colored and pasted in strips of rows, so that drawing takes little
memory in addition to the sheet. Text scales with the images, since a sheet is viewed as a whole:
`em` is the font height in pixels.

Letters: h w height and width of the images.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import ExifTags, Image, ImageDraw, ImageFont

from uadjax.system.logging import LOG
from uadjax.visualization import fonts, heatmap

MAX_PIXELS = 64_000_000  # Of a sheet. At four bytes per pixel, it takes half of what drawing may.

_TEXT_COLOR, _MUTED_COLOR = (34, 34, 34), (90, 90, 90)
# Colors of a badge and its word, darker from OK to NG for readers who see no colors.
_LABEL_COLORS = {
  'OK': ((205, 236, 226), (0, 84, 62)),
  'review': ((240, 180, 40), (0, 0, 0)),
  'NG': ((170, 60, 0), (255, 255, 255)),
}
_MIN_EM, _MAX_EM = 14, 256
_MIN_WIDTH = 25  # Of a sheet, in em.
_MAX_BAR_HEIGHT = 60  # In em; the color bar of a longer image would be out of sight.
_LINE_HEIGHT = 1.4  # Of a caption, in em.
_STRIP_PIXELS = 1_000_000
_SCALE = 'scale'  # Key of a sheet's `info`.


class Tile(NamedTuple):
  """Image of a sheet, and what is drawn over it, all of one height and width.

  Attributes:
    image: RGB image, or a mask to draw in white on black.
    anomaly_map: raw map values to color; None for none.
    visible: mask of the pixels that the network saw, the others of which are dimmed; None for all.
    outline: mask to outline; None for none.
    region: mask to outline thinly, the region of interest; None for none.
  """

  image: UInt8[np.ndarray, 'h w 3'] | Bool[np.ndarray, 'h w']
  anomaly_map: Float[np.ndarray, 'h w'] | None = None
  visible: Bool[np.ndarray, 'h w'] | None = None
  outline: Bool[np.ndarray, 'h w'] | None = None
  region: Bool[np.ndarray, 'h w'] | None = None


def draw_sheet(
  tiles: Mapping[str, Tile],
  name: str,
  caption: str = '',
  label: str = '',
  scale: heatmap.ColorScale | None = None,
) -> Image.Image:
  """Arrange images of one size in a row or, if they are very wide, in a column.

  If the images must be reduced, a line below the caption, the EXIF description of the sheet and the
  log say so, and `scale_of` returns by how much.

  Args:
    tiles: images by title.
    name: headline, which is shortened to fit.
    caption: text below the headline, such as score and thresholds; it is wrapped to fit.
    label: 'OK', 'review' or 'NG', shown as a badge; '' for none.
    scale: color scale of the anomaly map, shown as a color bar; None for no map and no bar.
  """
  full_height, full_width = next(iter(tiles.values())).image.shape[:2]
  layout = _fit_layout((full_height, full_width), [*tiles], caption, scale is not None)
  height, width, em = layout.height, layout.width, layout.em
  canvas = Image.new('RGB', layout.size, (255, 255, 255))
  if layout.note:
    canvas.info[_SCALE] = max(height, width) / max(full_height, full_width)
    canvas.getexif()[ExifTags.Base.ImageDescription] = layout.note
    LOG.info('Picture of %s: %s.', name, layout.note)
  draw = ImageDraw.Draw(canvas)
  name_left = em + _draw_badge(draw, label, em)
  name_font, name = _fit(name, em, layout.size[0] - em - name_left)
  draw.text((name_left, 1.6 * em), name, _TEXT_COLOR, name_font, 'ls')
  for index, line in enumerate(layout.lines):
    draw.text((em, (3.4 + _LINE_HEIGHT * index) * em), line, _TEXT_COLOR, _font(em), 'ls')
  for index, (title, tile) in enumerate(tiles.items()):
    row, column = divmod(index, layout.num_columns)
    x, y = em + column * layout.x_step, layout.top + row * layout.y_step + 2 * em
    draw.text((x, y - 0.4 * em), title, _MUTED_COLOR, _font(0.85 * em), 'ls')
    _draw_tile(canvas, (x, y), tile, (height, width), scale)
  if scale:
    bar_x = (layout.num_columns - 1) * layout.x_step + width + 2 * em
    _draw_color_bar(canvas, (bar_x, layout.top + 2 * em), layout.bar_height, scale, em)
  return canvas


def scale_of(sheet: Image.Image) -> float:
  """Return the size of the images on a sheet, relative to their full size."""
  return sheet.info.get(_SCALE, 1.0)


class _Layout(NamedTuple):
  """Sizes and positions on a sheet, in pixels.

  Attributes:
    height: height of each image.
    width: width of each image.
    em: height of the font.
    num_columns: number of images beside each other.
    x_step: distance of the left edges of neighbors.
    y_step: distance of the upper edges of neighbors.
    lines: lines below the headline.
    note: last of them, if the images are reduced; else ''.
    top: upper edge of the first title.
    bar_height: height of the color bar; 0 for none.
    size: width and height of the sheet.
  """

  height: int
  width: int
  em: int
  num_columns: int
  x_step: int
  y_step: int
  lines: Sequence[str]
  note: str
  top: int
  bar_height: int
  size: tuple[int, int]


def _fit_layout(
  full_size: tuple[int, int], titles: Sequence[str], caption: str, has_bar: bool
) -> _Layout:
  """Return the layout of a sheet of at most MAX_PIXELS, with images as large as possible."""
  layout, scale, (h, w) = _layout(full_size, titles, caption, '', has_bar), 1.0, full_size
  while (num_pixels := math.prod(layout.size)) > MAX_PIXELS and max(layout[:2]) > 1:
    scale *= min(0.99, math.sqrt(MAX_PIXELS / num_pixels))
    height, width = max(1, round(scale * h)), max(1, round(scale * w))
    note = f'images reduced from {w} x {h} to {width} x {height} pixels'
    layout = _layout((height, width), titles, caption, note, has_bar)
  return layout


def _layout(
  size: tuple[int, int], titles: Sequence[str], caption: str, note: str, has_bar: bool
) -> _Layout:
  height, width = size
  num_rows = len(titles) if width > 2 * height else 1
  num_columns = len(titles) // num_rows
  x_pixels, y_pixels = num_columns * width, num_rows * height
  # Text that suits the length of a long and thin image would take much more space than the image.
  length = min(max(x_pixels / 80, y_pixels / 60), x_pixels / _MIN_WIDTH, height / 8)
  em = round(min(max(length, _MIN_EM), _MAX_EM))
  title_widths = [math.ceil(_font(0.85 * em).getlength(title)) for title in titles]
  x_step, y_step = max(width, *title_widths) + em, height + 2 * em
  grid_width = num_columns * x_step + (7 * em if has_bar else 0)
  word_widths = [math.ceil(_font(em).getlength(word)) for word in caption.split()]
  total_width = max(grid_width, _MIN_WIDTH * em, max(word_widths, default=0) + em) + em
  lines = _wrap(caption, em, total_width - 2 * em) + _wrap(note, em, total_width - 2 * em)
  top = round((4 + _LINE_HEIGHT * max(0, len(lines) - 1)) * em)
  # The labels of a very short color bar would overlap.
  bar_height = min(max(height, 6 * em), _MAX_BAR_HEIGHT * em) if has_bar else 0
  total_height = top + max(num_rows * y_step, bar_height + 2 * em) + em
  return _Layout(
    height, width, em, num_columns, x_step, y_step, lines, note, top, bar_height,
    (total_width, total_height),
  )  # fmt: skip


def _wrap(text: str, em: int, max_width: int) -> list[str]:
  """Split a text at blanks into lines of at most `max_width` pixels, where words allow."""
  lines: list[str] = []
  for word in text.split():
    line = f'{lines[-1]} {word}' if lines else word
    if lines and _font(em).getlength(line) <= max_width:
      lines[-1] = line
    else:
      lines.append(word)
  return lines


def _draw_tile(
  canvas: Image.Image,
  corner: tuple[int, int],
  tile: Tile,
  size: tuple[int, int],
  scale: heatmap.ColorScale | None,
) -> None:
  """Draw an image at a size in strips of rows, and its outlines."""
  (x, y), (height, width) = corner, size
  visible = None if tile.visible is None else _reduce_mask(tile.visible, size)
  num_rows = max(1, _STRIP_PIXELS // width)
  for top in range(0, height, num_rows):
    rows = slice(top, min(top + num_rows, height))
    pixels = _reduced_rows(tile.image, size, rows)
    if tile.anomaly_map is not None and scale:
      values = _reduced_rows(tile.anomaly_map, size, rows)
      values = values if visible is None else np.where(visible[rows], values, np.float32('nan'))
      pixels = heatmap.overlay(pixels, values, scale)
    canvas.paste(Image.fromarray(pixels), (x, y + top))
  outlines = (tile.region, heatmap.REGION_COLOR, 800), (tile.outline, heatmap.CONTOUR_COLOR, 250)
  for mask, outline_color, num_widths in outlines:
    if mask is None or not mask.any():
      continue
    (left, top), border, casing = heatmap.find_outline(_reduce_mask(mask, size), num_widths)
    for pixels, color in ((casing, heatmap.CASING_COLOR), (border, outline_color)):
      canvas.paste(color, (x + left, y + top), Image.fromarray(pixels))


def _reduced_rows(array: np.ndarray, size: tuple[int, int], rows: slice) -> np.ndarray:
  """Return some rows of an image or map that is reduced to a size by averaging."""
  h, w = array.shape[:2]
  if array.dtype == bool:
    return heatmap.render_mask(_reduce_mask(array, size, rows))
  if (h, w) == size:
    return array[rows]
  height, width = size
  low, high = rows.start * h / height, rows.stop * h / height
  strip = Image.fromarray(array[int(low) : math.ceil(high)])
  box = 0, low - int(low), w, high - int(low)
  return np.asarray(strip.resize((width, rows.stop - rows.start), Image.Resampling.BOX, box))


def _reduce_mask(
  mask: Bool[np.ndarray, 'h w'], size: tuple[int, int], rows: slice = slice(None)
) -> Bool[np.ndarray, 'rows width']:
  """Return some rows of a mask that is reduced to a size, in which every marked pixel remains."""
  if mask.shape == size:
    return mask[rows]
  (h, w), (height, width) = mask.shape, size
  row_starts = np.arange(height)[rows] * h // height
  end = (rows.stop * h // height) if rows.stop else h
  any_of_rows = np.logical_or.reduceat(mask[:end], row_starts, axis=0)
  return np.logical_or.reduceat(any_of_rows, np.arange(width) * w // width, axis=1)


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
