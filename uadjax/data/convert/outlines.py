"""Rasterization of outlines to masks, by the conventions of the tools that wrote them.

A mask covers only the part of the image that its outline needs, because there may be hundreds of
outlines in a large image.

Letters: h w height and width of the image, p q those of the part, n points.
"""

from collections.abc import Callable
import math
from typing import NamedTuple, TypeAlias

from jaxtyping import Bool, Float, Integer
import numpy as np
from PIL import Image, ImageDraw

from uadjax.errors import DataError

Points: TypeAlias = Float[np.ndarray, 'n 2']

LINE_WIDTH, POINT_RADIUS = 10, 5  # Pixels, as in labelme's own export.
_MAX_COORDINATE = 1e6  # Pixels; Pillow counts pixels in 32 bits, and no image is that large.


class Patch(NamedTuple):
  """Mask of a rectangular part of an image.

  Attributes:
    top: first row of the part.
    left: first column of the part.
    mask: pixels of the part that belong to a region.
  """

  top: int
  left: int
  mask: Bool[np.ndarray, 'p q']

  def paint(self, canvas: Integer[np.ndarray, 'h w'], value: int) -> None:
    """Set the pixels of the region in an array of the image's size."""
    p, q = self.mask.shape
    canvas[self.top : self.top + p, self.left : self.left + q][self.mask] = value


Fill: TypeAlias = Callable[[Points, int, int], Patch]


def parse_points(values: object) -> Points:
  """Convert a list of [x, y] pairs to an array; an empty list or None gives no points.

  Raises:
    DataError: the values are not pairs of finite numbers, or too large.
  """
  try:
    coordinates = np.array(values, np.float64) if values else np.zeros((0, 2))
  except (TypeError, ValueError):
    coordinates = np.zeros(0)
  if coordinates.shape[1:] != (2,) or not (np.abs(coordinates) < _MAX_COORDINATE).all():
    raise DataError(f'points must be pairs [x, y] of finite numbers, not {str(values)[:60]}')
  return coordinates


def has_extent(points: Points) -> bool:
  """Return whether there are points that differ; all others are clicks by accident."""
  return bool(len(points)) and bool(np.ptp(points, axis=0).any())


def place(mask: Bool[np.ndarray, 'p q'], top: int, left: int, h: int, w: int) -> Patch:
  """Put a mask at a position, without what lies outside of the image."""
  inside = mask[max(-top, 0) : max(h - top, 0), max(-left, 0) : max(w - left, 0)]
  return Patch(max(top, 0), max(left, 0), inside)


def fill_polygon(outline: Points, h: int, w: int) -> Patch:
  """Fill a polygon with Pillow, as labelme and PaddleX do; touched pixels are included."""
  return _draw('polygon', outline, h, w, outline=1, fill=1)


def fill_rectangle(corners: Points, h: int, w: int) -> Patch:
  """Fill the bounding rectangle of the points, including its edges, as labelme does."""
  return _draw('rectangle', _bounding_box(corners), h, w, outline=1, fill=1)


def fill_ellipse(corners: Points, h: int, w: int) -> Patch:
  """Fill the ellipse that touches the edges of the points' bounding rectangle."""
  return _draw('ellipse', _bounding_box(corners), h, w, outline=1, fill=1)


def fill_circle(center_and_edge: Points, h: int, w: int) -> Patch:
  """Fill a circle, given by its center and a point on its edge, as labelme does."""
  center, edge = center_and_edge[:2]
  radius = math.dist(center, edge)
  return fill_ellipse(np.stack([center - radius, center + radius]), h, w)


def draw_line(points: Points, h: int, w: int) -> Patch:
  """Draw a line through the points with the width of labelme's export."""
  return _draw('line', points, h, w, margin=LINE_WIDTH, fill=1, width=LINE_WIDTH)


def draw_point(points: Points, h: int, w: int) -> Patch:
  """Draw the first point as a disc with the radius of labelme's export."""
  return fill_ellipse(points[0] + np.array([[-POINT_RADIUS], [POINT_RADIUS]]), h, w)


def _bounding_box(points: Points) -> Float[np.ndarray, '2 2']:
  return np.stack([points.min(0), points.max(0)])


def _window(points: Points, h: int, w: int, margin: int = 0) -> tuple[int, int, int, int]:
  """Return top, left, bottom and right of the part of the image that contains the points."""
  low = np.floor(points.min(0)).astype(int) - margin
  high = np.trunc(points.max(0)).astype(int) + 1 + margin  # Pillow draws -0.9 as 0.
  left, top = np.clip(low, 0, (w, h)).tolist()
  right, bottom = np.clip(high, (left, top), (w, h)).tolist()
  return top, left, bottom, right


def _draw(shape: str, points: Points, h: int, w: int, margin: int = 0, **options: int) -> Patch:
  """Draw a shape of Pillow on the part of the image that contains the points and a margin."""
  top, left, bottom, right = _window(points, h, w, margin)
  canvas = Image.new('1', (right - left, bottom - top))
  if not canvas.width or not canvas.height:
    return Patch(top, left, np.zeros((0, 0), bool))
  shifted = (points - np.array([left, top])).ravel().tolist()
  getattr(ImageDraw.Draw(canvas), shape)(shifted, **options)
  return Patch(top, left, np.array(canvas))


def fill_polygon_even_odd(outline: Points, h: int, w: int) -> Patch:
  """Fill a polygon by COCO's convention: pixels whose centers lie inside by the even-odd rule.

  A polygon so thin that it contains no pixel center is drawn as its outline, because it still marks
  a defect.
  """
  top, left, bottom, right = _window(outline, h, w)
  (x, y), (next_x, next_y) = outline.T, np.roll(outline, -1, axis=0).T
  # Each edge crosses the center lines of some rows; inside and outside swap right of a crossing.
  first_row = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), top, bottom).astype(int)
  num_rows = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), top, bottom).astype(int) - first_row
  edge = np.repeat(np.arange(len(x)), num_rows)
  row = first_row[edge] + np.arange(len(edge)) - (np.cumsum(num_rows) - num_rows)[edge]
  slope = (next_x - x)[edge] / (next_y - y)[edge]
  column = np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5)
  column = np.clip(column, left, right).astype(int)
  swaps = np.zeros((bottom - top, right - left + 1), bool)
  np.logical_xor.at(swaps, (row - top, column - left), True)
  inside = np.logical_xor.accumulate(swaps[:, :-1], axis=1)
  return Patch(top, left, inside) if inside.any() else fill_polygon(outline, h, w)
