import jax
from jax import numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uadjax.numerics import maps


def slow_bilinear(x, height, width):
  """The definition, pixel by pixel: centers at half integers, ends held."""
  h, w = x.shape
  out = np.zeros((height, width))
  for i in range(height):
    for j in range(width):
      y = min(max((i + 0.5) * h / height - 0.5, 0), h - 1)
      z = min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
      a, b = int(y), int(z)
      c, d = min(a + 1, h - 1), min(b + 1, w - 1)
      top = x[a, b] * (1 - (z - b)) + x[a, d] * (z - b)
      bottom = x[c, b] * (1 - (z - b)) + x[c, d] * (z - b)
      out[i, j] = top * (1 - (y - a)) + bottom * (y - a)
  return out


@pytest.mark.parametrize(
  ('before', 'after'), [((3, 5), (24, 40)), ((1, 4), (7, 9)), ((6, 6), (6, 6))]
)
def test_enlarge_is_bilinear(before, after):
  x = np.random.default_rng(0).random((2, *before), np.float32)
  got = maps.enlarge(jnp.asarray(x), *after)
  want = np.stack([slow_bilinear(one, *after) for one in x])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_weights_of_each_pixel_sum_to_one():
  for after, before in ((256, 64), (97, 13), (5, 5), (4, 1)):
    np.testing.assert_allclose(maps.bilinear_matrix(after, before).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize('radius', [1, 2, 4])
def test_grey_opening_is_scipys(radius):
  x = np.random.default_rng(1).random((2, 19, 23), np.float32)
  y, z = np.ogrid[-radius : radius + 1, -radius : radius + 1]
  disk = y**2 + z**2 <= radius**2
  want = np.stack([ndimage.grey_opening(one, footprint=disk, mode='reflect') for one in x])
  np.testing.assert_array_equal(jax.jit(maps.grey_opening, static_argnums=1)(x, radius), want)
