"""The picture of one result: the photograph as it is, the map over it, the verdict above both.

Nothing of the photograph is resampled. Letters and lines grow with it, since people look at the
whole; `em` is the height of the letters in pixels, and all other measures are multiples of it.
No color is needed to read it: labels differ in words, signs and in how dark they are.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image, ImageDraw

from uadjax.numerics import regions
from uadjax.visualization import heatmap, pil_drawing

_PAPER, _INK, _FAINT, _BLACK = (255, 255, 255), (34, 34, 34), (90, 90, 90), (0, 0, 0)
_LARGEST = 256  # Letters, in pixels, of pictures beyond any screen.
_GAUGE = 17  # Width in em, as are those of the narrowest header and of one in a single row.
_NARROW, _WIDE = 25, 46


class Verdict(NamedTuple):
  """What is told of an image.

  Attributes:
    name: of its file.
    label: 'OK', 'review' or 'NG'.
    score: how anomalous it is.
    image: the score above which it is NG.
    review: the score above which it is reviewed; at least `image` where there is no such band.
    pixel: the map value above which pixels are marked.
  """

  name: str
  label: str
  score: float
  image: float
  review: float
  pixel: float


class _Look(NamedTuple):
  """How a label looks (colors of Okabe and Ito 2008).

  Attributes:
    fill: of the badge.
    line: its border.
    ink: its sign and word.
    sign: lines of the sign, in a square of side 1.
  """

  fill: pil_drawing.Color
  line: pil_drawing.Color
  ink: pil_drawing.Color
  sign: Sequence[Sequence[pil_drawing.Point]]


def _arc(
  center: pil_drawing.Point,
  radius: pil_drawing.Number,
  start: pil_drawing.Number,
  end: pil_drawing.Number,
) -> list[pil_drawing.Point]:
  """Points of an arc; degrees run clockwise from the right, as y runs down."""
  angles = np.radians(np.linspace(start, end, 73))
  x, y = center
  return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles.tolist()]


_QUESTION = [
  [*_arc((0.5, 0.3), 0.26, -190, 60), (0.5, 0.58), (0.5, 0.68)],
  [(0.5, 0.96), (0.5, 0.97)],
]
_LOOKS = {
  # Quiet where all is well, and loud where it is not.
  'OK': _Look(_PAPER, (0, 128, 93), (0, 112, 82), [[(0.05, 0.55), (0.38, 0.88), (0.95, 0.15)]]),
  'review': _Look((240, 180, 40), (150, 100, 0), _BLACK, _QUESTION),
  'NG': _Look(
    (190, 75, 0), (120, 45, 0), _PAPER, [[(0.1, 0.1), (0.9, 0.9)], [(0.1, 0.9), (0.9, 0.1)]]
  ),
}
# Ever darker, for those who see no colors.
_ZONES = {'OK': (170, 222, 207), 'review': (240, 180, 40), 'NG': (190, 75, 0)}


def picture(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly: Float[np.ndarray, 'h w'],
  pred: Bool[np.ndarray, 'h w'],
  peak_at: tuple[int, int],
  told: Verdict,
) -> Image.Image:
  """Show a result: two panels side by side, or one above the other where they are very wide.

  Args:
    image: the photograph.
    anomaly: raw map values; NaN where the network did not look, which is dimmed.
    pred: the marked pixels, which are outlined.
    peak_at: x and y of the largest map value, where it or the marked region
      around it gets a ring unless the label is 'OK': there are two thresholds, and an image can be
      NG without a marked pixel.
    told: the verdict.
  """
  height, width = pred.shape
  stacked = width > 2 * height
  across, down = (width, 2 * height) if stacked else (2 * width, height)
  em = min(max(14, round(max(across / 90, down / 70))), _LARGEST)
  captions = ['original', _caption(anomaly, pred, told)]
  lengths = [math.ceil(pil_drawing.length(text, 0.85 * em)) for text in captions]
  columns = [max(width, lengths[0]), max(width + 6 * em, lengths[1])]
  bar = max(height, 6 * em)  # Shorter, and its numbers would meet.
  room = max(columns) if stacked else sum(columns) + em
  total = max(room, _NARROW * em) + 2 * em
  top = _header_height(total, em) + 2 * em
  seat = (em, top + height + 3 * em) if stacked else (2 * em + columns[0], top)
  canvas = Image.new('RGB', (total, seat[1] + bar + em), _PAPER)
  over = heatmap.outline(heatmap.overlay(image, anomaly, told.pixel), pred)
  canvas.paste(Image.fromarray(over), seat)
  if told.label != 'OK':
    _ring(canvas, seat, pred, peak_at, em)
  # After the ring, which may reach out of its panel.
  canvas.paste(Image.fromarray(image), (em, top))
  for text, (x, y) in zip(captions, [(em, top), seat], strict=True):
    pil_drawing.write(canvas, (x, y - 0.45 * em), text, 0.85 * em, _FAINT, 'ls')
  scale, paper = heatmap.scale(anomaly, told.pixel), _mean_color(image)
  _color_bar(canvas, (seat[0] + width + 0.6 * em, seat[1]), bar, scale, paper, em)
  _header(canvas, told, np.count_nonzero(pred) / pred.size, em)
  return canvas


def _caption(
  anomaly: Float[np.ndarray, 'h w'], pred: Bool[np.ndarray, 'h w'], told: Verdict
) -> str:
  parts = [f'anomaly map, {"outlined" if pred.any() else "nothing"} above {_number(told.pixel)}']
  if told.label != 'OK':
    parts.append('ring at its peak')
  if np.isnan(anomaly).any():
    parts.append('dark where not looked at')
  return ', '.join(parts)


def _mean_color(image: UInt8[np.ndarray, 'h w 3']) -> list[float]:
  height, width = image.shape[:2]
  return image[:: 1 + height // 64, :: 1 + width // 64].mean((0, 1)).tolist()


def _ring(
  canvas: Image.Image,
  seat: tuple[int, int],
  pred: Bool[np.ndarray, 'h w'],
  peak_at: tuple[int, int],
  em: int,
) -> None:
  """Ring the peak, or the marked region that it is in: nothing small may hide below the ring."""
  height, width = pred.shape
  thick = max(heatmap.stroke(height, width), em / 10)
  radius, (x, y) = max(0.03 * math.sqrt(height * width), 0.45 * em), peak_at
  if pred[y, x]:
    labels, _ = regions.label_regions(pred)
    rows, columns = np.nonzero(labels == labels[y, x])
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    radius = max(radius, math.hypot(np.ptp(rows), np.ptp(columns)) / 2 + 3 * thick)
  ring = [_arc((seat[0] + x + 0.5, seat[1] + y + 0.5), radius, 0, 360)]
  pil_drawing.lines(canvas, ring, 2 * thick + 2, heatmap.CASING)
  pil_drawing.lines(canvas, ring, thick, _PAPER)


def _color_bar(
  canvas: Image.Image,
  at: pil_drawing.Point,
  height: int,
  scale: heatmap.Scale,
  paper: Sequence[float],
  em: int,
) -> None:
  """Draw the scale upright, the threshold on it as the contour is drawn."""
  x, y = round(at[0]), round(at[1])
  bar = np.repeat(heatmap.color_bar(height, paper)[:, None], em, axis=1)
  canvas.paste(Image.fromarray(bar), (x, y))
  ImageDraw.Draw(canvas).rectangle((x, y, x + em - 1, y + height - 1), outline=_FAINT)
  middle = y + height / 2
  tick = [[(x - 0.2 * em, middle), (x + 1.2 * em, middle)]]
  pil_drawing.lines(canvas, tick, 0.35 * em, heatmap.CASING)
  pil_drawing.lines(canvas, tick, 0.18 * em, heatmap.CONTOUR)
  beside, size = x + 1.55 * em, 0.8 * em
  pil_drawing.write(canvas, (beside, y), f'{scale.top:.3g}', size, _INK, 'la')
  pil_drawing.write(canvas, (beside, middle), _number(scale.middle), size, _INK, 'lm', bold=True)
  pil_drawing.write(canvas, (beside, y + height), f'{scale.low:.3g}', size, _INK, 'ld')


def _header_height(width: int, em: int) -> int:
  return round((3.2 if width >= _WIDE * em else 6.4) * em)


def _header(canvas: Image.Image, told: Verdict, marked: float, em: int) -> None:
  """Write badge, name and score, and draw the gauge beside or below them."""
  one_row = canvas.width >= _WIDE * em
  gauge = canvas.width - (_GAUGE + 1) * em if one_row else em
  left = em + _badge(canvas, (em, 0.8 * em), told.label, em) + em
  width = (gauge if one_row else canvas.width) - em - left
  font, name = pil_drawing.font_for(told.name)
  name = pil_drawing.shortened(name, em, width, font)
  pil_drawing.write(canvas, (left, 1.75 * em), name, em, _INK, 'ls', font=font)
  share = 'nothing' if not marked else f'{100 * marked:.3g} %'
  score = f'score {_number(told.score)}, {share} marked'
  pil_drawing.write(canvas, (left, 3.05 * em), score, 0.9 * em, _FAINT, 'ls')
  _gauge(canvas, (gauge, (0.55 if one_row else 3.9) * em), told, em)


def _badge(canvas: Image.Image, at: pil_drawing.Point, label: str, em: int) -> float:
  """Draw sign and word of a label, and return their width."""
  look = _LOOKS[label]
  x, y = at
  high, size, rim = 2.4 * em, 1.25 * em, 0.14 * em
  width = 3.4 * em + pil_drawing.length(label, size, bold=True)
  middle = y + high / 2
  spine = [[(x + high / 2, middle), (x + width - high / 2, middle)]]
  pil_drawing.lines(canvas, spine, high, look.line)
  pil_drawing.lines(canvas, spine, high - 2 * rim, look.fill)
  side = 1.05 * em
  left, up = x + 0.9 * em, middle - side / 2
  sign = [[(left + side * a, up + side * b) for a, b in line] for line in look.sign]
  pil_drawing.lines(canvas, sign, 0.26 * em, look.ink)
  pil_drawing.write(canvas, (x + 2.45 * em, middle), label, size, look.ink, 'lm', bold=True)
  return width


def _gauge(canvas: Image.Image, at: pil_drawing.Point, told: Verdict, em: int) -> None:
  """Draw the zones of scores, a pointer at this one, numbers where zones meet."""
  x, y = at[0], at[1] + 0.7 * em
  width, high, size = _GAUGE * em, 1.05 * em, 0.8 * em
  place = _places(told)
  review, image, score = (
    x + width * place(v) for v in (min(told.review, told.image), told.image, told.score)
  )
  draw = ImageDraw.Draw(canvas)
  ends = {'OK': (x, review), 'review': (review, image), 'NG': (image, x + width)}
  for label, (start, end) in ends.items():
    if end > start:
      draw.rectangle((start, y, end - 1, y + high), fill=_ZONES[label])
  for label, end, anchor in (('OK', x + 0.4 * em, 'lm'), ('NG', x + width - 0.4 * em, 'rm')):
    ink = _PAPER if label == 'NG' else _INK
    pil_drawing.write(canvas, (end, y + high / 2), label, size, ink, anchor, bold=True)
  under = y + high + 0.25 * em
  if review < image:
    pil_drawing.write(canvas, (review, under), f'review {_number(told.review)}', size, _FAINT, 'ra')
    draw.line((review, y, review, under + 0.6 * size), _INK, max(1, em // 12))
  draw.line((image, y, image, under + 0.6 * size), _INK, max(1, em // 12))
  pil_drawing.write(
    canvas, (image + 0.25 * em, under), f'NG {_number(told.image)}', size, _FAINT, 'la'
  )
  # Only above, so that it covers no word.
  up, half = y - 0.62 * em, 0.36 * em
  pointer = [(score, y), (score - half, up), (score + half, up), (score, y)]
  pil_drawing.lines(canvas, [pointer], 0.08 * em, _BLACK, filled=True)


def _places(told: Verdict) -> Callable[[float], float]:
  """Make the map from scores to shares of the gauge, in whose middle an image becomes NG."""
  known = [v for v in (told.image, told.review, told.score) if math.isfinite(v)]
  middle = known[0] if known else 0.0
  band = 1.5 * (middle - told.review) if math.isfinite(told.review) else 0.0
  span = max(abs(middle), band, 1e-30)

  def place(score: pil_drawing.Number) -> float:
    share = 0.5 + (score - middle) / (2 * span)
    return 1.0 if math.isnan(share) else min(max(share, 0.0), 1.0)

  return place


def _number(value: pil_drawing.Number) -> str:
  return f'{value:.4g}'
