"""Artwork of the circuit board: prints and etchings, which are the same on all boards.

They are drawn once, as planes with the depth of each point inside a line or ring, which is negative
outside.

Letters: s side of an image; a side of the drawing.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from scipy import ndimage

from uadjax.data.demo import noise, scene

_SIDE = 512
_GLYPHS = {  # Polylines of points (y, x) in a box of 2 by 1.
  'C': ((0, 1), (0, 0), (2, 0), (2, 1)),
  'R': ((2, 0), (0, 0), (0, 1), (1, 1), (1, 0), (2, 1)),
  'U': ((0, 0), (2, 0), (2, 1), (0, 1)),
  'Y': ((0, 0), (1, 0.5), (2, 0.5), (1, 0.5), (0, 1)),
  '0': ((0, 0), (0, 1), (2, 1), (2, 0), (0, 0)),
  '1': ((0.4, 0.2), (0, 0.5), (2, 0.5)),
  '2': ((0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)),
  '3': ((0, 0), (0, 1), (1, 1), (1, 0.2), (1, 1), (2, 1), (2, 0)),
  '4': ((0, 0), (1, 0), (1, 1), (0, 1), (2, 1)),
  '7': ((0, 0), (0, 1), (2, 0.4)),
}
_SILK_LABELS = (  # (text, y, x, height) of the first letter's upper left corner.
  ('U1', 0.130, 0.085, 0.030), ('R1', 0.075, 0.445, 0.024), ('R2', 0.170, 0.445, 0.024),
  ('R3', 0.265, 0.445, 0.024), ('C1', 0.330, 0.660, 0.030), ('C2', 0.555, 0.175, 0.024),
  ('C3', 0.555, 0.330, 0.024), ('U2', 0.515, 0.890, 0.030), ('Y1', 0.930, 0.235, 0.028),
  ('C4', 0.465, 0.515, 0.024), ('7240', 0.935, 0.560, 0.028),
)  # fmt: skip
_LASER_MARKS = (  # Marks on the two circuits: (text, y, x, height) as above.
  ('2471', 0.285, 0.200, 0.034), ('C03', 0.350, 0.200, 0.026),
  ('R7104', 0.655, 0.655, 0.030), ('2230', 0.720, 0.655, 0.030), ('U3', 0.785, 0.655, 0.022),
)  # fmt: skip
_FRAMES = (  # Printed rectangles: (y, x, half the height, half the width).
  (0.11, 0.58, 0.030, 0.068), (0.205, 0.58, 0.030, 0.068), (0.30, 0.58, 0.030, 0.068),
  (0.645, 0.20, 0.052, 0.034), (0.645, 0.355, 0.052, 0.034), (0.84, 0.26, 0.065, 0.135),
)  # fmt: skip
_TRACES = (
  ((0.20, 0.36), (0.20, 0.40), (0.11, 0.49), (0.11, 0.53)),
  ((0.24, 0.36), (0.24, 0.43), (0.205, 0.465), (0.205, 0.53)),
  ((0.28, 0.36), (0.28, 0.44), (0.30, 0.46), (0.30, 0.53)),
  ((0.32, 0.36), (0.36, 0.40), (0.40, 0.40), (0.52, 0.52), (0.58, 0.52)),
  ((0.36, 0.36), (0.42, 0.42), (0.42, 0.56), (0.47, 0.61), (0.53, 0.61)),
  ((0.40, 0.36), (0.45, 0.36), (0.45, 0.41), (0.62, 0.52)),
  ((0.20, 0.11), (0.20, 0.04), (0.62, 0.04), (0.70, 0.12), (0.70, 0.16)),
  ((0.24, 0.11), (0.24, 0.07), (0.50, 0.07), (0.58, 0.15), (0.60, 0.19)),
  ((0.32, 0.11), (0.32, 0.09), (0.48, 0.09), (0.52, 0.13), (0.52, 0.34), (0.60, 0.355)),
  ((0.11, 0.63), (0.11, 0.68), (0.14, 0.71)),
  ((0.205, 0.63), (0.205, 0.72)),
  ((0.30, 0.63), (0.34, 0.63), (0.40, 0.69), (0.53, 0.69)),
  ((0.21, 0.86), (0.21, 0.95), (0.62, 0.95), (0.64, 0.93), (0.64, 0.86)),
  ((0.76, 0.54), (0.76, 0.46), (0.84, 0.38)),
  ((0.72, 0.54), (0.72, 0.42), (0.78, 0.36), (0.84, 0.36), (0.84, 0.34)),
  ((0.69, 0.355), (0.69, 0.40), (0.66, 0.44), (0.66, 0.54)),
  ((0.84, 0.14), (0.84, 0.06), (0.78, 0.06), (0.75, 0.09), (0.75, 0.20), (0.70, 0.20)),
  ((0.87, 0.70), (0.90, 0.70), (0.90, 0.48), (0.95, 0.43), (0.95, 0.10)),
  ((0.70, 0.86), (0.70, 0.93), (0.80, 0.93), (0.83, 0.96), (0.97, 0.96)),
  ((0.76, 0.86), (0.76, 0.90), (0.86, 0.90), (0.89, 0.87), (0.96, 0.87)),
)  # fmt: skip
_VIAS = (
  (0.48, 0.22), (0.60, 0.46), (0.45, 0.50), (0.42, 0.62), (0.05, 0.40), (0.14, 0.71), (0.44, 0.95),
  (0.07, 0.93), (0.95, 0.10), (0.76, 0.46), (0.90, 0.48), (0.97, 0.80), (0.04, 0.20), (0.62, 0.10),
  (0.47, 0.80), (0.80, 0.41), (0.92, 0.93), (0.05, 0.58),
)  # fmt: skip

Plane = Float[np.ndarray, 's s']
Drawing = Float[np.ndarray, 'a a']


class Artwork(NamedTuple):
  """Depth fields of the prints and etchings on every board.

  Attributes:
    trace: copper lines under the lacquer.
    ring: bare copper around drilled holes.
    drill: drilled holes.
    silk: white print.
    laser: laser marks on the circuits.
  """

  trace: np.ndarray
  ring: np.ndarray
  drill: np.ndarray
  silk: np.ndarray
  laser: np.ndarray


def sample_artwork(y: Plane, x: Plane) -> Artwork:
  """Interpolate the artwork at coordinates of the board from 0 to 1."""
  pixel_coordinates = np.stack([y, x]) * _SIDE - 0.5
  return Artwork(
    *(
      ndimage.map_coordinates(plane, pixel_coordinates, order=1, mode='nearest')
      for plane in _draw_artwork()
    )
  )


@functools.cache
def _draw_artwork() -> Artwork:
  traces = [(points, 0.0055) for points in _TRACES]
  drills = [(((y, x - 1e-4), (y, x + 1e-4)), 0.0065) for y, x in _VIAS]
  rings = [(points, half_width + 0.0085) for points, half_width in drills]
  silk = [(points, 0.0024) for label in _SILK_LABELS for points in _text_strokes(*label)]
  silk += [(_frame_corners(*frame), 0.0022) for frame in _FRAMES]
  laser = [(points, 0.0024) for mark in _LASER_MARKS for points in _text_strokes(*mark)]
  return Artwork(*(_depth_field(lines) for lines in (traces, rings, drills, silk, laser)))


def _depth_field(lines: Sequence[tuple[Sequence[tuple[float, float]], float]]) -> Drawing:
  """Return the depth inside the nearest of some lines, given as (points, half width).

  Points far from all lines have a small negative depth.
  """
  y, x = scene.grid(_SIDE)
  field = np.full((_SIDE, _SIDE), -0.05)
  for points, half_width in lines:
    lower_corner, upper_corner = np.min(points, axis=0) - 0.05, np.max(points, axis=0) + 0.05
    window = tuple(
      slice(max(int(lower * _SIDE), 0), int(upper * _SIDE))
      for lower, upper in zip(lower_corner, upper_corner, strict=True)
    )
    depth = half_width - noise.polyline_distance(y[window], x[window], points)
    field[window] = np.maximum(field[window], depth)
  return field


def _text_strokes(text: str, y: float, x: float, height: float) -> list[list[tuple[float, float]]]:
  unit = height / 2
  return [
    [(y + unit * dy, x + unit * (dx + 1.55 * i)) for dy, dx in _GLYPHS[letter]]
    for i, letter in enumerate(text)
  ]


def _frame_corners(
  y: float, x: float, half_height: float, half_width: float
) -> list[tuple[float, float]]:
  corners = [(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]
  return [(y + half_height * dy, x + half_width * dx) for dy, dx in corners]
