"""Training of one detector: fit to normal images, calibrate thresholds, save a model directory."""

from collections.abc import Callable, Sequence
import dataclasses
import logging
from pathlib import Path
import time
from typing import Any

import numpy as np

from uadjax import backbones, config as configs, detectors
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import records as record_types, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.image_statistics import StatisticsRange
from uadjax.data.pixel_range import AUTO
from uadjax.data.records import Record
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import about, DataError, refuse, Setting
from uadjax.evaluation import labeled
from uadjax.model import array_file, calibration, incremental_state, model_dir, scoring
from uadjax.system import files, logging as log, memory, progress, signals
from uadjax.training import hooks, image_table, leave_one_out, loop, one_pass, workdir as workdirs
from uadjax.training.embedding_store import EmbeddingStore
from uadjax.training.settings import Settings
from uadjax.types import PyTree

Result = dict[str, Any]
OnFitted = Callable[[Detector, PyTree], None]

# Settings that a run must share with the run that it extends.
_FIXED_ON_EXTEND = (
  'detector.', 'backbone.name', 'backbone.architecture', 'backbone.dtype', 'data.ops', 'data.bits',
  'data.range', 'data.roi', 'fit.augment',
)  # fmt: skip
_MIN_IMAGES_IN_STEPS = 3  # One each for training, validation and calibration.
# Settings of detectors that make no sense for tiles, and what they do.
_NEED_WHOLE_IMAGES = {
  'window': 'compares positions in',
  'foreground': 'finds the object in',
}
# Titles of the steps, with `one_pass.CORESET`.
FIT, CALIBRATION = 'fit', 'calibration'


def train(
  config: Settings,
  splits: record_types.Splits,
  cache: ImageCache,
  workdir: Path,
  on_fitted: OnFitted | None = None,
) -> Result:
  """Fit and calibrate a detector, save its model directory, and return the result for JSON.

  Args:
    config: configuration of the run, which passed `validate`, with a definite backbone (see
      `resolve_backbone`).
    splits: records of the dataset; only `train` is used, and its images are normal. Those that are
      held out calibrate the thresholds, together with the held-out scores of the others.
    cache: reads the images, or has them in memory since the dataset check.
    workdir: work directory; the model is saved in its subfolder `model`.
    on_fitted: called with the detector and its fitted arrays before the calibration; must not keep
      the arrays.

  Raises:
    UserError: `workdir` holds another run, or images are too few or unreadable.
    Interrupted: the run was asked to stop.
  """
  workdirs.require_no_conflict(workdir, config)
  labeled_records = ()
  if directory := config.calibrate.labeled:
    mask_reading, ops, pixel_range = config.data.mask, cache.ops, cache.pixel_range
    labeled_records = labeled.load(directory, mask_reading, splits.train, ops, pixel_range)
  in_one_pass = detectors.learns_in_one_pass(config.detector.name)
  train_detector = _train_one_pass if in_one_pass else _train_by_gradient
  if validation := splits.validation():
    log.LOG.info('Calibrating with %d validation images; they are held out.', len(validation))
  result, thresholds = train_detector(
    config, splits, labeled_records, cache, workdir, on_fitted or (lambda detector, fitted: None)
  )
  level = logging.WARNING if thresholds.is_over_budget else logging.INFO
  log.LOG.info('Model saved in %s.', workdir / 'model')
  log.LOG.log(level, 'Thresholds: %s', thresholds)
  return {'train_log': log.relative_log_path(workdir), 'config': 'config.yaml', **result}


def step_titles(config: Settings) -> tuple[str, ...]:
  """Return the titles of the steps that `train` announces."""
  coreset = (one_pass.CORESET,) if detectors.selects_coreset(config.detector.name) else ()
  return FIT, *coreset, CALIBRATION


def min_images(config: Settings) -> int:
  """Return the smallest number of good images that a run can learn from."""
  return 1 if detectors.learns_in_one_pass(config.detector.name) else _MIN_IMAGES_IN_STEPS


