"""Views of synthetic images as a camera takes them: random crop, lens, sensor, file compression.

Every fourth view repeats the previous one with a local damage: a spot, a scratch, a dent, or a
displaced piece. Detectors must see how features change there.

Letters: b views, v view width, n images, s image width.
"""

from collections.abc import Iterator
import functools
import math
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

TWINS = 4  # In every four rows, row 3 is a damaged copy of row 2.

Key = jax.Array
RandomDraws = Iterator[Array]  # Independent numbers in [0, 1).
Plane = Float[Array, 'v v']
Planes = Float[Array, '3 v v']


def twin_rows(num_views: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the rows of intact views with a damaged copy, and the rows of these copies."""
  damaged = np.arange(TWINS - 1, num_views, TWINS)
  return damaged - 1, damaged


@functools.partial(jax.jit, static_argnames=('num_views', 'side'))
def render_views(
  key: Key, source_images: Float[Array, 'n s s 3'], num_views: int, side: int
) -> UInt8[Array, 'b v v 3']:
  """Render views of images that are drawn with replacement."""
  rows = jnp.arange(num_views)
  is_damaged = rows % TWINS == TWINS - 1
  source_rows = jnp.where(is_damaged, rows - 1, rows)
  keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(source_rows)
  return jax.vmap(functools.partial(_render_view, source_images, side=side))(keys, is_damaged)


class Damage(NamedTuple):
  """Local damage: its coverage of each pixel, the displacement and the color that it adds."""

  coverage: Plane
  displacement: Float[Array, '2']
  color: Float[Array, '3']
  opacity: Array


def _render_view(
  source_images: Array, key: Key, is_damaged: Array, side: int
) -> UInt8[Array, 'v v 3']:
  # All numbers of a view are drawn at once: separate draws would take long to compile.
  draws = iter(jax.random.uniform(key, (64,)))
  image_index = jnp.minimum(
    (next(draws) * len(source_images)).astype(jnp.int32), len(source_images) - 1
  )
  damage = _random_damage(draws, side)
  damage = damage._replace(coverage=damage.coverage * is_damaged.astype(jnp.float32))
  x, y = _view_coordinates(draws, side, source_images.shape[1])
  x, y = x + damage.coverage * damage.displacement[0], y + damage.coverage * damage.displacement[1]
  image = _sample_bilinear(source_images, image_index, x, y)
  alpha = (damage.coverage * damage.opacity)[..., None]
  image = image * (1 - alpha) + damage.color[None, None] * alpha
  image = jnp.moveaxis(_adjust_tones(draws, image), -1, 0)
  image = _compress_jpeg(
    draws, _add_sensor_noise(draws, jax.random.fold_in(key, 1), _blur_or_sharpen(draws, image))
  )
  return jnp.round(jnp.clip(jnp.moveaxis(image, 0, -1), 0, 1) * 255).astype(jnp.uint8)


def _uniform(draws: RandomDraws, low: float, high: float) -> Array:
  return low + (high - low) * next(draws)


def _normal(draws: RandomDraws) -> Array:
  """Draw a nearly normal number, within three standard deviations."""
  return 2 * (next(draws) + next(draws) + next(draws)) - 3


def _pixel_coordinates(side: int) -> Float[Array, ' v']:
  return (jnp.arange(side, dtype=jnp.float32) + 0.5) * (2 / side) - 1


def _random_damage(draws: RandomDraws, side: int) -> Damage:
  size, elongation = jnp.exp(_uniform(draws, -3.3, -0.9)), jnp.exp(_uniform(draws, 0.0, 2.3))
  x = _pixel_coordinates(side)[None, :] - _uniform(draws, -0.8, 0.8)
  y = _pixel_coordinates(side)[:, None] - _uniform(draws, -0.8, 0.8)
  angle = next(draws) * math.pi
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  along, across = cosine * x + sine * y, cosine * y - sine * x
  along += 0.5 * across**2 / size
  r = jnp.sqrt((along / size) ** 2 + (across * elongation / size) ** 2 + 1e-6)
  coverage = jnp.clip((1.0 - r) / _uniform(draws, 0.05, 1.0), 0, 1)
  # Damage displaces pixels, colors them, or both.
  kind = next(draws)
  displacement_scale = jnp.where(kind < 0.35, 0.15, jnp.where(kind < 0.6, 0.8, 0.0))
  displacement = displacement_scale * jnp.stack([_normal(draws), _normal(draws)])
  color = jnp.stack([next(draws), next(draws), next(draws)]) * next(draws)
  return Damage(
    coverage, displacement, color, jnp.where(kind < 0.45, 0.0, _uniform(draws, 0.1, 1.0))
  )


def _view_coordinates(draws: RandomDraws, side: int, source_size: int) -> tuple[Plane, Plane]:
  """Return for each pixel its x and y in the image, from 0 to 1."""
  # Views magnify an image nearly twofold at most. The smallest views show all of it at half
  # its size.
  min_zoom = min(0.6 * side / source_size, 0.9)
  zoom = jnp.exp(_uniform(draws, math.log(min_zoom), math.log(1.05)))
  free_angle = _uniform(draws, 0.0, 2 * math.pi)
  angle = jnp.where(
    next(draws) < 0.5, free_angle, jnp.round(free_angle / (math.pi / 2)) * (math.pi / 2)
  )
  aspect, skew = jnp.exp(0.15 * _normal(draws)), 0.15 * _normal(draws)
  is_slanted = next(draws) < 0.3
  slant = [jnp.where(is_slanted, _uniform(draws, -0.35, 0.35), 0.0) for _ in range(2)]
  x, y = _pixel_coordinates(side)[None, :], _pixel_coordinates(side)[:, None]
  depth = 1 / (1 + slant[0] * x + slant[1] * y)
  view_x, view_y = zoom / 2 * aspect * (x + skew * y) * depth, zoom / 2 / aspect * y * depth
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  # A small crop may be anywhere; a large one stays near the middle.
  offset_range = jnp.maximum(1.1 - zoom, 0.1)
  center_x, center_y = (0.5 + (next(draws) - 0.5) * offset_range for _ in range(2))
  return center_x + cosine * view_x - sine * view_y, center_y + sine * view_x + cosine * view_y


def _sample_bilinear(
  source_images: Array, image_index: Array, x: Plane, y: Plane
) -> Float[Array, 'v v 3']:
  """Interpolate an image linearly; it is mirrored beyond its edges."""
  side = source_images.shape[1]
  x, y = (1 - jnp.abs(1 - jnp.mod(z, 2.0)) for z in (x, y))
  x, y = (jnp.clip(z * side - 0.5, 0, side - 1.001) for z in (x, y))
  left, top = x.astype(jnp.int32), y.astype(jnp.int32)
  u, v = (x - left.astype(jnp.float32))[..., None], (y - top.astype(jnp.float32))[..., None]
  flat_pixels = source_images.reshape(-1, 3)
  top_left_index = (image_index * side + top) * side + left
  upper = flat_pixels[top_left_index] * (1 - u) + flat_pixels[top_left_index + 1] * u
  lower = flat_pixels[top_left_index + side] * (1 - u) + flat_pixels[top_left_index + side + 1] * u
  return upper * (1 - v) + lower * v


def _adjust_tones(draws: RandomDraws, image: Float[Array, 'v v 3']) -> Float[Array, 'v v 3']:
  """Change exposure, tint, saturation, gamma, polarity, contrast and vignette."""
  exposure, gamma = jnp.exp(0.05 + 0.35 * _normal(draws)), jnp.exp(0.3 * _normal(draws) - 0.3)
  tint = jnp.exp(0.12 * jnp.stack([_normal(draws) for _ in range(3)]))
  image = image * (exposure * tint)[None, None]
  saturation = jnp.maximum(_uniform(draws, -0.6, 1.4), 0.0)
  gray = (image @ jnp.array((0.3, 0.59, 0.11)))[..., None]
  image = jnp.clip(gray + saturation * (image - gray), 1e-4, 1.0) ** gamma
  image = jnp.where(next(draws) < 0.15, 1 - image, image)
  black_level, white_margin = 0.35 * next(draws) ** 3, 0.35 * next(draws) ** 3
  image = black_level + image * (1 - black_level - white_margin)
  squares = _pixel_coordinates(image.shape[0]) ** 2
  squared_radius = squares[:, None, None] + squares[None, :, None]
  return image * (1 - jnp.maximum(_uniform(draws, -0.3, 0.3), 0.0) * squared_radius)


def _blur_or_sharpen(draws: RandomDraws, image: Planes) -> Planes:
  """Blur with a Gaussian, as a matrix product, or sharpen, or do neither."""
  sigma = jnp.exp(_uniform(draws, -1.5, 0.6))
  positions = jnp.arange(image.shape[1], dtype=jnp.float32)
  matrix = jnp.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
  blurred = _transform_both_axes(matrix / matrix.sum(axis=1, keepdims=True), image)
  kind, amount = next(draws), next(draws)
  image = jnp.where(kind < 0.55, blurred, image)
  return jnp.where(kind > 0.85, image + amount * (image - blurred), image)


def _add_sensor_noise(draws: RandomDraws, key: Key, image: Planes) -> Planes:
  """Add noise, partly shared by the channels."""
  random_bits = jax.random.bits(key, image.shape, jnp.uint32)
  bytes_ = [
    ((random_bits >> jnp.uint32(k)) & jnp.uint32(255)).astype(jnp.float32) for k in (0, 8, 16, 24)
  ]
  noise = (bytes_[0] + bytes_[1] + bytes_[2] + bytes_[3] - 510) / 148  # The sum is nearly normal.
  amount, color_share = jnp.exp(_uniform(draws, -7.0, -3.2)), next(draws)
  return image + amount * (color_share * noise + (1 - color_share) * noise[:1])


def _compress_jpeg(draws: RandomDraws, image: Planes) -> Planes:
  """Quantize the DCT of 8x8 blocks in half of the views, coarser for high frequencies and hue."""
  side, step = image.shape[1], jnp.exp(_uniform(draws, -5.0, -2.6))
  matrix = jnp.asarray(np.kron(np.eye(side // 8, dtype=np.float32), DCT))
  frequency = jnp.arange(side) % 8
  quantization_table = step * (1 + frequency[:, None] + frequency[None, :]).astype(jnp.float32)
  quantization_steps = quantization_table[None] * jnp.array((1.0, 2.0, 2.0))[:, None, None]
  cosines = _transform_both_axes(matrix, jnp.einsum('dc,chw->dhw', jnp.asarray(_YCC), image))
  decoded = _transform_both_axes(
    matrix.T, jnp.round(cosines / quantization_steps) * quantization_steps
  )
  compressed = jnp.einsum('dc,chw->dhw', jnp.asarray(np.linalg.inv(_YCC)), decoded)
  return jnp.where(next(draws) < 0.5, compressed, image)


def _transform_both_axes(matrix: Float[Array, 'v v'], image: Planes) -> Planes:
  """Apply a matrix to both axes."""
  return jnp.einsum('Hh,chw,Ww->cHW', matrix, image, matrix)


_k = np.arange(8)
DCT = (np.cos((2 * _k[None] + 1) * _k[:, None] * math.pi / 16) / 2).astype(np.float32)
DCT[0] /= math.sqrt(2)
_YCC = np.array(((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081)), np.float32)
