"""An experiment by mode: from a configuration to the files that it leaves behind."""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
import shutil
import time
from typing import Any

import jax
import numpy as np
import yaml

from uadjax import (
  bundle,
  calibrate,
  checkpoint,
  config as configs,
  data,
  evaluate,
  files,
  fit,
  hostmemory,
  interrupts,
  predict,
  score,
  sharding,
)
from uadjax.backbones import pretrained
from uadjax.data import datasets, preprocess
from uadjax.telemetry import LOG, track
from uadjax.types import Config, ConfigError, Record, Spec, UnknownName

Result = dict[str, Any]

# Changing one of these halfway would make a run that no configuration describes.
_FIXED = (
  'seed', 'data.', 'backbone.', 'detector.',
  'fit.batch_size', 'fit.held_out', 'fit.learning_rate', 'fit.warmup_steps', 'fit.eval_every',
)  # fmt: skip


def run(config: Config, workdir: Path) -> Result:
  """Carry out `config.mode`; the result is that of its result file."""
  return MODES[mode(config.mode)](config, workdir)


def mode(name: str) -> str:
  """The name, if it is a mode's."""
  if name not in MODES:
    raise UnknownName(f'Unknown mode {name!r}; choose from {sorted(MODES)}.')
  return name


def leave(workdir: Path, mode: str, result: Result) -> None:
  """Write the result file of a mode that did what it should."""
  files.write_json(workdir / f'{mode}_result.json', {'done_flag': True, **result})


def default_workdir(config: Config) -> Path:
  """Where a run goes that was not told."""
  return Path('runs') / '_'.join(filter(None, (config.detector.name, config.data.category)))


def train(config: Config, workdir: Path) -> Result:
  """Fit, calibrate, save and evaluate a detector, or one for each category of a group."""
  return _over_categories(_train, config, workdir)


def _train(config: Config, workdir: Path) -> Result:
  calibrate.check(config.calibrate.budget)
  _claim(workdir, config)
  splits = data.load(config.data)
  datasets.verify(splits.train)
  parts = fit.Parts(*datasets.split(splits.train, _shares(config.fit.held_out), config.seed))
  ops = preprocess.parse(config.data.ops)
  spec = Spec(ops.height, ops.width, len(parts.learn), fit.schedule(config.fit))
  backbone, detector = bundle.assemble(config, spec)
  variables, weights = pretrained.load(config.backbone.weights, backbone)
  LOG.info('%s %s: %s', config.data.category, config.backbone.name, weights.source)
  mesh = sharding.make_mesh(
    config.device, config.mesh.data, min(config.fit.batch_size, spec.images)
  )
  with interrupts.noted() as stop:
    fitted = fit.fit(detector, variables, config, parts, mesh, workdir, stop)
  timing = {
    'fit_s': fitted.seconds,
    'images_per_s': fitted.images / fitted.seconds,
    'peak_memory_mb': hostmemory.peak_mb(),
  }
  began = time.perf_counter()
  limits = _calibrate(detector.score, fitted.fitted, parts.calibrate, config, mesh)
  timing['calibrate_s'] = time.perf_counter() - began
  model = bundle.load(bundle.save(workdir / 'model', config, fitted.fitted, limits, weights))
  LOG.info('Model saved in %s. %s', model.directory, limits)
  result = {
    'model_name': model.name,
    'train_log': 'train.log',
    'config': 'config.yaml',
    'models': _models(workdir, fitted.best),
    'timing': timing,
  }
  if config.evaluate.do_eval:
    began = time.perf_counter()
    judged = _evaluate(model, splits.test, config, workdir, mesh)
    timing['evaluate_s'] = time.perf_counter() - began
    leave(workdir, 'evaluate', judged)
    result |= judged
  return result


def evaluate_model(config: Config, workdir: Path) -> Result:
  """Evaluate a model directory on the test set that the configuration names."""

  def one(config: Config, workdir: Path) -> Result:
    model = bundle.load(config.evaluate.model_dir or workdir / 'model')
    rows = config.evaluate.batch_size
    mesh = sharding.make_mesh(config.device, config.mesh.data, rows)
    return _evaluate(model, data.load(config.data).test, config, workdir, mesh)

  return _over_categories(one, config, workdir)


def predict_files(config: Config, workdir: Path) -> Result:
  """Score a file or a folder; leave a picture and a JSON file for each image."""
  model = bundle.load(config.predict.model_dir or workdir / 'model')
  root = Path(config.predict.input)
  if not config.predict.input or not root.exists():
    raise ConfigError(
      f'predict.input={config.predict.input!r} is not there; name an image or a folder.'
    )
  paths = datasets.below(root) if root.is_dir() else [root]
  folder = workdir / 'predictions'
  options = config.predict
  results = predict.predict(model, paths, options.batch_size, options.threshold)
  summaries = []
  for path, result in zip(paths, track(results, len(paths), 'Predicting'), strict=True):
    # Folders are kept: MVTec AD has a 000.png in each of them.
    stem = folder / (path.relative_to(root).parent if root.is_dir() else '') / path.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(stem.with_name(f'{stem.name}_res.json'), result.summary())
    if not result.error:
      predict.picture(model, result).save(stem.with_name(f'{stem.name}_res.png'))
    summaries.append(result.summary())
    LOG.info('%s: %s', path, result.error or predict.headline(result))
  return {'model_dir': str(model.directory), 'results': summaries}


