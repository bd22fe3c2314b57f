"""One detector from good images to a model directory: fitted, calibrated, saved."""

from collections.abc import Sequence
import logging
from pathlib import Path
import time
from typing import Any

from uadjax import config as configs, detectors
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import records as record_types, transforms
from uadjax.data.records import Record
from uadjax.detectors.base import RunContext
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import ConfigError, Setting
from uadjax.evaluation import labeled
from uadjax.model import array_file, calibration, incremental_state, model_dir, scoring
from uadjax.system import files, logging as log, memory, progress, signals
from uadjax.training import hooks, loop, one_pass, workdir as workdirs
from uadjax.types import Config

Result = dict[str, Any]

# What a run that extends another must share with it.
_SHARED = ('detector.', 'backbone.name', 'data.ops')


def train(config: Config, splits: record_types.Splits, workdir: Path) -> Result:
  """Fit, calibrate and save; the result is what `train_result.json` tells of it."""
  options = config.calibrate
  calibration.check(
    options.budget, options.review_budget, options.method, options.miss_cost, options.labelled
  )
  once = detectors.learns_in_one_pass(config.detector.name)
  _check(config.fit, once)
  workdirs.check(workdir, config)
  shown = labeled.load(config, splits.train) if options.labelled else ()
  return (_in_one_pass if once else _by_descent)(config, splits.train, shown, workdir)


def _by_descent(
  config: Config, records: Sequence[Record], shown: Sequence[Record], workdir: Path
) -> Result:
  """Learn from most images; choose the best step and set thresholds by the others."""
  held_out = config.fit.held_out
  shares = [1 - held_out, held_out / 2, held_out / 2]
  parts = loop.Parts(*record_types.partition(records, shares, config.seed))
  ops = transforms.parse(config.data.ops)
  mesh = _mesh(config, min(config.fit.batch_size, len(parts.learn)))
  spec = RunContext(
    ops.height, ops.width, len(parts.learn), learning_rate=loop.schedule(config.fit),
    shards=meshes.shards(mesh),
  )  # fmt: skip
  backbone, detector = model_dir.assemble(config, spec)
  variables, weights = pretrained_weights.load(config.backbone.weights, backbone)
  log.LOG.info(
    '%s: %d good images to learn from, %d to choose the best step, %d to calibrate; %s (weights: '
    '%s), on %d device(s) of %s%s',
    workdirs.label(config), *map(len, parts), config.backbone.name, weights.source, mesh.size,
    config.device, processes.describe_process(),
  )  # fmt: skip
  workdirs.claim(workdir, config)
  with signals.stop_event_on_signal() as stop:
    fitted = loop.fit(detector, variables, config, parts, mesh, workdir, stop)
  peak_mb, began = memory.peak_mb(), time.perf_counter()
  scorer, rows = scoring.of_images(detector), config.evaluate.batch_size
  normals = scoring.peaks(scoring.score(scorer, fitted.fitted, parts.calibrate, ops, rows, mesh))
  examples = labeled.score(scorer, fitted.fitted, shown, config, mesh)
  limits = _limits(config, normals, examples)
  model_dir.save(workdir / 'model', config, fitted.fitted, limits, normals, weights)
  _tell(workdir, limits)
  return {
    **_outputs(workdir),
    'models': _models(workdir, fitted.best),
    'timing': _timing(fitted.seconds, fitted.images, time.perf_counter() - began, peak_mb),
  }


def _in_one_pass(
  config: Config, records: Sequence[Record], shown: Sequence[Record], workdir: Path
) -> Result:
  """Learn from every image; set thresholds by leaving each out."""
  ops, options = transforms.parse(config.data.ops), config.fit
  # Read now: a run that extends its own model is about to replace it.
  old = model_dir.about(options.extend) if options.extend else None
  before = _earlier(config, old) if old else None
  first = before.images if before else 0
  mesh = _mesh(config, 0)  # Batches are padded: any number of devices will do.
  apart = meshes.state_mesh(mesh, config.mesh.split)
  spec = RunContext(
    ops.height, ops.width, len(records), first, progress=progress.show_progress,
    shards=meshes.shards(apart),
    max_extra_images_per_shard=meshes.micro_batch_size(mesh, options.batch_size) // mesh.size,
  )  # fmt: skip
  backbone, detector = model_dir.assemble(config, spec)
  once = detector.one_pass
  assert once is not None  # The table says so.
  if first + len(records) < _FEWEST:
    raise ConfigError(
      f'{len(records)} good images are too few to leave one out; at least {_FEWEST} are needed.'
    )
  variables, weights = pretrained_weights.load(config.backbone.weights, backbone)
  if old:
    _same_weights(weights, old.weights)
  log.LOG.info(
    '%s: %d good images to learn from%s; %s (weights: %s), on %d device(s) of %s%s',
    workdirs.label(config), len(records), f', after {first} before' if first else '',
    config.backbone.name, weights.source, mesh.size, config.device, processes.describe_process(),
  )  # fmt: skip
  # Spared, for it may be they that are extended.
  workdirs.claim(workdir, config, spare=('model', 'state'))
  with (
    files.atomic_directory(workdir / 'state') as state,
    files.atomic_directory(workdir / 'model') as model,
  ):
    fold = one_pass.fold(detector, once, variables, config, records, before, mesh, state)
    peak_mb = memory.peak_mb()
    sha256 = array_file.save_arrays(model, fold.fitted)
    embedder, seconds = fold.embedder, fold.seconds
    began = time.perf_counter() - fold.apart
    split = detector.sharding_specs
    whole = split.pad_to_shards(fold.fitted) if split and shown else fold.fitted
    parts = split.fitted if split else None
    examples = labeled.score(scoring.of_images(detector), whole, shown, config, mesh, parts)
    del fold, whole  # Its Gaussians may take gigabytes, and so may those that follow.
    memory.release_free_memory()
    rows = config.evaluate.batch_size
    most = config.calibrate.images
    normals = one_pass.score_left_out(
      once, variables, state, records, before, ops, rows, mesh, most, split
    )
    count = config.calibrate.retain
    retained = one_pass.retain(once, embedder, records, before, count, ops, config.seed, mesh)
    limits = _limits(config, normals, examples)
    incremental_state.save_retained(state, retained, first + len(records))
    kept = incremental_state.load_kept(state, mapped=True)
    facts = once.summary(kept, retained.embedding)
    model_dir.save_manifest(model, config, limits, normals, weights, facts, sha256)
    moved = _moved(once.drift(before.kept, kept), old.limits, limits) if old and before else {}
  log.LOG.info('Learned: %s', _listed(facts))
  _tell(workdir, limits)
  return {
    **_outputs(workdir),
    'models': {'best': {'score': None, 'checkpoint': None, 'model_dir': 'model'}},
    'learned': facts,
    **moved,
    'timing': _timing(seconds, len(records), time.perf_counter() - began, peak_mb),
  }