def validate(config: Settings) -> None:
  """Check settings that depend on each other or on the model to extend, before reading images.

  Raises:
    UserError: a setting is invalid, or the detector would ignore it silently.
  """
  fit = config.fit
  calibration.validate_settings(config.calibrate)
  if (labeled_dir := config.calibrate.labeled) and not Path(labeled_dir).is_dir():
    raise DataError(f'No folder {labeled_dir}.', key='calibrate.labeled', value=labeled_dir)
  if not detectors.learns_in_one_pass(config.detector.name):
    if not fit.held_out:
      message = 'Training in steps needs images for validation and calibration.'
      refuse('fit.held_out', fit.held_out, message, allowed='above 0 and below 1')
    if fit.extend:
      hint = 'Resume training with ', Setting('fit.resume', 'latest'), '.'
      message = 'Only PaDiM, PatchCore and SubspaceAD can be extended.'
      refuse('fit.extend', fit.extend, message, *hint)
    if fit.augment:
      message = 'Only PaDiM, PatchCore and SubspaceAD learn from augmented copies.'
      refuse('fit.augment', fit.augment, message, 'Omit ', Setting('fit.augment'), '.', allowed='')
    return
  _require_whole_images(config)
  if fit.augment and config.data.roi:
    message = 'Augmented copies would move pixels from outside of data.roi into the region.'
    hint = 'Omit ', Setting('fit.augment'), ' or ', Setting('data.roi'), '.'
    refuse('fit.augment', fit.augment, message, *hint, allowed='')
  hint = 'To learn from further images, set ', Setting('fit.extend'), ' to a model directory.'
  for name, default in {'steps': None, 'epochs': 1, 'held_out': 0, 'resume': ''}.items():
    if (value := getattr(fit, name)) != default:
      message = f'fit.{name} does not apply to a detector that sees every image once; remove it.'
      refuse(f'fit.{name}', value, message, *hint, allowed=default)
  if fit.extend:
    with about('fit.extend', fit.extend):
      previous_info = model_dir.read_info(fit.extend)
      incremental_state.read_array_names(incremental_state.state_folder(fit.extend))
    _require_same_settings(config, previous_info)


def _train_by_gradient(
  config: Settings,
  splits: record_types.Splits,
  labeled_records: Sequence[Record],
  cache: ImageCache,
  workdir: Path,
  on_fitted: OnFitted,
) -> tuple[Result, calibration.Thresholds]:
  """Train on most images; the held-out rest selects the best step and calibrates thresholds."""
  held_out_fraction = config.fit.held_out
  fractions = [1 - held_out_fraction, held_out_fraction / 2, held_out_fraction / 2]
  train_records, validation_records, calibration_records = record_types.partition(
    splits.learned(), fractions, config.seed
  )
  calibration_records += splits.validation()
  ops, num_train = cache.ops, len(cache.list_tiles(r.path for r in train_records))
  mesh = meshes.make_mesh(config.device, config.mesh.data, min(config.fit.batch_size, num_train))
  context = model_dir.scoring_context(ops)._replace(
    max_images=num_train, learning_rate=loop.learning_rate_schedule(config.fit),
    shards=meshes.shards(mesh),
  )  # fmt: skip
  backbone, detector = model_dir.build_detector(config, context)
  variables, weights = pretrained_weights.load(config.backbone.weights, backbone)
  held_out = f'{len(validation_records)} for validation, {len(calibration_records)} for calibration'
  images = f'{len(train_records)} good images for training, {held_out}'
  _log_start(config, images, splits.train, weights, mesh)
  workdirs.prepare(workdir, config)
  progress.announce(FIT)
  with signals.request_stop_on_signal() as stop_request:
    fit = loop.fit(
      detector, variables, config, train_records, validation_records, cache, mesh, workdir,
      stop_request,
    )  # fmt: skip
  peak_mb, calibration_start = memory.peak_mb(), time.perf_counter()
  on_fitted(detector, fit.fitted)
  progress.announce(CALIBRATION)
  fitted, batch_size = fit.fitted, config.evaluate.batch_size
  scorer = scoring.image_scorer(detector)
  distinct_records = record_types.distinct(calibration_records)
  rule = detector.image_score
  scored = scoring.score_records(scorer, fitted, distinct_records, cache, batch_size, mesh, rule)
  scored = progress.show_progress(scored, len(distinct_records), 'Calibrating', True)
  scores = scoring.collect_calibration_scores(scored)
  labeled_scores = labeled.score(
    scorer, fitted, labeled_records, config.data.mask, cache, batch_size, mesh, rule
  )
  thresholds = labeled.calibrate(config.calibrate, scores, labeled_scores)
  statistics = _range_of_statistics(splits.learned(), cache)
  model_config = _with_bits(config, cache)
  model_dir.save(
    workdir / 'model', model_config, fitted, thresholds, scores, statistics, weights, ops.region
  )
  timing = _timing(fit.fit_seconds, fit.num_images, calibration_start, peak_mb)
  return {'models': _model_paths(workdir, fit.best), 'timing': timing}, thresholds


