"""PaDiM: a Gaussian at every position, and the distance to it in standard deviations.

Defard et al. 2020, 'PaDiM: a Patch Distribution Modeling Framework', arXiv 2011.08785, section III.

The Gaussians may be split over devices by rows of the map: each sees all images at its own rows.

Letters: b batch, h w map of the first stage, c channels of all stages, d embedding, H W image at
network size.
"""

from collections.abc import Callable
import functools
from typing import Any, cast, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8
import numpy as np

from uadjax import backbones
from uadjax.detectors.base import Detector, OnePass, Spec, Split
from uadjax.errors import ConfigError, Setting, UnknownName
from uadjax.numerics import collectives, gaussian, projections, resampling
from uadjax.numerics.collectives import ALONE, Shards
from uadjax.types import Arrays, Batch, Key, Metrics, Scores, Variables

_SIGMA = 4.0  # Of the blur, in pixels at network size (section IV-D).
# Of the map, whitened at a time. A loop over one alone XLA would unroll, and round differently.
_COLUMNS = 4
# How the parts are held by shards: split (True), or the same on all (False).
_SPLIT = gaussian.Moments(False, True, True)  # pyright: ignore[reportArgumentType]
Stages = dict[str, Float[Array, 'b _h _w _c']]


class Embedder(NamedTuple):
  """The backbone, and the projection of its channels."""

  backbone: Variables
  projection: Float[Array, 'c d']


class State(NamedTuple):
  """What is carried."""

  embedder: Embedder
  moments: gaussian.Moments


class Fitted(NamedTuple):
  """What scoring needs."""

  embedder: Embedder
  mean: Float[Array, 'h w d']
  whiten: Float[Array, 'h w d d']


class Reference(NamedTuple):
  """What scoring an image that was folded in needs: how many there were."""

  fitted: Fitted
  n: Float[Array, '']


