"""Building blocks of natural textures: noise, soft edges, strokes, blots.

Letters: h w height and width of an image or a window of it; c channels; n values.
"""

from collections.abc import Sequence
import functools
import itertools
from typing import TypeAlias

from jaxtyping import Float
import numpy as np
from numpy.random import Generator
from scipy import ndimage

Plane: TypeAlias = Float[np.ndarray, 'h w']
Number: TypeAlias = float | int


def octaves(
  rng: Generator, size: int, low: Number, high: Number, fade: Number = 1, stretch: Number = 1
) -> Plane:
  """Draw periodic band-limited noise with mean 0 and variance 1.

  Args:
    rng: random generator.
    size: side of the noise in pixels.
    low: lowest frequency, in waves per image.
    high: highest frequency, in waves per image.
    fade: power of the frequency by which amplitudes fall; at 1 all octaves have equal weight.
    stretch: factor by which details are longer along x than along y.
  """
  gain = _spectral_gain(size, low, high, fade, stretch)
  plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * gain, (size, size))
  return (plane - plane.mean()) / plane.std()


@functools.lru_cache(64)  # All images of a category use the same few spectra.
def _spectral_gain(size: int, low: Number, high: Number, fade: Number, stretch: Number) -> Plane:
  y, x = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None] * stretch
  frequency = np.maximum(np.hypot(y, x), 1e-9)
  band = (1 - np.exp(-((frequency / low) ** 2))) * np.exp(-((frequency / high) ** 2))
  return band * frequency**-fade


def periodic_1d(rng: Generator, position: Plane, n: int, fade: float = 0.5) -> Plane:
  """Interpolate periodic 1-D noise of n values and unit variance at positions from 0 to 1."""
  spectrum = np.fft.rfft(rng.standard_normal(n))
  spectrum[1:] *= np.arange(1, len(spectrum)) ** -fade
  spectrum[0] = 0
  values = np.fft.irfft(spectrum, n)
  return np.interp(position * n, np.arange(n), values / values.std(), period=n)


def linear_step(distance: Plane, softness: float) -> Plane:
  """Return 1 where the signed distance to an edge is positive, else 0, with a ramp between."""
  return np.clip(distance / softness + 0.5, 0, 1)


def smoothstep(plane: Plane) -> Plane:
  """Return the cubic smoothstep of a plane that is clipped to [0, 1]."""
  ramp = np.clip(plane, 0, 1)
  return ramp * ramp * (3 - 2 * ramp)


def blur(image: Float[np.ndarray, 'h w *c'], sigma: float) -> Float[np.ndarray, 'h w *c']:
  """Blur each channel with a Gaussian; values beyond the border repeat those at the border."""
  return ndimage.gaussian_filter(image, sigma, mode='nearest', truncate=3, axes=(0, 1))


def blot_distance(
  rng: Generator, y: Plane, x: Plane, radius: float, roughness: float = 0.08
) -> Plane:
  """Return the approximate signed distance to the rim of an irregular blot; positive inside.

  The blot is centered at the origin of the coordinates y and x.
  """
  angle = np.arctan2(y, x)
  ripple = sum(
    rng.normal(0, roughness * 2 / k**0.7) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    for k in (2, 3, 4, 6, 9)
  )
  return radius * np.maximum(1 + ripple, 0.3) - np.hypot(y, x)


def polyline_distance(y: Plane, x: Plane, points: Sequence[tuple[float, float]]) -> Plane:
  """Return the distance to a polyline through points (y, x)."""
  squared = np.full(y.shape, np.inf)
  for (y0, x0), (y1, x1) in itertools.pairwise(points):
    dy, dx = y1 - y0, x1 - x0
    fraction = np.clip(((y - y0) * dy + (x - x0) * dx) / (dy * dy + dx * dx), 0, 1)
    squared = np.minimum(squared, (y - y0 - fraction * dy) ** 2 + (x - x0 - fraction * dx) ** 2)
  return np.sqrt(squared)