def _train_one_pass(
  config: Settings,
  splits: record_types.Splits,
  labeled_records: Sequence[Record],
  cache: ImageCache,
  workdir: Path,
  on_fitted: OnFitted,
) -> tuple[Result, calibration.Thresholds]:
  """Train on every image to learn from; leave-one-out scores calibrate the thresholds."""
  previous_info, previous, records = None, incremental_state.EMPTY, splits.learned()
  statistics = _range_of_statistics(splits.learned(), cache)
  if config.fit.extend:  # Read now, because a run that extends its own model will replace it.
    previous_info = model_dir.read_info(config.fit.extend)
    previous = incremental_state.load(incremental_state.state_folder(config.fit.extend))
    statistics = statistics.merge(previous_info.image_statistics)
  # Batches are padded, so any number of devices works.
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  backbone, detector = _build_one_pass(config, records, previous.images, cache, mesh)
  variables, weights = pretrained_weights.load(config.backbone.weights, backbone)
  if previous_info:
    _require_same_weights(weights, previous_info.weights)
  images = _describe_images(len(records), cache.augmentation.num_copies, previous.num_images)
  _log_start(config, images, records, weights, mesh)
  # Keep model and state until they are replaced, because this run may extend them.
  workdirs.prepare(workdir, config, keep=('model', 'state'))
  functions, incremental = detector.leave_one_out, detector.incremental
  assert functions is not None  # Every detector that learns in one pass has both.
  assert incremental is not None
  with (
    files.atomic_directory(workdir / 'state') as state_dir,
    files.atomic_directory(workdir / 'model') as model_folder,
  ):
    table = image_table.build(
      previous.images, records, functions.num_folds, config.calibrate.images, cache
    )
    validation_records = image_table.exclude_learned(splits.validation(), previous.images, cache)
    num_distinct = len(np.unique(table.groups))
    if previous_info and num_distinct < len(table.groups):
      total = len(table.groups)
      log.LOG.info('Of all %d images of the model, %d are distinct.', total, num_distinct)
    run = one_pass.OnePassRun(
      config.detector.name, detector, functions, incremental, variables, records, table, previous,
      cache, config.seed, mesh, state_dir,
    )  # fmt: skip
    result, thresholds = _fit_and_calibrate(
      config, run, validation_records, labeled_records, statistics, weights, model_folder,
      on_fitted,
    )  # fmt: skip
  log.LOG.info('Summary: %s', _format_numbers(result['summary']))
  if previous_info:
    result['drift'] |= {
      'image_threshold_before': previous_info.thresholds.image_threshold,
      'image_threshold_after': thresholds.image_threshold,
      'pixel_threshold_before': previous_info.thresholds.pixel_threshold,
      'pixel_threshold_after': thresholds.pixel_threshold,
    }
    log.LOG.info('Drift: %s', _format_numbers(result['drift']))
  return result, thresholds


