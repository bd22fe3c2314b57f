"""A data set that is drawn: metal washers on a conveyor, as an inspection camera sees them.

It is there before any real image is, and every pixel of its truth is known. What varies among good
parts (light, pose, grain of metal and belt) is what a detector must learn to pass over.

Letters: s the side of a picture; r polar radius and a angle about the washer's center.
"""

from collections.abc import Callable
import contextlib
from pathlib import Path
import shutil
import tempfile
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax import files

CATEGORY = 'disc'
_VERSION = 1  # Of the drawing: part of the cache's name.

Plane = Float[np.ndarray, 's s']


class Washer(NamedTuple):
  """One part in place.

  Attributes:
    r: distance from its center, where the outer edge is 1.
    a: angle about its center, turned with the part.
    hole: radius of the hole.
    light: direction the light comes from.
    pixel: size of a pixel, for soft edges.
  """

  r: Plane
  a: Plane
  hole: float
  light: float
  pixel: float


def draw(
  directory: str | Path,
  seed: int = 0,
  train: int = 24,
  test_good: int = 6,
  test_defect: int = 6,
  size: int = 96,
) -> Path:
  """Write category 'disc' in MVTec's layout; all of it or, interrupted, nothing.

  The same arguments write the same bytes.

  Args:
    directory: where 'disc' will lie; one that is there already is replaced.
    seed: decides every picture.
    train: number of good pictures to learn from.
    test_good: number of good pictures to test on.
    test_defect: number of pictures of each defect: 'missing', 'scratch', 'spot'.
    size: side of the pictures in pixels.

  Returns:
    The directory: the root of this data set.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix='.disc-', dir=directory))
  try:
    plan = [('train', 'good', train), ('test', 'good', test_good)]
    plan += [('test', defect, test_defect) for defect in _DEFECTS]
    for order, (part, defect, n) in enumerate(plan):
      for i in range(n):
        rng = np.random.default_rng((seed, order, i))
        image, mask = _picture(rng, size, _DEFECTS.get(defect))
        _save(image, draft / part / defect / f'{i:03d}.png')
        if defect != 'good':
          white = mask.astype(np.uint8) * 255
          _save(white, draft / 'ground_truth' / defect / f'{i:03d}_mask.png')
    draft.chmod(0o755)  # mkdtemp's is for its owner only.
    if (directory / CATEGORY).exists():
      shutil.rmtree(directory / CATEGORY)
    draft.rename(directory / CATEGORY)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  return directory


def cached() -> Path:
  """The default drawing in the user's cache, drawn at first use."""
  directory = files.cache() / f'demo-{_VERSION}'
  if not (directory / CATEGORY).is_dir():
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=directory) as draft:
      done = draw(draft) / CATEGORY
      with contextlib.suppress(OSError):  # Another process was quicker.
        done.rename(directory / CATEGORY)
  return directory


