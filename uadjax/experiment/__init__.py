"""An experiment by mode: from a configuration to the files in its work directory.

Modes are functions (configuration, work directory) -> result in the table `MODES`: train, evaluate,
predict, check_dataset, export. `fit_model` is training from Python.
"""

from collections.abc import Callable, Mapping
import contextlib
import logging
from pathlib import Path
import shutil
import time
from typing import Any

import jax

from uadjax import config as configs, data
from uadjax.data import prepare
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import ConfigError, DataError, Interrupted, UnknownName, UserError
from uadjax.evaluation import evaluate
from uadjax.experiment import evaluate_run
from uadjax.export import exporter
from uadjax.inference import pipelines, predictor as predictors, score_table
from uadjax.model import calibration, model_dir
from uadjax.system import files, logging as log, progress, signals
from uadjax.training import resolve_backbone, train as training, workdir as workdirs
from uadjax.types import Config

Result = dict[str, Any]


def run(config: Config, workdir: Path) -> Result:
  """Carry out `config.mode`; the result is that of its result file."""
  # Whatever is made outside a mesh belongs on the chosen device too.
  with jax.default_device(meshes.own(meshes.devices(config.device))[0]):
    return MODES[mode(config.mode)](config, workdir)


def recorded(config: Config, workdir: Path) -> Result:
  """The same, with its log and result file in `workdir`."""
  name = mode(config.mode)
  workdirs.make(workdir)
  with signals.raised(), log.logging_to(workdir / f'{name}.log'):
    try:
      result = run(config, workdir)
      workdirs.succeed(workdir, name, result)
    except (Exception, Interrupted) as error:
      with contextlib.suppress(OSError):  # Of a disk that is full or read-only, say.
        workdirs.fail(workdir, name, error)
      raise
  return result


def mode(name: str) -> str:
  """The name, if it is a mode's."""
  if name not in MODES:
    raise UnknownName(f'Unknown mode {name!r}; choose from {sorted(MODES)}.')
  return name


def train(config: Config, workdir: Path) -> Result:
  """Fit, calibrate, save and evaluate a detector, or one for each category of a group."""
  return _over_categories(_train, resolve_backbone.settle(config, workdir), workdir)


def _train(config: Config, workdir: Path) -> Result:
  splits = prepare.checked_splits(config)
  processes.meet('fitting', config.hosts.wait_s)
  trained = training.train(config, splits, workdir)
  processes.meet('judging', config.hosts.wait_s)
  timing, began = trained.pop('timing'), time.perf_counter()
  model = _placed(config, workdir / 'model')
  loaded_s = time.perf_counter() - began
  judged = {}
  if config.evaluate.do_eval:
    judged = evaluate_run.assess(model, splits.test, config, workdir, timing)
  timing['evaluate_s'] = loaded_s + judged.pop('timing', {}).get('evaluate_s', 0.0)
  return {'model_name': model.name, **trained, 'timing': timing, **judged}


def check_dataset(config: Config, workdir: Path) -> Result:
  """Convert and split the data set if asked to, then tell all that is wrong with it."""
  result = _over_categories(prepare.run_check, prepare.convert_and_resplit(config), workdir)
  if 'categories' in result:
    result['check_pass'] = all(one['check_pass'] for one in result['categories'].values())
  return result


def evaluate_model(config: Config, workdir: Path) -> Result:
  """Evaluate a model directory on the test set that the configuration names."""

  def one(config: Config, workdir: Path) -> Result:
    model = _opened(config, workdir)
    if config.data.ops != model.config.data.ops:
      log.LOG.info('data.ops is that of the model, %s.', model.ops)
    if config.detector.name.lower() != model.name.lower():
      log.LOG.info('The model is a %s, whatever the configuration says.', model.name)
    return evaluate_run.assess(model, prepare.checked_test_set(config), config, workdir)

  if not config.data.root:  # Then the model's own data are meant, not what is drawn.
    config = config.copy_and_resolve_references().unlock()
    config.data = model_dir.about(config.evaluate.model_dir or workdir / 'model').config.data
  return _over_categories(one, config, workdir)


def predict_files(config: Config, workdir: Path) -> Result:
  """Score a file or a folder; leave a picture and a JSON file for each image."""
  own = config.predict
  if not own.input:
    raise ConfigError('predict.input is not set; name an image or a folder.')
  if processes.several() and not own.table:
    raise ConfigError(
      'Several processes judge images into one table; name a folder that all see in predict.table.'
    )
  if own.shard != 'auto' and not own.table:
    raise ConfigError(
      f'predict.shard={own.shard} is of a table; name its folder in predict.table, or leave it out.'
    )
  predictor = pipelines.create_model(
    model_dir=own.model_dir or workdir / 'model',
    device=config.device,
    threshold=own.threshold,
    review_threshold=own.review_threshold,
    pixel_threshold=own.pixel_threshold,
    backend=own.backend,
  )
  if own.table:
    return _into_table(predictor, own)
  folder = workdir / 'predictions'
  shutil.rmtree(folder, ignore_errors=True)  # Of an earlier run, maybe of other images.
  folder.mkdir()
  results = predictor.predict(own.input, own.batch_size, skip=folder)
  summaries = []
  for result in progress.track(predictors.saved(results, folder), None, 'Predicting'):
    summaries.append(result.summary())
    level = logging.WARNING if result.error else logging.INFO
    log.LOG.log(level, '%s', result.error or result.headline)
  failed = sum('error' in summary for summary in summaries)
  if failed == len(summaries):
    raise DataError(f'None of {failed} files could be read; the first: {summaries[0]["error"]}')
  if failed:
    log.LOG.warning('%d of %d files could not be read.', failed, len(summaries))
  return {'model_dir': str(predictor.model.directory), 'failed': failed, 'results': summaries}


