"""Rasterization of outlines to masks, by the conventions of the tools that wrote them.

Letters: h w height and width of the image, n points.
"""

from collections.abc import Callable, Sequence
import math
from typing import TypeAlias

from jaxtyping import Bool, Float
import numpy as np
from PIL import Image, ImageDraw

from uadjax.errors import DataError

Mask: TypeAlias = Bool[np.ndarray, 'h w']
Points: TypeAlias = Float[np.ndarray, 'n 2']

_MAX_COORDINATE = 1e6  # Pixels; Pillow counts pixels in 32 bits, and no image is that large.


def parse_points(values: object, min_count: int = 0, shape_type: str = '') -> Points:
  """Convert a list of [x, y] pairs to an array; an empty list or None gives no points.

  Args:
    values: the list.
    min_count: smallest number of points of the shape.
    shape_type: name of the type of shape in messages.

  Raises:
    DataError: the values are not pairs of finite numbers, are too large or too few.
  """
  try:
    coordinates = np.array(values, np.float64) if values else np.zeros((0, 2))
  except (TypeError, ValueError):
    coordinates = np.zeros(0)
  if coordinates.shape[1:] != (2,) or not (np.abs(coordinates) < _MAX_COORDINATE).all():
    raise DataError(f'points must be pairs [x, y] of finite numbers, not {str(values)[:60]}')
  if len(coordinates) < min_count:
    raise DataError(f'a {shape_type} needs {min_count} points but has {len(coordinates)}')
  return coordinates


def fill_polygon(outline: Points, h: int, w: int) -> Mask:
  """Fill a polygon with Pillow, as labelme and PaddleX do; touched pixels are included."""
  return _fill(ImageDraw.ImageDraw.polygon, outline.ravel().tolist(), h, w)


def fill_rectangle(corners: Points, h: int, w: int) -> Mask:
  """Fill the bounding rectangle of the points, including its edges, as labelme does."""
  box = [*corners.min(0).tolist(), *corners.max(0).tolist()]
  return _fill(ImageDraw.ImageDraw.rectangle, box, h, w)


def fill_circle(center_and_edge: Points, h: int, w: int) -> Mask:
  """Fill a circle, given by its center and a point on its edge, as labelme does."""
  (x, y), (edge_x, edge_y) = center_and_edge[:2].tolist()
  radius = math.hypot(x - edge_x, y - edge_y)
  box = [x - radius, y - radius, x + radius, y + radius]
  return _fill(ImageDraw.ImageDraw.ellipse, box, h, w)


def _fill(draw: Callable[..., None], coordinates: Sequence[float], h: int, w: int) -> Mask:
  canvas = Image.new('1', (w, h))
  draw(ImageDraw.Draw(canvas), coordinates, outline=1, fill=1)
  return np.array(canvas)


def fill_polygon_even_odd(outline: Points, h: int, w: int) -> Mask:
  """Fill a polygon by COCO's convention: pixels whose centers lie inside by the even-odd rule.

  A polygon so thin that it contains no pixel center is drawn as its outline, because it still marks
  a defect.
  """
  (x, y), (next_x, next_y) = outline.T, np.roll(outline, -1, axis=0).T
  # Each edge crosses the center lines of some rows; inside and outside swap right of a crossing.
  first_row = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, h).astype(int)
  num_rows = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, h).astype(int) - first_row
  edge = np.repeat(np.arange(len(x)), num_rows)
  row = first_row[edge] + np.arange(len(edge)) - (np.cumsum(num_rows) - num_rows)[edge]
  slope = (next_x - x)[edge] / (next_y - y)[edge]
  column = np.clip(np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5), 0, w).astype(int)
  num_crossings = np.zeros((h, w + 1), np.int32)
  np.add.at(num_crossings, (row, column), 1)
  inside = np.cumsum(num_crossings[:, :w], axis=1) % 2 == 1
  return inside if inside.any() else fill_polygon(outline, h, w)
