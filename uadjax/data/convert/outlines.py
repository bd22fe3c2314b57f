"""Outlines become masks, by the conventions of the tools that wrote them.

Letters: h w image, n points.
"""

import math
from typing import Any

from jaxtyping import Bool, Float
import numpy as np
from PIL import Image, ImageDraw

from uadjax.errors import DataError

_FAR = 1e6  # Pixels; Pillow counts them in 32 bits, and no image is that large.


def points(values: Any) -> Float[np.ndarray, 'n 2']:
  """Check a list of [x, y] pairs; DataError where it is anything else."""
  try:
    array = np.array(values, np.float64) if values else np.zeros((0, 2))
  except (TypeError, ValueError):
    array = np.zeros(0)
  if array.shape[1:] != (2,) or not (np.abs(array) < _FAR).all():
    raise DataError(f'points must be pairs [x, y] of finite numbers, not {str(values)[:60]}')
  return array


def at_least(count: int, array: Float[np.ndarray, 'n 2'], what: str) -> Float[np.ndarray, 'n 2']:
  """The points themselves; DataError where they are too few."""
  if len(array) < count:
    raise DataError(f'a {what} needs {count} points and has {len(array)}')
  return array


def polygon(outline: Float[np.ndarray, 'n 2'], h: int, w: int) -> Bool[np.ndarray, 'h w']:
  """Fill as labelme and PaddleX do: by Pillow, every pixel that the outline touches included."""
  canvas = Image.new('1', (w, h))
  ImageDraw.Draw(canvas).polygon([(x, y) for x, y in outline.tolist()], outline=1, fill=1)
  return np.array(canvas)


def rectangle(corners: Float[np.ndarray, 'n 2'], h: int, w: int) -> Bool[np.ndarray, 'h w']:
  """Fill the smallest upright rectangle around points, its edges included, as labelme does."""
  canvas = Image.new('1', (w, h))
  box = (*corners.min(0).tolist(), *corners.max(0).tolist())
  ImageDraw.Draw(canvas).rectangle(box, outline=1, fill=1)
  return np.array(canvas)


def circle(two: Float[np.ndarray, 'n 2'], h: int, w: int) -> Bool[np.ndarray, 'h w']:
  """Fill a circle, given by its center and a point on it, as labelme does."""
  (x, y), (a, b) = two[:2].tolist()
  radius = math.hypot(x - a, y - b)
  canvas = Image.new('1', (w, h))
  box = (x - radius, y - radius, x + radius, y + radius)
  ImageDraw.Draw(canvas).ellipse(box, outline=1, fill=1)
  return np.array(canvas)


def ring(outline: Float[np.ndarray, 'n 2'], h: int, w: int) -> Bool[np.ndarray, 'h w']:
  """Fill as COCO means it: a pixel belongs to the ring if its center lies inside (even-odd).

  A ring so thin that it holds no center is drawn by its outline: a defect it is all the same.
  """
  (x, y), (a, b) = outline.T, np.roll(outline, -1, axis=0).T
  # Every edge crosses the center lines of some rows; right of a crossing, inside and outside swap.
  first = np.clip(np.ceil(np.minimum(y, b) - 0.5), 0, h).astype(int)
  count = np.clip(np.ceil(np.maximum(y, b) - 0.5), 0, h).astype(int) - first
  edge = np.repeat(np.arange(len(x)), count)
  row = first[edge] + np.arange(len(edge)) - (np.cumsum(count) - count)[edge]
  slope = (a - x)[edge] / (b - y)[edge]
  column = np.clip(np.ceil(x[edge] + (row + 0.5 - y[edge]) * slope - 0.5), 0, w).astype(int)
  swaps = np.zeros((h, w + 1), np.int32)
  np.add.at(swaps, (row, column), 1)
  inside = np.cumsum(swaps[:, :w], axis=1) % 2 == 1
  return inside if inside.any() else polygon(outline, h, w)
