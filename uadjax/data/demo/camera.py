"""Model of an inspection camera: optics, exposure, sensor.

Letters: s side of an image; c channels.
"""

from jaxtyping import Float, UInt8
import numpy as np
from scipy import ndimage

_GAMMA = 1 / 2.2
_MAX_LEVEL = 255

Color = Float[np.ndarray, 's s c']


def expose(rng: np.random.Generator, light: Color) -> Color:
  """Convert light to levels of an image from 0 to 255, without noise."""
  size, _, channels = light.shape
  y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
  tilt_y, tilt_x = rng.normal(0, 0.04, 2)  # Tolerance of the lamp's position.
  vignette = 1 - 0.3 * (y**2 + x**2) + tilt_y * y + tilt_x * x
  channel_gain = rng.normal(1, 0.012, channels) * rng.normal(1, 0.025)
  blurred = ndimage.gaussian_filter(
    light, (rng.uniform(0.55, 0.8) * max(size / 256, 0.5),) * 2 + (0,), mode='nearest', truncate=3
  )
  exposure = np.clip(blurred * vignette[..., None] * channel_gain, 0, None)
  compressed = np.where(exposure > 0.7, 0.7 + 0.3 * np.tanh((exposure - 0.7) / 0.3), exposure)
  return compressed**_GAMMA * _MAX_LEVEL


def add_sensor_noise(rng: np.random.Generator, levels: Color) -> UInt8[np.ndarray, 's s c']:
  """Add sensor noise, whose variance grows with the level, and round to integers."""
  sigma = np.sqrt(0.2 + 0.005 * levels)
  noisy = levels + sigma * rng.standard_normal(levels.shape)
  return np.round(np.clip(noisy, 0, _MAX_LEVEL)).astype(np.uint8)
