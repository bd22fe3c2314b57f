import math

import jax
from jax import numpy as jnp
import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from uadjax.numerics import resampling

enlarge = jax.jit(resampling.upsample, static_argnums=(1, 2, 3))


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


@pytest.mark.accelerator
def test_enlarge_is_bilinear():
  for before, after in (((3, 5), (24, 40)), ((1, 4), (7, 9)), ((6, 6), (6, 6))):
    x = np.random.default_rng(0).random((2, *before), np.float32)
    got = enlarge(jnp.asarray(x), *after)
    want = np.stack([slow_bilinear(image, *after) for image in x])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=f'{before} {after}')


def test_weights_of_each_pixel_sum_to_one():
  for after, before in ((256, 64), (97, 13), (5, 5), (4, 1)):
    np.testing.assert_allclose(resampling.bilinear_matrix(after, before).sum(1), 1, rtol=1e-6)


def test_antialiased_bicubic_is_pillows():
  x = np.random.default_rng(0).random((7, 12), np.float32)
  for height, width in ((3, 5), (7, 12), (16, 9)):
    rows, columns = (
      resampling.bicubic_matrix(new, old, old / new, antialias=True)
      for new, old in ((height, 7), (width, 12))
    )
    expected = Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(rows @ x @ columns.T, expected, atol=1e-5)


def test_bicubic_has_four_taps_and_repeats_the_ends():
  x = np.random.default_rng(0).random(9)
  for size, step in ((16, 9 / 16), (6, 9 / 6.1), (9, 1.0)):
    expected = []
    for i in range(size):
      center = (i + 0.5) * step - 0.5
      first = math.floor(center)
      t = center - first
      weights = [
        -0.75 * (t**3 - 2 * t**2 + t), 1.25 * t**3 - 2.25 * t**2 + 1,
        -1.25 * t**3 + 1.5 * t**2 + 0.75 * t, 0.75 * (t**3 - t**2),
      ]  # fmt: skip
      taps = (min(max(first + j, 0), 8) for j in range(-1, 3))
      expected.append(sum(weight * x[tap] for weight, tap in zip(weights, taps, strict=True)))
    matrix = resampling.bicubic_matrix(size, 9, step, antialias=False)
    np.testing.assert_allclose(matrix @ x, expected, rtol=1e-5)
  np.testing.assert_array_equal(resampling.bicubic_matrix(5, 5, 1.0, antialias=False), np.eye(5))


def test_grey_opening_is_scipys():
  x = np.random.default_rng(1).random((2, 19, 23), np.float32)
  for radius in (1, 4):
    y, z = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = y**2 + z**2 <= radius**2
    want = np.stack([ndimage.grey_opening(image, footprint=disk, mode='reflect') for image in x])
    got = jax.jit(resampling.grey_opening, static_argnums=1)(x, radius)
    np.testing.assert_array_equal(got, want, f'{radius}')


def test_blur_is_scipys():
  """Also where the kernel is wider than the axis, which is then mirrored again and again."""
  for size, sigma in ((64, 4.0), (23, 1.3), (5, 4.0), (1, 2.0)):
    x = np.random.default_rng(2).random(size)
    want = ndimage.gaussian_filter(x, sigma, mode='reflect', truncate=4)
    got = resampling.blur_matrix(size, sigma) @ x
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=f'{size} {sigma}')


@pytest.mark.accelerator
def test_enlarge_blurs_what_it_has_enlarged():
  x = np.random.default_rng(3).random((2, 4, 5), np.float32)
  got = enlarge(jnp.asarray(x), 32, 20, 4.0)
  for actual, enlarged in zip(got, x, strict=True):
    want = ndimage.gaussian_filter(slow_bilinear(enlarged, 32, 20), 4, mode='reflect', truncate=4)
    np.testing.assert_allclose(actual, want, rtol=1e-5)


def test_pooling_is_the_mean_of_nine_and_zeros_around_count():
  for height, width in ((4, 7), (1, 2)):
    x = np.random.default_rng(4).random((height, width), np.float32)
    want = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
      want[i, j] = x[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].sum() / 9
    got = resampling.pool_matrix(height) @ x @ resampling.pool_matrix(width).T
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=f'{height} {width}')


def test_averaging_is_adaptive_pooling():
  """PyTorch's definition: from the floor of i·before/after to the ceiling of the next."""
  for after, before in ((4, 12), (5, 12), (7, 8), (1, 9), (6, 6), (9, 4)):
    x = np.random.default_rng(5).random(before)
    want = []
    for i in range(after):
      start, end = math.floor(i * before / after), math.ceil((i + 1) * before / after)
      want.append(sum(x[start:end]) / (end - start))
    got = resampling.adaptive_pool_matrix(after, before) @ x
    np.testing.assert_allclose(got, want, rtol=1e-6, err_msg=f'{after} {before}')