def _into_table(predictor: predictors.Predictor, own: Config) -> Result:
  table = score_table.Table(Path(own.table), own.format, processes.part(own.shard))
  told = score_table.judge(predictor, own.input, table, own.batch_size, progress.track)
  log.LOG.info('%s: %s.', table.folder, told)
  if told.unread:
    log.LOG.warning('%d images could not be read; their rows say why.', told.unread)
  return {
    'model_dir': str(predictor.model.directory),
    'failed': told.unread,
    'table': own.table,
    'part': list(table.part),
    'judged': dict(told.counts),
    'judged_before': dict(told.before),
  }


def export_model(config: Config, workdir: Path) -> Result:
  """Write a model for another runtime, and compare it with the original there."""
  own = config.export
  model = model_dir.load(own.model_dir or workdir / 'model')
  done = exporter.export(
    model,
    own.format,
    Path(own.output) if own.output else None,
    own.batch,
    exporter.size(own.include_resize),
    Path(own.images) if own.images else None,
    own.quantize,
  )
  log.LOG.info('%s', done)
  return {'model_dir': str(model.directory), **done.told()}


def _opened(config: Config, workdir: Path) -> model_dir.Model:
  """The model to evaluate, with the thresholds that are overridden."""
  options = config.evaluate
  model = _placed(config, options.model_dir or workdir / 'model')
  thresholds = options.threshold, options.review_threshold, options.pixel_threshold
  return model._replace(limits=calibration.override(model.limits, *thresholds))


def _placed(config: Config, directory: Path | str) -> model_dir.Model:
  """A model on the devices of the configuration, split over them where fitting splits it."""
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  return model_dir.load(directory, meshes.apart(mesh, config.mesh.split))


MODES: Mapping[str, Callable[[Config, Path], Result]] = {
  'train': train,
  'evaluate': evaluate_model,
  'predict': predict_files,
  'check_dataset': check_dataset,
  'export': export_model,
}


def _over_categories(
  one: Callable[[Config, Path], Result], config: Config, workdir: Path
) -> Result:
  """Do it for one category in `workdir`, or for each of a group in `workdir/<category>`.

  In a group a category that fails is reported, and the others go on.
  """
  names = data.expand(config.data)
  drawn = not config.data.root
  if drawn:
    log.LOG.info('data.root is not set: using pictures that uadjax draws itself.')
  if names == [config.data.category] or (drawn and not config.data.category):
    own = _of_category(config, names[0])
    return _summed_up(own, workdir, done := one(own, workdir), {names[0]: done})
  log.LOG.info('%s: %s', config.data.category, ', '.join(names))
  files.write_text(workdir / 'config.yaml', configs.to_yaml(workdirs.portable(config)))
  results, failures = {}, {}
  for name in names:
    own, folder = _of_category(config, name), workdir / name
    # A sweep that was cut off goes on where it was, keeps what has no steps to go on with but is
    # done, and begins the rest.
    going_on, begun = config.mode == 'train' and config.fit.resume, workdirs.steps(folder)
    if not begun:
      own.fit.resume = ''
    folder.mkdir(parents=True, exist_ok=True)
    try:
      if going_on and not begun and (done := workdirs.finished(folder, own)):
        results[name] = done
        log.LOG.info('%s: done before.', name)
        continue
      results[name] = _summed_up(own, folder, done := one(own, folder), {name: done})
      workdirs.succeed(folder, config.mode, results[name])
    except UserError as error:
      failures[name] = str(error)
      workdirs.fail(folder, config.mode, error)
      log.LOG.error('%s: %s', name, error)
  result = _summed_up(config, workdir, {'categories': results}, results)
  if failures:
    told = ' '.join(f'{name}: {message}' for name, message in failures.items())
    raise UserError(f'{len(failures)} of {len(names)} categories failed. {told}')
  return result


def _summed_up(
  config: Config, workdir: Path, result: Result, results: Mapping[str, Result]
) -> Result:
  """Write the CSV, and add what concerns all categories to the result."""
  label = workdirs.label(config)
  rows = {name or label: r['metrics'] for name, r in results.items() if 'metrics' in r}
  if not rows:
    return result
  evaluate.write_csv(workdir / f'{label}.csv', rows)
  result = {'metrics': evaluate.means(rows), **result, 'per_category': rows}
  if config.mode == 'train':
    told = {key: result[key] for key in ('metrics', 'weights', 'per_category') if key in result}
    workdirs.succeed(workdir, 'evaluate', told)
  return result


def _of_category(config: Config, name: str) -> Config:
  own = config.copy_and_resolve_references()
  own.data.category = name
  return own