def _save(pixels: UInt8[np.ndarray, '...'], path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def _picture(
  rng: np.random.Generator, size: int, defect: Callable | None
) -> tuple[UInt8[np.ndarray, 's s 3'], Bool[np.ndarray, 's s']]:
  washer = _pose(rng, size)
  belt, body, metal = _belt(rng, size), _body(washer), _metal(rng, washer)
  mask = np.zeros((size, size), bool)
  if defect:
    body, metal, mask = defect(rng, washer, body, metal)
  shadow = 1 - 0.55 * _blur(np.roll(body, (size // 40 + 1, size // 48 + 1), (0, 1)), size / 40)
  gray = belt * shadow * (1 - body) + metal * body
  y, x = np.mgrid[:size, :size] / size - 0.5
  vignette = 1 - 0.35 * (x**2 + y**2) + rng.normal(0, 0.05) * x + rng.normal(0, 0.05) * y
  gray = _blur(gray, size / 220) * vignette * rng.normal(1, 0.025)
  # Belt and metal differ a little in color; sensor noise is each channel's own.
  tint = body[..., None] * [1.0, 0.99, 0.955] + (1 - body[..., None]) * [0.93, 1.0, 1.06]
  noisy = gray[..., None] * tint + rng.normal(0, 0.009, (size, size, 3))
  return np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8), mask


def _pose(rng: np.random.Generator, size: int) -> Washer:
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  outer = 0.36 * rng.normal(1, 0.008)
  dy, dx = y - 0.5 - rng.uniform(-0.02, 0.02), x - 0.5 - rng.uniform(-0.02, 0.02)
  turn = rng.uniform(-np.pi, np.pi)
  angle = np.arctan2(dy, dx)
  a = np.mod(angle - turn + np.pi, 2 * np.pi) - np.pi
  light = np.mod(-2.2 + rng.normal(0, 0.08) - turn + np.pi, 2 * np.pi) - np.pi
  return Washer(np.hypot(dy, dx) / outer, a, 0.42 * rng.normal(1, 0.006), light, 1 / size / outer)


def _belt(rng: np.random.Generator, size: int) -> Plane:
  """A dark woven rubber, worn in stripes along the way it runs."""
  y, x = np.mgrid[:size, :size] / size
  weave = np.sin(2 * np.pi * (24 * x + rng.random())) * np.sin(2 * np.pi * (24 * y + rng.random()))
  wear = _blur(rng.normal(0, 1, (size, size)), size / 12) * size / 12
  stripes = np.repeat(np.convolve(rng.normal(0, 1, size), np.ones(5) / 5, 'same')[None], size, 0)
  grain = rng.normal(0, 1, (size, size))
  return 0.15 + 0.018 * weave + 0.012 * wear + 0.01 * stripes + 0.012 * grain


def _body(washer: Washer) -> Plane:
  """How much of each pixel the washer covers."""
  return _inside(1 - washer.r, washer.pixel) * _inside(washer.r - washer.hole, washer.pixel)


def _metal(rng: np.random.Generator, washer: Washer) -> Plane:
  """Turned metal: fine rings, two bright fans where the light glances, beveled edges."""
  rings = np.interp(washer.r, np.linspace(0, 2, 128), rng.normal(0, 1, 128))
  fans = np.cos(washer.a - washer.light) ** 2
  slope = np.cos(washer.a - washer.light)  # The bevel faces the light or turns away from it.
  outer = np.exp(-(((washer.r - 0.97) / 0.035) ** 2))
  inner = np.exp(-(((washer.r - washer.hole - 0.03) / 0.035) ** 2))
  brushed = _blur(rng.normal(0, 1, washer.r.shape), 0.6)
  face = 0.50 + 0.20 * fans**3 + 0.018 * rings + 0.015 * brushed
  return face + (0.22 * slope - 0.05) * outer - (0.22 * slope + 0.05) * inner


def _scratch(rng: np.random.Generator, washer: Washer, body: Plane, metal: Plane):
  """A bent, bright groove with a dark flank across the face."""
  r0, a0 = rng.uniform(0.62, 0.8), rng.uniform(-np.pi, np.pi)
  along, across = _local(washer, r0, a0, rng.uniform(0, np.pi))
  length, width = rng.uniform(0.22, 0.36), max(rng.uniform(0.016, 0.026), 0.7 * washer.pixel)
  across = across + rng.uniform(-0.5, 0.5) * along**2
  groove = _inside(length - abs(along), washer.pixel) * np.exp(-((across / width) ** 2))
  flank = np.exp(-(((across - 1.6 * width) / width) ** 2)) * _inside(length - abs(along), 0.02)
  mask = ((groove > 0.3) | (flank > 0.3)) & (body > 0.5)
  return body, metal + mask * (0.38 * groove - 0.26 * flank), mask


def _spot(rng: np.random.Generator, washer: Washer, body: Plane, metal: Plane):
  """A stain with an irregular rim, rusty dark."""
  along, across = _local(washer, rng.uniform(0.6, 0.82), rng.uniform(-np.pi, np.pi), 0.0)
  radius, around = np.hypot(along, across), np.arctan2(across, along)
  waves = sum(rng.normal(0, 0.09) * np.cos(k * around + rng.uniform(0, 6)) for k in (2, 3, 5))
  stain = _inside(rng.uniform(0.09, 0.15) * (1 + waves) - radius, 1.2 * washer.pixel)
  mask = (stain > 0.2) & (body > 0.5)
  return body, metal * (1 - mask * stain * rng.uniform(0.45, 0.65)), mask


def _missing(rng: np.random.Generator, washer: Washer, body: Plane, metal: Plane):
  """A piece broken out of the outer edge: the belt shows."""
  along, across = _local(washer, rng.uniform(0.95, 1.05), rng.uniform(-np.pi, np.pi), 0.0)
  around = np.arctan2(across, along)
  waves = sum(rng.normal(0, 0.07) * np.cos(k * around + rng.uniform(0, 6)) for k in (3, 4, 7))
  bite = _inside(rng.uniform(0.2, 0.3) * (1 + waves) - np.hypot(along, across), washer.pixel)
  return body * (1 - bite), metal, (bite > 0.5) & (body > 0.5)


_DEFECTS = {'missing': _missing, 'scratch': _scratch, 'spot': _spot}


def _local(washer: Washer, r: float, a: float, turn: float) -> tuple[Plane, Plane]:
  """Coordinates about a point of the washer."""
  dx = washer.r * np.cos(washer.a) - r * np.cos(a)
  dy = washer.r * np.sin(washer.a) - r * np.sin(a)
  return dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)


def _inside(distance: Plane, softness: float) -> Plane:
  """1 where the signed distance to an edge is positive, 0 beyond it, with a ramp between."""
  return np.clip(distance / softness + 0.5, 0, 1)


def _blur(plane: Plane, sigma: float) -> Plane:
  """Gaussian blur, one matrix for either axis; the picture goes on as it ends."""
  n = len(plane)
  distance = np.subtract.outer(np.arange(n), np.arange(n))
  kernel = np.exp(-0.5 * (distance / max(sigma, 1e-3)) ** 2)
  kernel /= kernel.sum(axis=1, keepdims=True)
  return kernel @ plane @ kernel.T