def make(
  backbone: backbones.Backbone,
  spec: Spec,
  *,
  channels: int = 100,
  projection: str = 'ortho',
  enlarge: str = 'bilinear',
  ridge: float = 0.01,
) -> Detector:
  """Describe PaDiM.

  Args:
    backbone: its stages are brought to the grid of the first.
    spec: image size and number of images.
    channels: of the embedding.
    projection: how they are made from those of all stages: one of `projections.METHODS`; the paper
      draws single channels ('sample').
    enlarge: how deeper stages are brought to the grid: bilinear, or nearest as authors do.
    ridge: added to the variances (equation 1's ε).
  """
  if spec.images:
    check(spec.seen + spec.images, channels, ridge)
  blank = jax.ShapeDtypeStruct((1, spec.height, spec.width, 3), jnp.float32)
  shapes = jax.eval_shape(lambda x: backbone.init_with_output(jax.random.key(0), x)[0], blank)
  stages = cast(Stages, shapes)
  _, h, w, _ = stages[backbone.stages[0]].shape
  counts = tuple(stages[name].shape[-1] for name in backbone.stages)
  if enlarge not in projections.ENLARGE:
    raise UnknownName(
      f'Unknown detector.enlarge {enlarge!r}; choose from {list(projections.ENLARGE)}.',
      key='detector.enlarge',
      value=enlarge,
      allowed=projections.ENLARGE,
    )
  if projection not in projections.METHODS:
    raise UnknownName(
      f'Unknown detector.projection {projection!r}; choose from {list(projections.METHODS)}.',
      key='detector.projection',
      value=projection,
      allowed=projections.METHODS,
    )
  if not 1 <= channels <= sum(counts):
    raise ConfigError(
      f'detector.channels={channels}, but the stages have {sum(counts)} channels.',
      key='detector.channels',
      value=channels,
      allowed=(1, sum(counts)),
      hint=(
        f'Choose 1 to {sum(counts)}, or name more stages with ',
        Setting('detector.layers'),
        '.',
      ),
    )
  over, full = spec.shards, h + -h % spec.shards.number

  def init(key: Key, variables: Variables) -> State:
    drawn = projections.draw(key, projection, counts, channels)

    def nothing(axis: str | None) -> gaussian.Moments:
      return gaussian.empty(full // collectives.count(axis), w, channels)

    return State(Embedder(variables, drawn), jax.jit(over.over(nothing, (), _SPLIT))())

  def see(embedder: Embedder, images: UInt8[Array, 'b H W 3']) -> Float[Array, 'b h w d']:
    stages = cast(Stages, backbone.apply(embedder.backbone, backbones.normalize(images)))
    in_order = [stages[name] for name in backbone.stages]
    return projections.project(embedder.projection, in_order, h, w, enlarge)

  def embed(embedder: Embedder, batch: Batch) -> Float[Array, 'b h w d']:
    return see(embedder, jnp.asarray(batch.image)) if batch.features is None else batch.features

  def update(state: State, batch: Batch) -> tuple[State, Metrics]:
    x = embed(state.embedder, batch)
    moments = _add(state.moments, x, jnp.asarray(batch.valid), over)
    return state._replace(moments=moments), {'images': moments.n}

  def finish(state: State) -> Fitted:
    n, mean, m2 = state.moments
    return Fitted(state.embedder, mean[:h], _whiten(m2, n, ridge, 0, over)[:h])

  def fill(fitted: Fitted | Reference) -> Fitted | Reference:
    if isinstance(fitted, Reference):
      return fitted._replace(fitted=fill(fitted.fitted))
    return Fitted(fitted.embedder, *(_filled(x, 0, full) for x in fitted[1:]))

  def judge(distance: Float[Array, 'b h w']) -> Scores:
    anomaly = resampling.enlarge(distance, spec.height, spec.width, _SIGMA)
    return Scores(anomaly, anomaly.max(axis=(1, 2)))

  def score(fitted: Fitted, images: UInt8[Array, 'b H W 3']) -> Scores:
    embedder, mean, whiten = fitted
    return judge(_on_rows(gaussian.mahalanobis, see(embedder, images), (mean, whiten), over))

  def portable(fitted: Fitted) -> Callable[[UInt8[Array, 'b H W 3']], Scores]:
    embedder, mean, whiten = fitted
    bands = gaussian.bands(whiten)

    def score(images: UInt8[Array, 'b H W 3']) -> Scores:
      return judge(gaussian.mahalanobis_of_bands(see(embedder, images), mean, bands))

    return score

  def score_left_out(reference: Reference, batch: Batch) -> Scores:
    (embedder, mean, whiten), n = reference

    def distance(x: Array, mean: Array, whiten: Array) -> Array:
      return gaussian.left_out_distance(x, n, mean, whiten)

    return judge(_on_rows(distance, embed(embedder, batch), (mean, whiten), over))

  one_pass = _one_pass(h, ridge, over, embed, score_left_out)
  fitted = Fitted(False, True, True)  # pyright: ignore[reportArgumentType]
  state = State(False, _SPLIT)  # pyright: ignore[reportArgumentType]
  parts = Split(state, fitted, Reference(fitted, False), fill)  # pyright: ignore[reportArgumentType]
  split = parts if over.number > 1 else None
  return Detector(init, None, update, None, finish, score, one_pass, portable, split=split)


def check(images: int, channels: int, ridge: float) -> None:
  """Refuse Gaussians that cannot be fitted.

  Raises:
    ConfigError: `ridge` is negative, or covariances of so few images would be singular.
  """
  if not ridge >= 0:
    raise ConfigError(
      f'detector.ridge must be 0 or more, got {ridge}; the paper has 0.01.',
      key='detector.ridge',
      value=ridge,
      allowed=(0, None),
    )
  if images < 2:
    raise ConfigError(f'A covariance needs 2 good images or more, got {images}; add images.')
  if ridge == 0 and images <= channels:
    raise ConfigError(
      f'{images} good images cannot fill a covariance of {channels} channels with '
      'detector.ridge=0.',
      key='detector.ridge',
      value=ridge,
      hint=(
        f'Use more than {channels} images, ',
        Setting('detector.channels', images - 1),
        ' or fewer, or ',
        Setting('detector.ridge', 0.01),
        '.',
      ),
    )


def _one_pass(
  h: int,
  ridge: float,
  over: Shards,
  embed: Callable[[Embedder, Batch], Float[Array, 'b h w d']],
  score_left_out: Callable[[Reference, Batch], Scores],
) -> OnePass:
  """What there is besides; one reference serves all images: each is left out in closed form."""

  def compile(state: State) -> None:
    _whiten.lower(state.moments.m2, state.moments.n, ridge, 0, over).compile()

  def kept(state: State) -> Arrays:
    n, mean, m2 = state.moments
    return {'projection': state.embedder.projection, 'n': n, 'mean': mean[:h], 'm2': m2[:h]}

  def reference(variables: Variables, kept: Arrays, fold: int) -> Reference:
    del fold
    n, mean, projection = (jnp.asarray(kept[k]) for k in ('n', 'mean', 'projection'))
    whiten = jax.device_put(_whiten_on_host(kept['m2'], n, ridge, 1))
    return Reference(Fitted(Embedder(variables, projection), mean, whiten), n)

  return OnePass(
    folds=1,
    embedder=lambda state: state.embedder,
    embed=embed,
    compile=compile,
    stand_ins=lambda state, before: {},
    settle=lambda state: state,
    make_room=None,
    kept=kept,
    extend=_extend,
    reference=reference,
    score_left_out=score_left_out,
    facts=lambda kept, embeddings: {'images': int(kept['n'])},
    moved=_moved,
  )


def _add(
  moments: gaussian.Moments, x: Float[Array, 'b h w d'], valid: Bool[Array, ' b'], over: Shards
) -> gaussian.Moments:
  """Fold images in: every device its rows of all of them."""

  def one(moments: gaussian.Moments, x: Array, valid: Array, axis: str | None) -> gaussian.Moments:
    return gaussian.add(moments, collectives.by_row(x, axis), collectives.joined(valid, axis))

  added = over.over(one, (_SPLIT, True, True), _SPLIT)
  return added(moments, _filled(x, 1, len(moments.mean)), valid)


def _on_rows(
  distance: Callable[..., Float[Array, 'b h w']],
  x: Float[Array, 'b h w d'],
  learned: tuple[Float[Array, '_h w d'], Float[Array, '_h w d d']],
  over: Shards,
) -> Float[Array, 'b h w']:
  """Measure where each device has the Gaussians of its rows; back by image."""

  def one(x: Array, learned: tuple[Array, Array], axis: str | None) -> Array:
    return collectives.by_image(distance(collectives.by_row(x, axis), *learned), axis)

  measured = over.over(one, (True, True), True)(_filled(x, 1, len(learned[0])), learned)
  return measured[:, : x.shape[1]]


@functools.partial(jax.jit, donate_argnums=0, static_argnums=(2, 3, 4))
def _whiten(
  m2: Float[Array, 'h w d d'], n: Float[Array, ''], ridge: float, left_out: int, over: Shards
) -> Float[Array, 'h w d d']:
  """Turn the products into whitening matrices where they lie: there may be gigabytes of them."""

  def one(m2: Array, n: Array, axis: str | None) -> Array:
    return gaussian.whiten(gaussian.Moments(n, jnp.zeros(m2.shape[:3]), m2), ridge, left_out)

  return over.over(one, (True, False), True)(m2, n)


def _whiten_on_host(
  m2: Float[np.ndarray, 'h w d d'], n: Float[Array, ''], ridge: float, left_out: int
) -> Float[np.ndarray, 'h w d d']:
  """Do the same to what lies in the host's memory: in place, if it may be written to."""
  out = m2 if m2.flags.writeable else m2.copy()
  for j in range(0, out.shape[1], _COLUMNS):
    columns = np.s_[:, j : j + _COLUMNS]
    out[columns] = _whiten(jnp.array(out[columns]), n, ridge, left_out, ALONE)
  return out


def _extend(state: State, kept: Arrays) -> State:
  n, mean, m2, projection = (jnp.array(kept[k]) for k in ('n', 'mean', 'm2', 'projection'))
  embedder, full = state.embedder._replace(projection=projection), len(state.moments.mean)
  return State(embedder, gaussian.Moments(n, _filled(mean, 0, full), _filled(m2, 0, full)))


def _filled(x: Array | np.ndarray, axis: int, rows: int) -> Any:
  """With rows of zeros up to so many, where it lies."""
  missing = [(0, rows - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
  pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
  return pad(x, missing) if x.shape[axis] < rows else x


def _moved(before: Arrays, after: Arrays) -> dict[str, int | float]:
  """How far the means moved, in standard deviations of single channels (root mean square)."""
  variance = np.diagonal(before['m2'], axis1=-2, axis2=-1) / max(before['n'] - 1, 1)
  shift = (np.asarray(after['mean']) - before['mean']) ** 2 / np.maximum(variance, 1e-12)
  return {
    'images_before': int(before['n']),
    'images_after': int(after['n']),
    'mean_shift': float(np.sqrt(shift.mean())),
  }