def _fit_and_calibrate(
  config: Settings,
  run: one_pass.OnePassRun,
  validation_records: Sequence[Record],
  labeled_records: Sequence[Record],
  statistics: StatisticsRange,
  weights: pretrained_weights.Provenance,
  model_folder: Path,
  on_fitted: OnFitted,
) -> tuple[Result, calibration.Thresholds]:
  """Fit and calibrate a detector; write its model to `model_folder`, its state to `run.state_dir`.

  Returns:
    The result for JSON, and the thresholds. For a run that extends another, the result has a
    `drift`, which lacks the thresholds.
  """
  # With several processes, each has the embeddings of its share of a batch only: none are stored.
  max_bytes = 0 if processes.is_multiprocess() else config.fit.cache_bytes
  stored_records = run.image_table.records_at(image_table.rows_to_store(run.image_table))
  # Copies are embedded again only to be removed from a model.
  stored_tiles = run.cache.list_tiles(
    (record.path for record in stored_records), run.leave_one_out.remove is not None
  )
  embeddings = EmbeddingStore(stored_tiles, max_bytes)
  progress.announce(FIT)
  fit = one_pass.fit_one_pass(run, config.fit.batch_size, config.fit.log_every, embeddings)
  progress.announce(CALIBRATION)
  peak_mb, fit_s, extractor = memory.peak_mb(), fit.fit_seconds, fit.extractor
  state_bytes = fit.state_bytes
  on_fitted(run.detector, fit.fitted)
  arrays_sha256 = array_file.save_arrays(model_folder, fit.fitted)
  calibration_start = time.perf_counter() - fit.calibration_seconds
  validation_scores = _score_validation(config, run, fit.fitted, validation_records)
  labeled_scores = _score_labeled(config, run, fit.fitted, labeled_records)
  del fit  # PaDiM's Gaussians may take gigabytes, and so may those of the leave-one-out models.
  one_pass.release_memory(state_bytes)
  batch_size = config.evaluate.batch_size
  scores = leave_one_out.score(run, extractor, embeddings, batch_size).join(validation_scores)
  thresholds = labeled.calibrate(config.calibrate, scores, labeled_scores)
  learned_images = image_table.to_learned_images(run.image_table, run.cache)
  incremental_state.save_images(run.state_dir, learned_images)
  arrays = incremental_state.load_state_arrays(run.state_dir, memory_map=True)
  sample = leave_one_out.embed(run, extractor, embeddings, stored_records, batch_size)
  summary = run.incremental.summarize(arrays, sample)
  model_config = _with_bits(config, run.cache)
  model_dir.save_manifest(
    model_folder, model_config, thresholds, scores, statistics, weights, summary, arrays_sha256,
    run.cache.ops.region,
  )  # fmt: skip
  timing = _timing(fit_s, len(run.records), calibration_start, peak_mb)
  one_pass.release_memory(state_bytes)
  best = {'score': None, 'checkpoint': None, 'model_dir': 'model'}
  result: Result = {'models': {'best': best}, 'summary': summary, 'timing': timing}
  if run.previous.num_images:
    result['drift'] = run.incremental.drift(run.previous.state_arrays, arrays)
  return result, thresholds


def _with_bits(config: Settings, cache: ImageCache) -> Settings:
  """Return the configuration with the bit depth by which images were read instead of `auto`."""
  bits = str(cache.pixel_range.bits)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, bits=bits))


def _range_of_statistics(records: Sequence[Record], cache: ImageCache) -> StatisticsRange:
  return StatisticsRange.from_statistics(cache.properties(r.path).statistics for r in records)


def _build_one_pass(
  config: Settings,
  records: Sequence[Record],
  previous: incremental_state.LearnedImages,
  cache: ImageCache,
  mesh: meshes.Mesh,
) -> tuple[backbones.Backbone, Detector]:
  num_tiles = len(cache.list_tiles((record.path for record in records), with_copies=True))
  state_mesh = meshes.state_mesh(mesh, config.mesh.shard_state)
  extra = meshes.micro_batch_size(mesh, config.fit.batch_size) // mesh.size
  context = model_dir.scoring_context(cache.ops)._replace(
    max_images=num_tiles, num_previous_images=len(previous.tile_ids),
    progress=progress.show_progress,
    shards=meshes.shards(state_mesh), max_extra_images_per_shard=extra,
    inspected_share=cache.inspected_share(records[0].path),
  )  # fmt: skip
  return model_dir.build_detector(config, context)


def _describe_images(num_images: int, num_copies: int, num_previous: int) -> str:
  copies = f', augmented copies of each: {num_copies}' if num_copies else ''
  earlier = f', after {num_previous} in earlier runs' if num_previous else ''
  return f'{num_images} good images for training{copies}{earlier}'


def _log_start(
  config: Settings,
  images: str,
  records: Sequence[Record],
  weights: pretrained_weights.Provenance,
  mesh: meshes.Mesh,
) -> None:
  num_distinct = len(record_types.distinct(records))
  if num_distinct < len(records):
    images += f' ({num_distinct} of all {len(records)} are distinct: near-duplicates count once)'
  log.LOG.info(
    '%s: %s; %s (weights: %s), on %d device(s) of %s%s', workdirs.category_name(config), images,
    config.backbone.name, weights.source, mesh.size, config.device, processes.describe_process(),
  )  # fmt: skip


def _score_validation(
  config: Settings, run: one_pass.OnePassRun, fitted: PyTree, records: Sequence[Record]
) -> calibration.CalibrationScores:
  """Score images that the detector has not learned from."""
  if not records:
    return scoring.collect_calibration_scores(())
  fitted, specs = _pad_to_shards(run, fitted)
  batch_size = min(config.evaluate.batch_size, len(records))
  scored = scoring.score_records(
    scoring.image_scorer(run.detector), fitted, records, run.cache, batch_size, run.mesh,
    run.detector.image_score, specs,
  )  # fmt: skip
  return scoring.collect_calibration_scores(scored)


