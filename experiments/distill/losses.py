"""Distance of the student's features from the teacher's, in the ways that detectors use them.

PatchCore compares patches by their distance, PaDiM by their distance in units of each channel's
standard deviation, STFPM by direction. The terms `match` and `turn` lie between these. All
detectors depend on how features change at a defect (`change`), and on which patches are alike
(`neighbors`).

Letters: b batch, h w feature map, c channels, p patches, d embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distill import views
from uadjax.numerics import resampling

FeatureMaps = Float[Array, 'b h w c']
StageFeatures = Mapping[str, FeatureMaps]

LOSS_WEIGHTS = {'match': 1.0, 'turn': 0.5, 'change': 0.5, 'neighbors': 0.1}
_EPSILON = 1e-6
_NUM_NEIGHBORS = 5  # Half of their mean distance is the temperature.
# Sampled images, and sampled patches per image, in `neighbors`.
_NUM_IMAGES, _PATCHES_PER_IMAGE = 8, 32


class Scale(NamedTuple):
  """Mean and standard deviation of the teacher's channels in a stage, on synthetic images."""

  mean: Float[Array, ' c']
  std: Float[Array, ' c']


Scales = Mapping[str, Scale]


def measure_scale(x: FeatureMaps) -> Scale:
  """Measure the scale of feature maps; nearly constant channels get a minimum deviation."""
  std = x.std(axis=(0, 1, 2))
  return Scale(x.mean(axis=(0, 1, 2)), jnp.maximum(std, 0.1 * std.mean()))


def distillation_loss(
  teacher_features: StageFeatures, student_features: StageFeatures, scales: Scales, key: jax.Array
) -> tuple[Array, dict[str, Array]]:
  """Return the loss, and its terms by name and stage.

  Each term except `neighbors` is 1 for a student that returns only the teacher's mean.
  """
  loss_terms = {}
  for stage, t in teacher_features.items():
    s, (mean, std) = student_features[stage], scales[stage]
    # Dividing by the square root lies between plain distances and distances in units of the
    # standard deviation.
    normalizer = jnp.sqrt(std * std.mean())[None, None, None]
    error, relative_std = (s - t) / normalizer, std / jnp.sqrt(std * std.mean())
    loss_terms[f'match_{stage}'] = jnp.mean(error**2) / jnp.mean(relative_std**2)
    center = mean[None, None, None]
    loss_terms[f'turn_{stage}'] = _cosine_distance(
      (t - center) / normalizer, (s - center) / normalizer
    )
    loss_terms[f'change_{stage}'] = _damage_response_loss(t / normalizer, s / normalizer)
  loss_terms['neighbors'] = _neighbor_divergence(teacher_features, student_features, key)
  total = sum(LOSS_WEIGHTS[name.split('_')[0]] * value for name, value in loss_terms.items())
  return jnp.asarray(total), loss_terms


def _cosine_distance(t: FeatureMaps, s: FeatureMaps) -> Array:
  """Return 1 - cosine, averaged over positions."""
  dot, tt, ss = (jnp.sum(x, axis=-1) for x in (t * s, t * t, s * s))
  return jnp.mean(1 - dot * jax.lax.rsqrt(tt * ss + _EPSILON))


def _damage_response_loss(t: FeatureMaps, s: FeatureMaps) -> Array:
  """Return the error of the feature change between intact and damaged views.

  The squared error is relative to the squared change of each pair, so that a faint scratch counts
  as much as a hole.
  """
  intact, damaged = views.twin_rows(len(t))
  dt, ds = t[damaged] - t[intact], s[damaged] - s[intact]
  squared_error, squared_change = (jnp.sum(x**2, axis=(1, 2, 3)) for x in (ds - dt, dt))
  return jnp.mean(squared_error / (squared_change + 0.02 * squared_change.mean() + _EPSILON))


def _neighbor_divergence(
  teacher_features: StageFeatures, student_features: StageFeatures, key: jax.Array
) -> Array:
  """Return the KL divergence of the student's patch neighborhoods from the teacher's."""
  batch = len(next(iter(teacher_features.values())))
  keys = jax.random.split(key)
  image_indices = jax.random.permutation(keys[0], batch)[:_NUM_IMAGES, None]
  t, s = (_patch_embeddings(stages) for stages in (teacher_features, student_features))
  patch_indices = jax.random.randint(
    keys[1], (len(image_indices), _PATCHES_PER_IMAGE), 0, t.shape[1]
  )
  t, s = (
    t[image_indices, patch_indices].reshape(-1, t.shape[-1]),
    s[image_indices, patch_indices].reshape(-1, t.shape[-1]),
  )
  teacher_distances, student_distances = _pairwise_distances(t), _pairwise_distances(s)
  mean_neighbor_distances = -jax.lax.top_k(-teacher_distances, _NUM_NEIGHBORS)[0].mean(
    axis=1, keepdims=True
  )
  temperature = jax.lax.stop_gradient(0.5 * mean_neighbor_distances + _EPSILON)
  teacher_log_probs = jax.nn.log_softmax(-teacher_distances / temperature)
  student_log_probs = jax.nn.log_softmax(-student_distances / temperature)
  divergence_terms = jnp.exp(teacher_log_probs) * (teacher_log_probs - student_log_probs)
  return jnp.mean(jnp.sum(jnp.where(jnp.eye(len(t), dtype=bool), 0.0, divergence_terms), axis=1))


def _patch_embeddings(stages: StageFeatures) -> Float[Array, 'b p d']:
  """Return the patch embeddings that PatchCore computes from the second and third stage."""
  fine, coarse = stages['layer2'], stages['layer3']
  fine_size, coarse_size = fine.shape[1], coarse.shape[1]
  pooling = jnp.asarray(resampling.pool_matrix(fine_size))
  upsampling = jnp.asarray(
    resampling.bilinear_matrix(fine_size, coarse_size) @ resampling.pool_matrix(coarse_size)
  )
  x = jnp.concatenate(
    [
      resampling.apply_separable(pooling, pooling, fine),
      resampling.apply_separable(upsampling, upsampling, coarse),
    ],
    axis=-1,
  )
  return x.reshape(len(x), fine_size * fine_size, -1)


def _pairwise_distances(x: Float[Array, 'p d']) -> Float[Array, 'p p']:
  """Return squared distances; the distance of a patch to itself is set to a large value."""
  x = x - x.mean(axis=0, keepdims=True)
  norms = jnp.sum(x**2, axis=-1)
  squared = norms[:, None] + norms[None, :] - 2 * x @ x.T
  return jnp.where(jnp.eye(len(x), dtype=bool), 1e6, jnp.maximum(squared, 0.0))
