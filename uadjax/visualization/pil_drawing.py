"""Antialiased lines and text in any script, drawn with Pillow."""

from collections.abc import Sequence
import functools
from pathlib import Path

import matplotlib
from matplotlib import font_manager
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Number = float | int  # Type checkers at run time do not accept an int as a float.
Point = tuple[Number, Number]

_SUPERSAMPLING = 4  # Lines are drawn enlarged by this factor, and then reduced.

# Fonts for Chinese, Japanese and Korean that operating systems include.
CJK_FONTS = (
  'Noto Sans CJK SC',
  'Noto Sans CJK JP',
  'Noto Sans SC',
  'Source Han Sans SC',
  'WenQuanYi Zen Hei',
  'Microsoft YaHei',
  'SimHei',
  'PingFang SC',
  'Arial Unicode MS',
)


def draw_lines(
  canvas: Image.Image,
  lines: Sequence[Sequence[Point]],
  width: Number,
  color: Color,
  fill: bool = False,
) -> None:
  """Draw lines with round ends and smooth edges, clipped at the canvas.

  Args:
    canvas: image to draw on, in place.
    lines: points of each line; (0, 0) is the corner of the first pixel, not its center.
    width: line width in pixels.
    color: line color.
    fill: whether to fill the areas that the lines enclose, too.
  """
  points = np.array([point for line in lines for point in line])
  top_left = np.floor(points.min(0) - width / 2 - 1)
  mask_width, mask_height = (np.ceil(points.max(0) + width / 2 + 1) - top_left).astype(int).tolist()
  mask = Image.new('L', (_SUPERSAMPLING * mask_width, _SUPERSAMPLING * mask_height))
  draw, radius = ImageDraw.Draw(mask), _SUPERSAMPLING * width / 2
  for line in lines:
    vertices = [(float(x), float(y)) for x, y in _SUPERSAMPLING * (np.array(line) - top_left)]
    if fill:
      draw.polygon(vertices, fill=255)
    draw.line(vertices, 255, max(1, round(2 * radius)), joint='curve')
    for x, y in (vertices[0], vertices[-1]):
      draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
  left, top = top_left.astype(int).tolist()
  canvas.paste(color, (left, top), mask.reduce(_SUPERSAMPLING))


def draw_text(
  canvas: Image.Image,
  position: Point,
  text: str,
  size: Number,
  color: Color,
  anchor: str,
  bold: bool = False,
  font_path: str = '',
) -> None:
  """Draw a line of text; `size` is in pixels, and `anchor` is one of Pillow's anchors."""
  loaded_font = _load_font(font_path or bundled_font(bold), round(size))
  ImageDraw.Draw(canvas).text(position, text, color, loaded_font, anchor)


def text_width(text: str, size: Number, bold: bool = False) -> float:
  """Return the width of a line of text in pixels."""
  return _load_font(bundled_font(bold), round(size)).getlength(text)


def shorten_to_width(text: str, size: Number, max_width: Number, font_path: str = '') -> str:
  """Shorten a text in the middle to fit a width, because names often differ at the end."""
  loaded_font = _load_font(font_path or bundled_font(), round(size))
  for num_removed in range(len(text)):
    num_letters = len(text) - num_removed
    head, tail = text[: (num_letters + 1) // 2], text[len(text) - num_letters // 2 :]
    candidate = f'{head}…{tail}' if num_removed else text
    if loaded_font.getlength(candidate) <= max_width:
      return candidate
  return ''


def bundled_font(bold: bool = False) -> str:
  """Return the path of matplotlib's own font: Latin, Greek, Cyrillic, Arabic and more."""
  file_name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  return str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', file_name))


def choose_font(text: str) -> tuple[str, str]:
  """Choose the font that supports most characters of a text.

  Returns:
    The path of the font, and the text with a box for each character that the font lacks.
  """
  best_font = bundled_font()
  if _missing_letters(text, best_font):
    best_font = min(
      [best_font, *_installed_cjk_fonts()],
      key=lambda font_path: len(_missing_letters(text, font_path)),
    )
  missing_letters = _missing_letters(text, best_font)
  return best_font, ''.join('□' if letter in missing_letters else letter for letter in text)


def _missing_letters(text: str, font_path: str) -> set[str]:
  return {letter for letter in text if ord(letter) not in _supported_letters(font_path)}


@functools.cache
def _supported_letters(font_path: str) -> frozenset[int]:
  return frozenset(font_manager.get_font(font_path).get_charmap())


@functools.cache
def _installed_cjk_fonts() -> list[str]:
  installed_fonts = set(font_manager.get_font_names())
  return [font_manager.findfont(name) for name in CJK_FONTS if name in installed_fonts]


@functools.lru_cache(64)
def _load_font(font_path: str, size: int) -> ImageFont.FreeTypeFont:
  # Raqm is not part of every Pillow; basic layout gives the same pixels everywhere.
  return ImageFont.truetype(font_path, size, layout_engine=ImageFont.Layout.BASIC)