_FEWEST = 3  # Leaving one of them out must leave two, for a variance.


def _check(options: Config, once: bool) -> None:
  """Refuse settings that would be silently passed over."""
  if not once:
    if not 0 < options.held_out < 1:
      raise ConfigError(f'fit.held_out must lie between 0 and 1, got {options.held_out}.')
    if options.extend:
      raise ConfigError('fit.extend is for PaDiM and PatchCore; STFPM goes on with fit.resume.')
    return
  meaningless = {
    'fit.steps': options.steps is not None,
    'fit.epochs': options.epochs != 1,
    'fit.held_out': options.held_out != 0,
    'fit.resume': bool(options.resume),
  }
  for key, given in meaningless.items():
    if given:
      raise ConfigError(
        f'{key} means nothing to a detector that sees every image once; leave it out. To learn '
        'from further images, name a model directory in fit.extend.'
      )


def _earlier(config: Config, old: model_dir.About) -> incremental_state.Learned:
  """What the run that is extended has learned, if this one is of its kind."""
  directory = Path(config.fit.extend)
  ours, theirs = (configs.flatten(configs.to_plain_dict(c)) for c in (config, old.config))
  # The name first: options of another detector would only confuse.
  for key in ('detector.name', *ours):
    if key.startswith(_SHARED) and theirs.get(key) != ours[key]:
      raise ConfigError(
        f'{key} is {ours[key]!r}, but the model to extend, {directory}, has {theirs.get(key)!r}.',
        key=key,
        value=ours[key],
        allowed=(theirs.get(key),),
        hint=('Pass ', Setting(key, theirs.get(key)), '.'),
      )
  return incremental_state.load(directory.resolve().parent / 'state')


def _same_weights(
  weights: pretrained_weights.Provenance, before: pretrained_weights.Provenance
) -> None:
  if weights.sha256 != before.sha256:
    raise ConfigError(
      f'backbone.weights are {weights.source} ({weights.sha256[:12]}…), but the model to extend '
      f'has {before.source} ({before.sha256[:12]}…); its features are others. Pass those.'
    )


def _moved(
  numbers: dict[str, int | float], old: calibration.Limits, new: calibration.Limits
) -> Result:
  """Tell by how much further images moved what was learned, and the thresholds."""
  told = {
    **numbers,
    'image_threshold_before': old.image,
    'image_threshold_after': new.image,
    'pixel_threshold_before': old.pixel,
    'pixel_threshold_after': new.pixel,
  }
  log.LOG.info('Moved: %s', _listed(told))
  return {'moved': told}


def _listed(numbers: dict[str, int | float]) -> str:
  return ', '.join(f'{key} {value:.6g}' for key, value in numbers.items())


def _mesh(config: Config, rows: int) -> meshes.Mesh:
  return meshes.make_mesh(config.device, config.mesh.data, rows)


def _limits(
  config: Config, normals: calibration.Peaks, examples: labeled.Examples | None
) -> calibration.Limits:
  """Thresholds by the method that the configuration names."""
  options = config.calibrate
  budgets = options.budget, options.review_budget
  if examples is None:
    return calibration.from_normals(
      normals.image, normals.map, *budgets, options.method == 'confident'
    )
  return calibration.from_labelled(
    *examples[:3], options.method, *budgets, options.miss_cost, examples.pixel
  )


def _tell(workdir: Path, limits: calibration.Limits) -> None:
  level = logging.WARNING if limits.over_budget else logging.INFO
  log.LOG.log(level, 'Model saved in %s. %s', workdir / 'model', limits)


def _outputs(workdir: Path) -> Result:
  return {'train_log': log.relative_log_path(workdir), 'config': 'config.yaml'}


def _timing(fit_s: float, images: int, calibrate_s: float, peak_mb: int) -> Result:
  return {
    'fit_s': fit_s,
    'calibrate_s': calibrate_s,
    'images_per_s': images / fit_s,
    'peak_memory_mb': peak_mb,
  }


def _models(workdir: Path, best: hooks.Best) -> Result:
  last = {
    f'last_{n}': f'checkpoints/rolling/{step}'
    for n, step in enumerate(reversed(workdirs.steps(workdir)), 1)
  }
  kept = f'checkpoints/best/{best.step}'
  return {**last, 'best': {'score': best.loss, 'checkpoint': kept, 'model_dir': 'model'}}