MODES: Mapping[str, Callable[[Config, Path], Result]] = {
  'train': train,
  'evaluate': evaluate_model,
  'predict': predict_files,
}


def _over_categories(
  one: Callable[[Config, Path], Result], config: Config, workdir: Path
) -> Result:
  """Do it for one category in `workdir`, or for each of a group in `workdir/<category>`."""
  if not config.data.root:
    LOG.info('data.root is not set: using washers that uadjax draws itself.')
  names = data.expand(config.data)
  if names == [config.data.category] or not config.data.root:
    result = one(_of_category(config, names[0]), workdir)
    rows = {names[0]: result['metrics']} if 'metrics' in result else {}
  else:
    LOG.info('%s: %s', config.data.category, ', '.join(names))
    results = {}
    for name in names:
      own = _of_category(config, name)
      if not checkpoint.steps(workdir / name / 'checkpoints', 'rolling'):
        own.fit.resume = ''  # A sweep that was cut off goes on where it was, and begins the rest.
      (workdir / name).mkdir(parents=True, exist_ok=True)
      results[name] = one(own, workdir / name)
      leave(workdir / name, config.mode, results[name])
    rows = {name: result['metrics'] for name, result in results.items() if 'metrics' in result}
    result = {'categories': results}
  if rows:
    evaluate.write_csv(workdir / f'{config.data.category or names[0]}.csv', rows)
    result = {**result, 'per_category': rows}
    result.setdefault('metrics', evaluate.means(rows))
  return result


def _evaluate(model, test: Sequence[Record], config: Config, workdir: Path, mesh) -> Result:
  metrics = evaluate.evaluate(
    model,
    test,
    mesh,
    config.evaluate.batch_size,
    workdir / 'pictures',
    config.evaluate.save_pictures,
  )
  LOG.info(
    '%s: %s',
    config.data.category,
    ', '.join(f'{k} {v:.4f}' for k, v in metrics.items() if isinstance(v, float)),
  )  # fmt: skip
  return {'metrics': metrics, 'weights': model.weights._asdict()}


def _calibrate(scorer, fitted, records, config: Config, mesh) -> calibrate.Limits:
  ops, rows = preprocess.parse(config.data.ops), config.evaluate.batch_size
  normals = list(score.records(jax.jit(scorer), fitted, records, ops, rows, mesh))
  return calibrate.from_normals(
    np.array([one.image for one in normals]),
    np.array([one.map.max() for one in normals]),
    config.calibrate.budget,
  )


def _of_category(config: Config, name: str) -> Config:
  own = config.copy_and_resolve_references()
  own.data.category = name
  return own


def _shares(held_out: float) -> list[float]:
  if not 0 < held_out < 1:
    raise ConfigError(f'fit.held_out must lie between 0 and 1, got {held_out}.')
  return [1 - held_out, held_out / 2, held_out / 2]


def _models(workdir: Path, best: fit.Best) -> Result:
  steps = checkpoint.steps(workdir / 'checkpoints', 'rolling')[::-1]
  last = {
    f'last_{n}': str(checkpoint.path(Path('checkpoints'), 'rolling', step))
    for n, step in enumerate(steps, 1)
  }
  kept = str(checkpoint.path(Path('checkpoints'), 'best', best.step))
  return {**last, 'best': {'score': best.loss, 'checkpoint': kept, 'model_dir': 'model'}}


def _claim(workdir: Path, config: Config) -> None:
  """Begin a run in a folder, or go on with the one there; never write over one that can go on."""
  saved, done = workdir / 'config.yaml', workdir / 'train_result.json'
  there = checkpoint.steps(workdir / 'checkpoints', 'rolling')
  if config.fit.resume:
    _same_run(saved, config)
  elif there and not (done.is_file() and json.loads(done.read_text()).get('done_flag')):
    raise ConfigError(
      f'{workdir} holds an unfinished run, saved at step {there[-1]}. Go on with '
      '--config.fit.resume=latest, name another --workdir, or delete the folder.'
    )
  else:
    shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)
    shutil.rmtree(workdir / 'tensorboard', ignore_errors=True)
  files.write_text(saved, configs.to_yaml(config))


def _same_run(saved: Path, config: Config) -> None:
  if not saved.is_file():
    raise ConfigError(f'fit.resume is set, but there is no run to go on with in {saved.parent}.')
  before, now = (
    configs.flat(c) for c in (yaml.safe_load(saved.read_text()), configs.plain(config))
  )
  for key in now:
    if key.startswith(_FIXED) and before.get(key) != now[key]:
      raise ConfigError(
        f'{key} is {now[key]!r}, but the run to go on with has {before.get(key)!r}; leave it, or '
        'begin a new run in another --workdir.'
      )
