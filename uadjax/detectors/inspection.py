"""Regions of interest in detectors: inspected cells of a map, and maps that rest on these alone.

The inspected pixels are known ahead, [1 H W] in NumPy, unless images are tiles: then they follow
from the pixels, [b H W] in JAX.

Letters: b batch, h w grid of cells, H W image at network size.
"""

from typing import TypeAlias

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8
import numpy as np

from uadjax.data.region_of_interest import BLANK
from uadjax.errors import refuse, Setting
from uadjax.numerics import resampling

Inspected: TypeAlias = Bool[np.ndarray, '... H W'] | Bool[Array, 'b H W']
Cells: TypeAlias = Bool[np.ndarray, '... h w'] | Bool[Array, 'b h w']

# Pixels with less weight of inspected cells fade to 0.
_MIN_WEIGHT = 1e-3
_EXACT = jax.lax.Precision.HIGHEST


def find_pixels(
  images: UInt8[Array, 'b H W 3'], inspected: Bool[np.ndarray, 'H W'] | None, has_blanks: bool
) -> Inspected | None:
  """Return the inspected pixels of images; None for all.

  In images with blanks, these are the pixels that `region_of_interest.find_outside` does not find.

  Args:
    images: the images.
    inspected: inspected pixels of all images, if they are the same; None for all.
    has_blanks: whether the other pixels are blank instead.
  """
  if not has_blanks:
    return None if inspected is None else inspected[None]
  difference = images.astype(jnp.int32) - jnp.asarray(BLANK, jnp.int32)[None, None, None]
  return jnp.sum(jnp.abs(difference), axis=-1) > 0


def find_cells(inspected: Inspected, h: int, w: int) -> Cells:
  """Return the cells of a grid over an image that are inspected: those not more than half outside.

  Raises:
    ConfigError: the pixels are known ahead, and there is no such cell.
  """
  height, width = inspected.shape[-2:]
  rows, columns = resampling.area_matrix(h, height), resampling.area_matrix(w, width)
  if not isinstance(inspected, np.ndarray):
    rows, columns = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
    covered = jnp.matmul(rows, inspected.astype(jnp.float32), precision=_EXACT)
    return jnp.matmul(covered, columns.T, precision=_EXACT) > 0.5 - 1e-4
  cells = rows @ inspected @ columns.T > 0.5 - 1e-9
  if not cells.any():
    size = f'{width / w:g} x {height / h:g} pixels of the scaled images'
    message = f'The region of interest covers half of no cell of {size}.'
    hint = 'Enlarge it, use larger images (', Setting('data.ops'), ') or finer stages ('
    refuse('data.roi', None, message, *hint, Setting('detector.layers'), ').')
  return cells


def upsample(
  distance: Float[Array, 'b h w'],
  image_size: tuple[int, int],
  inspected: Inspected | None,
  sigma: float = 0.0,
) -> Float[Array, 'b H W']:
  """Upsample distances of cells to images of a height and width, and blur them.

  Near the border of the region, the weights of the other cells are given to the inspected ones.

  Args:
    distance: distances of all cells.
    image_size: height and width of the images.
    inspected: inspected pixels; None for all.
    sigma: standard deviation of the blur in pixels; 0 for none.
  """
  if inspected is None:
    return resampling.upsample(distance, *image_size, sigma)
  h, w = distance.shape[1:]
  cells = find_cells(inspected, h, w).astype(np.float32)
  if isinstance(cells, np.ndarray):
    rows = resampling.upsampling_matrix(image_size[0], h, sigma)
    columns = resampling.upsampling_matrix(image_size[1], w, sigma)
    scale = 1 / np.maximum(rows @ cells @ columns.T, _MIN_WEIGHT)
  else:
    scale = 1 / jnp.maximum(resampling.upsample(cells, *image_size, sigma), _MIN_WEIGHT)
  upsampled = resampling.upsample(distance * jnp.asarray(cells), *image_size, sigma)
  return upsampled * jnp.asarray(scale)


def mean(x: Float[Array, 'b h w'], inspected: Inspected | None) -> Float[Array, ' b']:
  """Return the mean of each map over inspected cells; 0 for a map without any."""
  if inspected is None:
    return x.mean(axis=(1, 2))
  cells = jnp.asarray(find_cells(inspected, *x.shape[1:]), x.dtype)
  return (x * cells).sum(axis=(1, 2)) / jnp.maximum(cells.sum(axis=(1, 2)), 1.0)