def _pad_to_shards(run: one_pass.OnePassRun, fitted: PyTree) -> tuple[PyTree, PyTree]:
  """Return fitted parameters, padded to equal shards if they are sharded, and their specs."""
  specs = run.detector.sharding_specs
  return (specs.pad_to_shards(fitted), specs.fitted) if specs else (fitted, None)


def _score_labeled(
  config: Settings, run: one_pass.OnePassRun, fitted: PyTree, records: Sequence[Record]
) -> labeled.LabeledScores | None:
  if not records:
    return None
  scorer, batch_size = scoring.image_scorer(run.detector), config.evaluate.batch_size
  fitted, fitted_specs = _pad_to_shards(run, fitted)
  return labeled.score(
    scorer, fitted, records, config.data.mask, run.cache, batch_size, run.mesh,
    run.detector.image_score, fitted_specs,
  )  # fmt: skip


def _require_same_settings(config: Settings, previous_info: model_dir.ModelInfo) -> None:
  """Compare the settings that must be those of the run to extend."""
  settings, previous_settings = (
    configs.flatten(configs.to_plain_dict(c)) for c in (config, previous_info.config)
  )
  previous_run = configs.flatten(model_dir.read_settings(previous_info.directory))
  previous_settings['fit.augment'] = previous_run.get('fit.augment', '')
  previous_settings['seed'] = previous_run.get('seed')
  # Copies of earlier images are made again, to remove these images from a model.
  fixed = (*_FIXED_ON_EXTEND, 'seed') if config.fit.augment else _FIXED_ON_EXTEND
  # Compare the name first: for another detector, messages about its options would be misleading.
  for key in ('detector.name', *settings):
    value, previous = settings[key], previous_settings.get(key)
    is_decided_later = (key, value) == ('data.bits', AUTO)  # As that of the previous model.
    if key.startswith(fixed) and previous != value and not is_decided_later:
      model = f'the model to extend, {config.fit.extend}'
      message = f'{key} is {value!r}, but {model}, has {previous!r}.'
      refuse(key, value, message, 'Pass ', Setting(key, previous), '.', allowed=(previous,))


def _require_whole_images(config: Settings) -> None:
  """Refuse settings that need whole images where a detector sees tiles."""
  if not transforms.parse(config.data.ops).is_tiled:
    return
  for name, purpose in _NEED_WHOLE_IMAGES.items():
    value = getattr(config.detector, name, False)  # PatchCore has them.
    if value:
      key = f'detector.{name}'
      message = f'{key} {purpose} an image, but data.ops cuts it into tiles.'
      hint = 'Omit ', Setting(key), ', or tile(...) from ', Setting('data.ops'), '.'
      refuse(key, value, message, *hint, allowed=type(value)())


def _require_same_weights(
  weights: pretrained_weights.Provenance, previous_weights: pretrained_weights.Provenance
) -> None:
  if weights.sha256 != previous_weights.sha256:
    new, old = (f'{w.source} ({w.sha256[:12]}…)' for w in (weights, previous_weights))
    message = f'The weights are {new}, but the model to extend has {old}, whose features differ.'
    hint = 'Set ', Setting('backbone.weights'), ' to those weights.'
    refuse('backbone.weights', weights.source, message, *hint, allowed=(previous_weights.source,))


def _format_numbers(numbers: dict[str, int | float]) -> str:
  return ', '.join(f'{key} {value:.6g}' for key, value in numbers.items())


def _timing(fit_s: float, num_images: int, calibration_start: float, peak_mb: int | None) -> Result:
  return {
    'fit_s': fit_s,
    'calibrate_s': time.perf_counter() - calibration_start,
    'images_per_s': num_images / fit_s,
    'peak_memory_mb': peak_mb,
  }


def _model_paths(workdir: Path, best: hooks.BestStep) -> Result:
  steps = enumerate(reversed(workdirs.saved_steps(workdir)), 1)
  rolling_paths = {f'last_{n}': f'checkpoints/rolling/{step}' for n, step in steps}
  best_path = f'checkpoints/best/{best.step}'
  best_paths = {'score': best.loss, 'checkpoint': best_path, 'model_dir': 'model'}
  return rolling_paths | {'best': best_paths}
