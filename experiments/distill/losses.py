"""How far the student's features are from the teacher's, in the ways that detectors look at them.

PatchCore compares patches by their distance, PaDiM by theirs in units of each channel's spread,
STFPM by direction: `match` and `turn` are between those. What all of them live by is how features
change where something is wrong (`change`), and which patches are alike (`neighbors`).

Letters: b batch, h w map, c channels, p patches, d embedding.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from distill import views
from uadjax.numerics import resampling

Maps = Float[Array, 'b h w c']
Stages = Mapping[str, Maps]

WEIGHTS = {'match': 1.0, 'turn': 0.5, 'change': 0.5, 'neighbors': 0.1}
_TINY = 1e-6
_NEAR = 5  # Neighbors whose mean distance is the temperature.
_IMAGES, _PATCHES = 8, 32  # Images that patches are compared of, and patches of each.


class Scale(NamedTuple):
  """Mean and standard deviation of a stage's channels, of the teacher on generated images."""

  mean: Float[Array, ' c']
  std: Float[Array, ' c']


Scales = Mapping[str, Scale]


def scale(x: Maps) -> Scale:
  """Measure one; channels that hardly ever move count as moving a little."""
  std = x.std(axis=(0, 1, 2))
  return Scale(x.mean(axis=(0, 1, 2)), jnp.maximum(std, 0.1 * std.mean()))


def compare(
  taught: Stages, seen: Stages, scales: Scales, key: jax.Array
) -> tuple[Array, dict[str, Array]]:
  """The loss, and its parts by kind and stage.

  Each part is 1 for a student that knows only the teacher's mean, `neighbors` excepted.
  """
  parts = {}
  for stage, t in taught.items():
    s, (mean, std) = seen[stage], scales[stage]
    # Divided by the square root: between plain distances and those in units of the spread.
    root = jnp.sqrt(std * std.mean())[None, None, None]
    error, spread = (s - t) / root, std / jnp.sqrt(std * std.mean())
    parts[f'match_{stage}'] = jnp.mean(error**2) / jnp.mean(spread**2)
    center = mean[None, None, None]
    parts[f'turn_{stage}'] = _turn((t - center) / root, (s - center) / root)
    parts[f'change_{stage}'] = _change(t / root, s / root)
  parts['neighbors'] = _neighbors(taught, seen, key)
  total = sum(WEIGHTS[name.split('_')[0]] * value for name, value in parts.items())
  return jnp.asarray(total), parts


def _turn(t: Maps, s: Maps) -> Array:
  """One less the cosine, in the mean over positions."""
  dot, tt, ss = (jnp.sum(x, axis=-1) for x in (t * s, t * t, s * s))
  return jnp.mean(1 - dot * jax.lax.rsqrt(tt * ss + _TINY))


def _change(t: Maps, s: Maps) -> Array:
  """Squared error of the difference between damaged twins, relative to its size in each pair.

  Relative, so that a faint scratch counts as much as a hole.
  """
  intact, damaged = views.twins(len(t))
  dt, ds = t[damaged] - t[intact], s[damaged] - s[intact]
  wrong, size = (jnp.sum(x**2, axis=(1, 2, 3)) for x in (ds - dt, dt))
  return jnp.mean(wrong / (size + 0.02 * size.mean() + _TINY))


def _neighbors(taught: Stages, seen: Stages, key: jax.Array) -> Array:
  """Divergence between which patches are near which, for the teacher and for the student."""
  batch = len(next(iter(taught.values())))
  keys = jax.random.split(key)
  images = jax.random.permutation(keys[0], batch)[:_IMAGES, None]
  t, s = (_patches(stages) for stages in (taught, seen))
  places = jax.random.randint(keys[1], (len(images), _PATCHES), 0, t.shape[1])
  t, s = t[images, places].reshape(-1, t.shape[-1]), s[images, places].reshape(-1, t.shape[-1])
  away, guess = _distances(t), _distances(s)
  near = -jax.lax.top_k(-away, _NEAR)[0].mean(axis=1, keepdims=True)
  temperature = jax.lax.stop_gradient(0.5 * near + _TINY)
  expected = jax.nn.log_softmax(-away / temperature)
  found = jax.nn.log_softmax(-guess / temperature)
  terms = jnp.exp(expected) * (expected - found)
  return jnp.mean(jnp.sum(jnp.where(jnp.eye(len(t), dtype=bool), 0.0, terms), axis=1))


def _patches(stages: Stages) -> Float[Array, 'b p d']:
  """What PatchCore makes of the second and third stage."""
  fine, coarse = stages['layer2'], stages['layer3']
  size, half = fine.shape[1], coarse.shape[1]
  pool = jnp.asarray(resampling.pool_matrix(size))
  up = jnp.asarray(resampling.bilinear_matrix(size, half) @ resampling.pool_matrix(half))
  x = jnp.concatenate(
    [resampling.apply_separable(pool, pool, fine), resampling.apply_separable(up, up, coarse)],
    axis=-1,
  )
  return x.reshape(len(x), size * size, -1)


def _distances(x: Float[Array, 'p d']) -> Float[Array, 'p p']:
  """Squared distances; to itself a patch is far away."""
  x = x - x.mean(axis=0, keepdims=True)
  norms = jnp.sum(x**2, axis=-1)
  squared = norms[:, None] + norms[None, :] - 2 * x @ x.T
  return jnp.where(jnp.eye(len(x), dtype=bool), 1e6, jnp.maximum(squared, 0.0))
