"""Picture of one result: the image, its heatmap overlay, and the verdict above both.

The image is not resampled. Text and lines scale with the image, since the picture is viewed as a
whole: `em` is the font height in pixels, and all other sizes are multiples of it. The picture is
readable without colors, since labels differ in words, signs and darkness.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image, ImageDraw

from uadjax.numerics import regions
from uadjax.visualization import heatmap, pil_drawing

_BACKGROUND_COLOR, _TEXT_COLOR, _MUTED_COLOR, _BLACK = (
  (255, 255, 255),
  (34, 34, 34),
  (90, 90, 90),
  (0, 0, 0),
)
_MAX_EM = 256  # Limit of the font height for images larger than any screen.
# Widths in em: of the gauge, of the narrowest header, and of the narrowest header in a single row.
_GAUGE_WIDTH, _MIN_WIDTH, _SINGLE_ROW_WIDTH = 17, 25, 46


class Verdict(NamedTuple):
  """Decision on an image, with score and thresholds.

  Attributes:
    name: name of the image file.
    label: 'OK', 'review' or 'NG'.
    score: anomaly score of the image.
    image_threshold: score above which an image is NG.
    review_threshold: score above which an image needs review; at least `image_threshold` without a
      review band.
    pixel_threshold: map value above which pixels are marked.
  """

  name: str
  label: str
  score: float
  image_threshold: float
  review_threshold: float
  pixel_threshold: float


class _LabelStyle(NamedTuple):
  """Appearance of a label's badge (colors of Okabe and Ito 2008).

  Attributes:
    fill_color: color of the background.
    border_color: color of the border.
    text_color: color of the sign and the word.
    sign_lines: lines of the sign, in a unit square.
  """

  fill_color: pil_drawing.Color
  border_color: pil_drawing.Color
  text_color: pil_drawing.Color
  sign_lines: Sequence[Sequence[pil_drawing.Point]]


def _arc_points(
  center: pil_drawing.Point,
  radius: pil_drawing.Number,
  start: pil_drawing.Number,
  end: pil_drawing.Number,
) -> list[pil_drawing.Point]:
  """Return points of an arc; angles are in degrees, clockwise from the right, as y runs down."""
  angles = np.radians(np.linspace(start, end, 73))
  x, y = center
  return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles.tolist()]


_QUESTION_MARK = [
  [*_arc_points((0.5, 0.3), 0.26, -190, 60), (0.5, 0.58), (0.5, 0.68)],
  [(0.5, 0.96), (0.5, 0.97)],
]
_LABEL_STYLES = {
  # OK is pale, and the labels that need attention have strong colors.
  'OK': _LabelStyle(
    _BACKGROUND_COLOR, (0, 128, 93), (0, 112, 82), [[(0.05, 0.55), (0.38, 0.88), (0.95, 0.15)]]
  ),
  'review': _LabelStyle((240, 180, 40), (150, 100, 0), _BLACK, _QUESTION_MARK),
  'NG': _LabelStyle(
    (190, 75, 0),
    (120, 45, 0),
    _BACKGROUND_COLOR,
    [[(0.1, 0.1), (0.9, 0.9)], [(0.1, 0.9), (0.9, 0.1)]],
  ),
}
# The zones get darker from OK to NG, for readers who see no colors.
_ZONE_COLORS = {'OK': (170, 222, 207), 'review': (240, 180, 40), 'NG': (190, 75, 0)}


def draw_result(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly_map: Float[np.ndarray, 'h w'],
  pred: Bool[np.ndarray, 'h w'],
  peak_position: tuple[int, int],
  verdict: Verdict,
) -> Image.Image:
  """Draw a result as two panels, side by side or, if the image is very wide, stacked.

  Args:
    image: image at original resolution.
    anomaly_map: raw map values; NaN where the network did not see the image, which is dimmed.
    pred: mask of the anomalous pixels, which are outlined.
    peak_position: x and y of the largest map value. Unless the label is 'OK', a ring is drawn
      around it or around its anomalous region, because an image can be NG without anomalous
      pixels: the image threshold and the pixel threshold differ.
    verdict: label, score and thresholds of the image.
  """
  height, width = pred.shape
  is_stacked = width > 2 * height
  panels_width, panels_height = (width, 2 * height) if is_stacked else (2 * width, height)
  em = min(max(14, round(max(panels_width / 90, panels_height / 70))), _MAX_EM)
  captions = ['original', _map_caption(anomaly_map, pred, verdict)]
  caption_widths = [math.ceil(pil_drawing.text_width(text, 0.85 * em)) for text in captions]
  column_widths = [max(width, caption_widths[0]), max(width + 6 * em, caption_widths[1])]
  bar_height = max(height, 6 * em)  # The numbers of a shorter bar would overlap.
  content_width = max(column_widths) if is_stacked else sum(column_widths) + em
  total_width = max(content_width, _MIN_WIDTH * em) + 2 * em
  top = _header_height(total_width, em) + 2 * em
  map_origin = (em, top + height + 3 * em) if is_stacked else (2 * em + column_widths[0], top)
  canvas = Image.new('RGB', (total_width, map_origin[1] + bar_height + em), _BACKGROUND_COLOR)
  overlay_image = heatmap.draw_outline(
    heatmap.overlay(image, anomaly_map, verdict.pixel_threshold), pred
  )
  canvas.paste(Image.fromarray(overlay_image), map_origin)
  if verdict.label != 'OK':
    _draw_ring(canvas, map_origin, pred, peak_position, em)
  # The image is pasted after the ring, which may extend beyond its panel.
  canvas.paste(Image.fromarray(image), (em, top))
  for text, (x, y) in zip(captions, [(em, top), map_origin], strict=True):
    pil_drawing.draw_text(canvas, (x, y - 0.45 * em), text, 0.85 * em, _MUTED_COLOR, 'ls')
  color_scale, background_color = (
    heatmap.choose_color_scale(anomaly_map, verdict.pixel_threshold),
    _mean_color(image),
  )
  _draw_color_bar(
    canvas,
    (map_origin[0] + width + 0.6 * em, map_origin[1]),
    bar_height,
    color_scale,
    background_color,
    em,
  )
  _draw_header(canvas, verdict, np.count_nonzero(pred) / pred.size, em)
  return canvas


def _map_caption(
  anomaly_map: Float[np.ndarray, 'h w'], pred: Bool[np.ndarray, 'h w'], verdict: Verdict
) -> str:
  contour_text = 'outlined' if pred.any() else 'nothing'
  phrases = [f'anomaly map, {contour_text} above {_format_number(verdict.pixel_threshold)}']
  if verdict.label != 'OK':
    phrases.append('ring at its peak')
  if np.isnan(anomaly_map).any():
    phrases.append('dark outside the crop')
  return ', '.join(phrases)


def _mean_color(image: UInt8[np.ndarray, 'h w 3']) -> list[float]:
  height, width = image.shape[:2]
  return image[:: 1 + height // 64, :: 1 + width // 64].mean((0, 1)).tolist()


def _draw_ring(
  canvas: Image.Image,
  map_origin: tuple[int, int],
  pred: Bool[np.ndarray, 'h w'],
  peak_position: tuple[int, int],
  em: int,
) -> None:
  """Draw a ring around the peak or its anomalous region, wide enough not to hide small defects."""
  height, width = pred.shape
  line_width = max(heatmap.line_width(height, width), em / 10)
  radius, (x, y) = max(0.03 * math.sqrt(height * width), 0.45 * em), peak_position
  if pred[y, x]:
    region_labels, _ = regions.label_regions(pred)
    rows, columns = np.nonzero(region_labels == region_labels[y, x])
    x, y = (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2
    radius = max(radius, math.hypot(np.ptp(rows), np.ptp(columns)) / 2 + 3 * line_width)
  ring = [_arc_points((map_origin[0] + x + 0.5, map_origin[1] + y + 0.5), radius, 0, 360)]
  pil_drawing.draw_lines(canvas, ring, 2 * line_width + 2, heatmap.CASING_COLOR)
  pil_drawing.draw_lines(canvas, ring, line_width, _BACKGROUND_COLOR)


def _draw_color_bar(
  canvas: Image.Image,
  position: pil_drawing.Point,
  height: int,
  color_scale: heatmap.ColorScale,
  background_color: Sequence[float],
  em: int,
) -> None:
  """Draw a vertical color bar, with a tick in the style of the contour at the threshold."""
  x, y = round(position[0]), round(position[1])
  bar = np.repeat(heatmap.color_bar(height, background_color)[:, None], em, axis=1)
  canvas.paste(Image.fromarray(bar), (x, y))
  ImageDraw.Draw(canvas).rectangle((x, y, x + em - 1, y + height - 1), outline=_MUTED_COLOR)
  middle_y = y + height / 2
  tick = [[(x - 0.2 * em, middle_y), (x + 1.2 * em, middle_y)]]
  pil_drawing.draw_lines(canvas, tick, 0.35 * em, heatmap.CASING_COLOR)
  pil_drawing.draw_lines(canvas, tick, 0.18 * em, heatmap.CONTOUR_COLOR)
  text_x, text_size = x + 1.55 * em, 0.8 * em
  pil_drawing.draw_text(
    canvas, (text_x, y), f'{color_scale.high:.3g}', text_size, _TEXT_COLOR, 'la'
  )
  pil_drawing.draw_text(
    canvas,
    (text_x, middle_y),
    _format_number(color_scale.middle),
    text_size,
    _TEXT_COLOR,
    'lm',
    bold=True,
  )
  pil_drawing.draw_text(
    canvas, (text_x, y + height), f'{color_scale.low:.3g}', text_size, _TEXT_COLOR, 'ld'
  )


def _header_height(width: int, em: int) -> int:
  return round((3.2 if width >= _SINGLE_ROW_WIDTH * em else 6.4) * em)


def _draw_header(canvas: Image.Image, verdict: Verdict, marked_share: float, em: int) -> None:
  """Draw badge, name and score, and the gauge next to or below them."""
  is_single_row = canvas.width >= _SINGLE_ROW_WIDTH * em
  gauge_x = canvas.width - (_GAUGE_WIDTH + 1) * em if is_single_row else em
  text_x = em + _draw_badge(canvas, (em, 0.8 * em), verdict.label, em) + em
  text_width = (gauge_x if is_single_row else canvas.width) - em - text_x
  font_path, name = pil_drawing.choose_font(verdict.name)
  name = pil_drawing.shorten_to_width(name, em, text_width, font_path)
  pil_drawing.draw_text(
    canvas, (text_x, 1.75 * em), name, em, _TEXT_COLOR, 'ls', font_path=font_path
  )
  marked_text = 'nothing' if not marked_share else f'{100 * marked_share:.3g} %'
  score_text = f'score {_format_number(verdict.score)}, {marked_text} marked'
  pil_drawing.draw_text(canvas, (text_x, 3.05 * em), score_text, 0.9 * em, _MUTED_COLOR, 'ls')
  _draw_gauge(canvas, (gauge_x, (0.55 if is_single_row else 3.9) * em), verdict, em)


def _draw_badge(canvas: Image.Image, position: pil_drawing.Point, label: str, em: int) -> float:
  """Draw the badge of a label with its sign and word, and return its width."""
  label_style = _LABEL_STYLES[label]
  x, y = position
  height, text_size, border_width = 2.4 * em, 1.25 * em, 0.14 * em
  width = 3.4 * em + pil_drawing.text_width(label, text_size, bold=True)
  middle_y = y + height / 2
  center_line = [[(x + height / 2, middle_y), (x + width - height / 2, middle_y)]]
  pil_drawing.draw_lines(canvas, center_line, height, label_style.border_color)
  pil_drawing.draw_lines(canvas, center_line, height - 2 * border_width, label_style.fill_color)
  sign_size = 1.05 * em
  sign_left, sign_top = x + 0.9 * em, middle_y - sign_size / 2
  sign = [
    [(sign_left + sign_size * a, sign_top + sign_size * b) for a, b in line]
    for line in label_style.sign_lines
  ]
  pil_drawing.draw_lines(canvas, sign, 0.26 * em, label_style.text_color)
  pil_drawing.draw_text(
    canvas, (x + 2.45 * em, middle_y), label, text_size, label_style.text_color, 'lm', bold=True
  )
  return width


def _draw_gauge(
  canvas: Image.Image, position: pil_drawing.Point, verdict: Verdict, em: int
) -> None:
  """Draw a gauge of the score: zones of the labels, the thresholds between them, a pointer."""
  x, y = position[0], position[1] + 0.7 * em
  width, height, text_size = _GAUGE_WIDTH * em, 1.05 * em, 0.8 * em
  to_share = _gauge_mapping(verdict)
  review_x, image_x, score_x = (
    x + width * to_share(v)
    for v in (
      min(verdict.review_threshold, verdict.image_threshold),
      verdict.image_threshold,
      verdict.score,
    )
  )
  draw = ImageDraw.Draw(canvas)
  zones = {'OK': (x, review_x), 'review': (review_x, image_x), 'NG': (image_x, x + width)}
  for label, (start, end) in zones.items():
    if end > start:
      draw.rectangle((start, y, end - 1, y + height), fill=_ZONE_COLORS[label])
  for label, end, anchor in (('OK', x + 0.4 * em, 'lm'), ('NG', x + width - 0.4 * em, 'rm')):
    text_color = _BACKGROUND_COLOR if label == 'NG' else _TEXT_COLOR
    pil_drawing.draw_text(
      canvas, (end, y + height / 2), label, text_size, text_color, anchor, bold=True
    )
  text_y = y + height + 0.25 * em
  if review_x < image_x:
    pil_drawing.draw_text(
      canvas,
      (review_x, text_y),
      f'review {_format_number(verdict.review_threshold)}',
      text_size,
      _MUTED_COLOR,
      'ra',
    )
    draw.line((review_x, y, review_x, text_y + 0.6 * text_size), _TEXT_COLOR, max(1, em // 12))
  draw.line((image_x, y, image_x, text_y + 0.6 * text_size), _TEXT_COLOR, max(1, em // 12))
  pil_drawing.draw_text(
    canvas,
    (image_x + 0.25 * em, text_y),
    f'NG {_format_number(verdict.image_threshold)}',
    text_size,
    _MUTED_COLOR,
    'la',
  )
  # The pointer stays above the zones, so that it covers no text.
  pointer_top, half_width = y - 0.62 * em, 0.36 * em
  pointer = [
    (score_x, y),
    (score_x - half_width, pointer_top),
    (score_x + half_width, pointer_top),
    (score_x, y),
  ]
  pil_drawing.draw_lines(canvas, [pointer], 0.08 * em, _BLACK, fill=True)


def _gauge_mapping(verdict: Verdict) -> Callable[[float], float]:
  """Return a function from scores to positions on the gauge, from 0 to 1.

  The image threshold is in the middle.
  """
  finite_values = [
    v
    for v in (verdict.image_threshold, verdict.review_threshold, verdict.score)
    if math.isfinite(v)
  ]
  middle = finite_values[0] if finite_values else 0.0
  band = (
    1.5 * (middle - verdict.review_threshold) if math.isfinite(verdict.review_threshold) else 0.0
  )
  span = max(abs(middle), band, 1e-30)

  def to_share(score: pil_drawing.Number) -> float:
    share = 0.5 + (score - middle) / (2 * span)
    return 1.0 if math.isnan(share) else min(max(share, 0.0), 1.0)

  return to_share


def _format_number(value: pil_drawing.Number) -> str:
  return f'{value:.4g}'
