"""Experiments: runs of a mode, from a configuration to the files in a work directory.

The modes are the functions (configuration, work directory) -> result in the table `_RUN_BY_MODE`.
`validation` refuses a run before it reads, fetches or writes anything. `fit_model` is training from
Python.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import logging
from pathlib import Path
import shutil
import time
from typing import Any

import jax

from uadjax import config as configs, data
from uadjax.data import augment, pixel_range, prepare, transforms
from uadjax.data.checks import unused_files
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.data.settings import DataSettings
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import DataError, Interrupted, UserError
from uadjax.evaluation import evaluate
from uadjax.experiment import evaluate_run, score_program, validation
from uadjax.export import exporter, settings as export_settings
from uadjax.inference import parts, pipelines, predictor as predictors, score_table
from uadjax.inference.settings import PredictSettings
from uadjax.model import calibration, model_dir
from uadjax.system import files, logging as log, memory, progress, signals
from uadjax.training import resolve_backbone, train as training, workdir as workdirs
from uadjax.training.settings import Settings

Result = dict[str, Any]
Run = Callable[[Settings, Path], Result]


def run(config: Settings, workdir: Path) -> Result:
  """Run `config.mode` on the configured device; write a log and a result file into `workdir`.

  Hold `workdirs.lock`, so that no other run changes the same files. Call `validation.validate`
  first, so that a run that cannot start leaves nothing behind.

  Raises:
    UserError: the data, the settings or the machine do not allow the run.
    Interrupted: the run was asked to stop.
  """
  mode = config.mode
  workdirs.create(workdir)  # A run without a lock has not created it.
  with signals.raise_on_signal(), log.logging_to(workdir / f'{mode}.log'):
    try:
      # Arrays that are created outside a mesh must be on the chosen device, too.
      with jax.default_device(meshes.local_devices(meshes.select_devices(config.device))[0]):
        result = _RUN_BY_MODE[mode](config, workdir)
      workdirs.write_result(workdir, mode, result)
    except (Exception, Interrupted) as error:
      with contextlib.suppress(OSError):  # The disk may be full or read-only.
        workdirs.write_failure(workdir, mode, error)
      raise
  return result


def train(config: Settings, workdir: Path) -> Result:
  """Fit, calibrate, save and evaluate a detector, or one detector per category of a group."""
  return _run_over_categories(_train, resolve_backbone.resolve_backbone(config, workdir), workdir)


def _train(config: Settings, workdir: Path) -> Result:
  listed = data.scan(config.data).splits
  steps = [*map(progress.Step, (evaluate_run.CHECK, *training.step_titles(config)))]
  num_before_evaluation = len(steps)
  if config.evaluate.do_eval and listed.test:
    steps.append(progress.Step(evaluate_run.EVALUATION))
  with progress.planned_steps(steps):
    start = time.perf_counter()
    progress.announce(evaluate_run.CHECK)
    dataset = _decide_bits(config, listed.train)
    ops = _load_ops(config, dataset)
    augmentation = augment.parse(config.fit.augment, config.seed)
    cache = ImageCache(ops, config.fit.cache_bytes, dataset.pixel_range, augmentation)
    splits = prepare.checked_splits(
      dataset, config.check.enforce, training.min_images(config), cache.add, ops
    )
    check_s = time.perf_counter() - start
    evaluate_run.check_parts(config, splits.test)
    del steps[num_before_evaluation:]  # The check may have excluded test images, even all.
    if splits.test and config.evaluate.do_eval:
      steps.append(progress.Step(evaluate_run.EVALUATION, len(splits.test)))
    processes.barrier('fitting', config.hosts.wait_s)
    program = score_program.ScoreProgram(config)
    on_fitted = program.compile if config.evaluate.do_eval and splits.test else None
    training_result = training.train(config, splits, cache, workdir, on_fitted)
    processes.barrier('evaluation', config.hosts.wait_s)
    memory.release_free_memory()  # Compiled programs and embeddings of the fit are gone.
  timing = {'check_s': check_s, **training_result.pop('timing')}
  start = time.perf_counter()
  model = program.give_to(_load_on_mesh(config, workdir / 'model'))
  load_s = time.perf_counter() - start
  evaluation = {}
  if config.evaluate.do_eval:
    evaluation = evaluate_run.evaluate_and_report(
      model, splits.test, config, workdir, timing, None, cache.images
    )
  timing['evaluate_s'] = load_s + evaluation.pop('timing', {}).get('evaluate_s', 0.0)
  return {'model_name': model.name, **training_result, 'timing': timing, **evaluation}


def _decide_bits(config: Settings, training: Sequence[Record]) -> DataSettings:
  """Return the settings of the data with a definite bit depth, that of the model to extend."""
  if config.fit.extend and config.data.bits == pixel_range.AUTO:
    bits = model_dir.read_info(config.fit.extend).config.data.bits
    return dataclasses.replace(config.data, bits=bits)
  return data.decide_bits(config.data, training)


def _load_ops(config: Settings, dataset: DataSettings) -> transforms.Ops:
  """Return the operations that scale images, with the region of interest of the run.

  A run that extends a model takes both from it.
  """
  if config.fit.extend:
    return model_dir.read_info(config.fit.extend).ops
  return data.load_ops(dataset)


def check_dataset(config: Settings, workdir: Path) -> Result:
  """Convert and resplit the dataset if configured, then report all problems in it."""
  dataset = prepare.convert_and_resplit(config.data, config.check, config.seed)
  config = dataclasses.replace(config, data=dataset)
  result = _run_over_categories(lambda c, w: prepare.run_check(c.data, w), config, workdir)
  if categories := result.get('categories'):
    result['check_pass'] = all(category['check_pass'] for category in categories.values())
  return result


def evaluate_model(config: Settings, workdir: Path) -> Result:
  """Evaluate the model directory `evaluate.model_dir` on the test set of the configuration."""

  def evaluate_category(config: Settings, workdir: Path) -> Result:
    model = _load_for_evaluation(config, workdir)
    evaluate_run.log_ignored_settings(config.data, model.config.data)
    if config.detector.name != model.config.detector.name:
      log.LOG.info('Evaluating a %s model; the detector in the config is ignored.', model.name)
    return evaluate_run.check_and_evaluate(model, config, workdir)

  if not config.data.root:  # The default is the dataset of the model, not the demo dataset.
    info = model_dir.read_info(config.evaluate.model_dir or workdir / 'model')
    config = dataclasses.replace(config, data=info.config.data)
  return _run_over_categories(evaluate_category, config, workdir)


def predict_files(config: Settings, workdir: Path) -> Result:
  """Score the images of `predict.input`, and save a result image and a JSON file for each.

  With `predict.table` the results become rows of a table instead.

  Raises:
    DataError: no file could be read.
  """
  options = config.predict
  predictor = pipelines.create_model(
    model_dir=options.model_dir or workdir / 'model',
    device=config.device,
    **calibration.by_name(options),
    backend=options.backend,
  )
  if options.table:
    return _predict_to_table(predictor, options)
  output_dir = workdir / 'predictions'
  # Results of an earlier run may belong to other images.
  shutil.rmtree(output_dir, ignore_errors=True)
  output_dir.mkdir()
  results = predictor.predict(options.input, options.batch_size, skip=output_dir)
  saved_results = predictors.save_results(results, output_dir)
  summaries, verdicts = [], parts.PartVerdicts(options.part_pattern)
  for result in progress.show_progress(saved_results, None, 'Predicting'):
    part = verdicts.add_image(result.input_path, result.label)
    summaries.append({**result.summary(), **({'part': part} if part else {})})
    level = logging.WARNING if result.error else logging.INFO
    log.LOG.log(level, '%s', result.error or result.headline)
  errors = [summary['error'] for summary in summaries if 'error' in summary]
  if len(errors) == len(summaries):
    raise DataError(f'None of the {len(errors)} files could be read. First error: {errors[0]}')
  if errors:
    log.LOG.warning('%d of %d files could not be read.', len(errors), len(summaries))
  directory = str(predictor.model.directory)
  parts_field = {'parts': verdicts.rows()} if options.part_pattern else {}
  return {'model_dir': directory, 'failed': len(errors), 'results': summaries, **parts_field}


def _predict_to_table(predictor: predictors.Predictor, options: PredictSettings) -> Result:
  shard = processes.resolve_shard(options.shard)
  table = score_table.Table(Path(options.table), options.format, shard, options.part_pattern)
  summary = score_table.score_images(
    predictor, options.input, table, options.batch_size, progress.show_progress
  )
  log.LOG.info('%s: %s.', table.folder, summary)
  if num_failed := summary.num_unreadable:
    log.LOG.warning('%d images could not be read; their rows contain the error.', num_failed)
  return {
    'model_dir': str(predictor.model.directory),
    'failed': num_failed,
    'table': options.table,
    'shard': list(shard),
    'scored': dict(summary.counts),
    'scored_before': dict(summary.previous_counts),
    **({'parts': dict(summary.part_verdicts.counts)} if table.part_pattern else {}),
  }


def export_model(config: Settings, workdir: Path) -> Result:
  """Export a model for another runtime, and verify its scores against those of the model."""
  options = config.export
  model = model_dir.load(options.model_dir or workdir / 'model')
  export_result = exporter.export(
    model,
    options.format,
    Path(options.output) if options.output else None,
    options.batch,
    export_settings.parse_size(options.include_resize),
    Path(options.images) if options.images else None,
    options.quantize,
  )
  log.LOG.info('%s', export_result)
  return {'model_dir': str(model.directory), **export_result.to_dict()}


def _load_for_evaluation(config: Settings, workdir: Path) -> model_dir.Model:
  """Load the model to evaluate, and apply the thresholds of the configuration to it."""
  options = config.evaluate
  model = _load_on_mesh(config, options.model_dir or workdir / 'model')
  thresholds = calibration.override(model.thresholds, 'evaluate', **calibration.by_name(options))
  return model._replace(thresholds=thresholds)


def _load_on_mesh(config: Settings, directory: Path | str) -> model_dir.Model:
  """Load a model onto the configured devices, sharded as in fitting."""
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  return model_dir.load(directory, meshes.state_mesh(mesh, config.mesh.shard_state))


def _run_over_categories(run_category: Run, config: Settings, workdir: Path) -> Result:
  """Run one category in `workdir`, or each category of a group in `workdir/<category>`.

  In a group, a failed category is reported after the other categories have run.

  Raises:
    UserError: at least one category of a group failed.
  """
  categories = data.expand(config.data)
  if not config.data.root:
    log.LOG.info('data.root is empty; using the synthetic images of the demo dataset.')
  if validation.is_single(config, categories):
    config = configs.replace(config, {'data.category': categories[0]})
    return _with_metrics(config, workdir, run_category(config, workdir))
  log.LOG.info('%s: %s', config.data.category, ', '.join(categories))
  if not_used := data.unused_in_root(config.data, categories):
    text = unused_files.describe(not_used)
    log.LOG.warning('%s has files outside of its categories. %s', config.data.root, text)
  files.write_text(workdir / 'config.yaml', configs.to_yaml(workdirs.without_run_options(config)))
  results, failures = {}, {}
  for category in categories:
    category_config = configs.replace(config, {'data.category': category})
    category_dir = workdir / category
    try:
      with workdirs.lock(category_dir, config):
        results[category] = _run_in_group(run_category, category_config, category_dir)
    except UserError as error:
      failures[category] = str(error)
      log.LOG.error('%s: %s', category, error)
  result = _with_metrics(config, workdir, {'categories': results})
  if failures:
    messages = ' '.join(f'{category}: {message}' for category, message in failures.items())
    raise UserError(f'{len(failures)} of {len(categories)} categories failed. {messages}')
  return result


def _run_in_group(run_category: Run, config: Settings, workdir: Path) -> Result:
  """Run a category of a group, and write its result.

  An interrupted group resumes categories with checkpoints, keeps finished categories that have none
  (one-pass detectors), and starts the others.
  """
  if not workdirs.saved_steps(workdir):
    is_resuming = config.mode == 'train' and config.fit.resume
    config = configs.replace(config, {'fit.resume': ''})
    if is_resuming and (finished := workdirs.finished_result(workdir, config)):
      log.LOG.info('%s: already finished, skipped.', config.data.category)
      return finished
    if is_resuming:  # The model may be saved, although the run was interrupted afterwards.
      config = configs.replace(config, {'fit.overwrite': True})
  try:
    result = _with_metrics(config, workdir, run_category(config, workdir))
  except UserError as error:
    workdirs.write_failure(workdir, config.mode, error)
    raise
  workdirs.write_result(workdir, config.mode, result)
  return result


def _with_metrics(config: Settings, workdir: Path, result: Result) -> Result:
  """Write the metrics of a run, or of the categories of a group, as CSV.

  Returns:
    The result with the mean of the metrics, and with the metrics by category.
  """
  label = workdirs.category_name(config)
  category_results = result.get('categories', {config.data.category: result})
  metrics = {
    category or label: category_result['metrics']
    for category, category_result in category_results.items()
    if 'metrics' in category_result
  }
  if not metrics:
    return result
  evaluate.write_csv(workdir / f'{label}.csv', metrics)
  result = {'metrics': evaluate.mean_metrics(metrics), **result, 'per_category': metrics}
  if config.mode == 'train':
    names = 'metrics', 'warnings', 'weights', 'per_category'
    keys = [key for key in names if key in result]
    workdirs.write_result(workdir, 'evaluate', {key: result[key] for key in keys})
  return result


_RUN_BY_MODE: Mapping[str, Run] = {
  'train': train,
  'evaluate': evaluate_model,
  'predict': predict_files,
  'check_dataset': check_dataset,
  'export': export_model,
}
