"""Artwork of the circuit board: prints and etchings, which are the same on all boards.

They are drawn once, as planes with the depth of each point inside a line or ring, which is negative
outside.

Letters: h w height and width of an image; a side of the drawing.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from scipy import ndimage

from uadjax.data.demo import noise, scene
from uadjax.data.demo.noise import Plane

Point = tuple[float, float]

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
# Copper lines, separated by semicolons; points are y,x in thousandths of the board's side.
_TRACES = """
  200,360 200,400 110,490 110,530; 240,360 240,430 205,465 205,530; 280,360 280,440 300,460
  300,530; 320,360 360,400 400,400 520,520 580,520; 360,360 420,420 420,560 470,610 530,610;
  400,360 450,360 450,410 620,520; 200,110 200,40 620,40 700,120 700,160; 240,110 240,70 500,70
  580,150 600,190; 320,110 320,90 480,90 520,130 520,340 600,355; 110,630 110,680 140,710; 205,630
  205,720; 300,630 340,630 400,690 530,690; 210,860 210,950 620,950 640,930 640,860; 760,540
  760,460 840,380; 720,540 720,420 780,360 840,360 840,340; 690,355 690,400 660,440 660,540;
  840,140 840,60 780,60 750,90 750,200 700,200; 870,700 900,700 900,480 950,430 950,100; 700,860
  700,930 800,930 830,960 970,960; 760,860 760,900 860,900 890,870 960,870
"""
_VIAS = """
  480,220 600,460 450,500 420,620 50,400 140,710 440,950 70,930 950,100 760,460 900,480 970,800
  40,200 620,100 470,800 800,410 920,930 50,580
"""


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
  coordinates = np.stack([y, x]) * _SIDE - 0.5
  planes = (ndimage.map_coordinates(p, coordinates, order=1, mode='nearest') for p in _draw())
  return Artwork(*planes)


@functools.cache
def _draw() -> Artwork:
  traces = [(_parse_points(trace), 0.0055) for trace in _TRACES.split(';')]
  drills = [(((y, x - 1e-4), (y, x + 1e-4)), 0.0065) for y, x in _parse_points(_VIAS)]
  rings = [(points, half_width + 0.0085) for points, half_width in drills]
  silk = [(points, 0.0024) for label in _SILK_LABELS for points in _text_strokes(*label)]
  silk += [(_frame_corners(*frame), 0.0022) for frame in _FRAMES]
  laser = [(points, 0.0024) for mark in _LASER_MARKS for points in _text_strokes(*mark)]
  return Artwork(*(_depth_field(lines) for lines in (traces, rings, drills, silk, laser)))


def _parse_points(text: str) -> list[Point]:
  return [(int(y) / 1000, int(x) / 1000) for y, x in (p.split(',') for p in text.split())]


def _depth_field(lines: Sequence[tuple[Sequence[Point], float]]) -> Float[np.ndarray, 'a a']:
  """Return the depth inside the nearest of some lines, given as (points, half width).

  Points far from all lines have a small negative depth.
  """
  y, x = scene.grid(_SIDE)
  field = np.full((_SIDE, _SIDE), -0.05)
  for points, half_width in lines:
    lower, upper = np.min(points, axis=0) - 0.05, np.max(points, axis=0) + 0.05
    bounds = zip(lower, upper, strict=True)
    window = tuple(slice(max(int(low * _SIDE), 0), int(high * _SIDE)) for low, high in bounds)
    depth = half_width - noise.polyline_distance(y[window], x[window], points)
    field[window] = np.maximum(field[window], depth)
  return field


def _text_strokes(text: str, y: float, x: float, height: float) -> list[list[Point]]:
  unit = height / 2
  return [
    [(y + unit * dy, x + unit * (dx + 1.55 * i)) for dy, dx in _GLYPHS[letter]]
    for i, letter in enumerate(text)
  ]


def _frame_corners(y: float, x: float, half_height: float, half_width: float) -> list[Point]:
  corners = [(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]
  return [(y + half_height * dy, x + half_width * dx) for dy, dx in corners]
