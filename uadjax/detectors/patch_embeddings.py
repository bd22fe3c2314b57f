"""Patch embeddings: the features of all stages of a backbone, on the grid of the first stage.

Patches of blank pixels (see `inspection`) have embeddings that are NaN, so that detectors that
store embeddings recognize them.
"""

from collections.abc import Callable
from typing import cast

from jax import numpy as jnp
from jaxtyping import Array, Float

from uadjax import backbones
from uadjax.detectors import inspection
from uadjax.detectors.base import Embeddings, Images, RunContext
from uadjax.numerics import resampling
from uadjax.types import Batch, Variables


def extract(
  backbone: backbones.Backbone, variables: Variables, images: Images, average_neighbors: bool
) -> Embeddings:
  """Return the concatenated stages, upsampled bilinearly to the size of the first.

  Args:
    backbone: network whose stages are the features.
    variables: its variables.
    images: the images.
    average_neighbors: whether each patch is first averaged with its neighbors, in windows of 3x3.
  """
  features = backbone.apply(variables, backbones.normalize(images))
  stages = cast(dict[str, Float[Array, 'b _h _w _c']], features)
  _, h, w, _ = stages[backbone.stages[0]].shape
  resampled = []
  for x in (stages[name] for name in backbone.stages):
    is_unchanged = x.shape[1:3] == (h, w) and not average_neighbors
    resampled.append(x if is_unchanged else _resample(x, (h, w), average_neighbors))
  return jnp.concatenate(resampled, axis=-1)


def _resample(
  x: Float[Array, 'b _h _w _c'], grid: tuple[int, int], average_neighbors: bool
) -> Float[Array, 'b h w c']:
  """Return a stage on the grid of the first one."""

  def matrix(new: int, old: int) -> Float[Array, 'n _n']:
    upsampling = resampling.bilinear_matrix(new, old)
    if average_neighbors:
      upsampling = upsampling @ resampling.pool_matrix(old)
    return jnp.asarray(upsampling)

  rows, columns = (matrix(new, old) for new, old in zip(grid, x.shape[1:3], strict=True))
  return resampling.apply_separable(rows, columns, x)


def embed(
  context: RunContext, extract_features: Callable[[Images], Embeddings], batch: Batch
) -> Embeddings:
  """Return the precomputed patch embeddings of a batch, or compute those of its images.

  Those of patches that are blank are NaN.
  """
  if batch.features is not None:
    return batch.features
  images = jnp.asarray(batch.image)
  x = extract_features(images)
  inspected = context.find_pixels(images)
  if inspected is None or not context.has_blanks:
    return x
  cells = jnp.asarray(inspection.find_cells(inspected, *x.shape[1:3]))
  return jnp.where(cells[..., None], x, jnp.nan)


def clear_blanks(context: RunContext, x: Embeddings) -> Embeddings:
  """Return embeddings with zeros for blank patches, whose distances do not count."""
  return jnp.where(jnp.isnan(x), 0.0, x) if context.has_blanks else x
