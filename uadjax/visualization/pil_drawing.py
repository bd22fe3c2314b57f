"""Smooth lines and clear letters on pictures, in whatever script the letters are."""

from collections.abc import Sequence
import functools
from pathlib import Path

import matplotlib
from matplotlib import font_manager
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Number = float | int  # Whoever checks types at run time takes no int for a float.
Point = tuple[Number, Number]

_SMOOTH = 4  # Lines are drawn so many times as large, and made small again.

# Chinese, Japanese and Korean, as systems bring them along.
EASTERN = (
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


def lines(
  canvas: Image.Image,
  through: Sequence[Sequence[Point]],
  width: Number,
  color: Color,
  filled: bool = False,
) -> None:
  """Draw lines with round ends and smooth edges; what is outside the canvas is left out.

  Args:
    canvas: is drawn on.
    through: the points of each line; (0, 0) is the corner of the first pixel, not its center.
    width: of the lines, in pixels.
    color: of the lines.
    filled: fill also what they enclose.
  """
  points = np.array([point for line in through for point in line])
  low = np.floor(points.min(0) - width / 2 - 1)
  across, down = (np.ceil(points.max(0) + width / 2 + 1) - low).astype(int).tolist()
  mask = Image.new('L', (_SMOOTH * across, _SMOOTH * down))
  draw, radius = ImageDraw.Draw(mask), _SMOOTH * width / 2
  for line in through:
    corners = [(float(x), float(y)) for x, y in _SMOOTH * (np.array(line) - low)]
    if filled:
      draw.polygon(corners, fill=255)
    draw.line(corners, 255, max(1, round(2 * radius)), joint='curve')
    for x, y in (corners[0], corners[-1]):
      draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
  left, top = low.astype(int).tolist()
  canvas.paste(color, (left, top), mask.reduce(_SMOOTH))


def write(
  canvas: Image.Image,
  at: Point,
  text: str,
  size: Number,
  color: Color,
  anchor: str,
  bold: bool = False,
  font: str = '',
) -> None:
  """Write a line of text, its letters of a size in pixels; anchors are Pillow's."""
  face = _face(font or own_font(bold), round(size))
  ImageDraw.Draw(canvas).text(at, text, color, face, anchor)


def length(text: str, size: Number, bold: bool = False) -> float:
  """How long a line of text will be, in pixels."""
  return _face(own_font(bold), round(size)).getlength(text)


def shortened(text: str, size: Number, width: Number, font: str = '') -> str:
  """Leave out of a long text's middle what does not fit: names often differ at the end."""
  face = _face(font or own_font(), round(size))
  for left_out in range(len(text)):
    kept = len(text) - left_out
    head, tail = text[: (kept + 1) // 2], text[len(text) - kept // 2 :]
    short = f'{head}…{tail}' if left_out else text
    if face.getlength(short) <= width:
      return short
  return ''


def own_font(bold: bool = False) -> str:
  """The font that matplotlib brings along: Latin, Greek, Cyrillic, Arabic and more."""
  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  return str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', name))


def font_for(text: str) -> tuple[str, str]:
  """Find the font that has most of the letters of a text, and put a box for those it lacks."""
  best = own_font()
  if _missing(text, best):
    best = min([best, *_eastern()], key=lambda font: len(_missing(text, font)))
  lacking = _missing(text, best)
  return best, ''.join('□' if letter in lacking else letter for letter in text)


def _missing(text: str, font: str) -> set[str]:
  return {letter for letter in text if ord(letter) not in _letters(font)}


@functools.cache
def _letters(font: str) -> frozenset[int]:
  return frozenset(font_manager.get_font(font).get_charmap())


@functools.cache
def _eastern() -> list[str]:
  installed = set(font_manager.get_font_names())
  return [font_manager.findfont(name) for name in EASTERN if name in installed]


@functools.lru_cache(64)
def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
  # The same letters wherever it runs: not every Pillow brings Raqm along.
  return ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)
