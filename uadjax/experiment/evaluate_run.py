"""Evaluation of a model on a test set, with its log, pictures, curves and report."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import tempfile
import time
from typing import Any

import numpy as np

from uadjax import config as configs
from uadjax.data import pixel_range, prepare
from uadjax.data.image_cache import ImageCache, SMALL_CACHE_BYTES
from uadjax.data.inputs import LoadedImage
from uadjax.data.records import Record
from uadjax.data.settings import DataSettings
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError
from uadjax.evaluation import curves, evaluate, report as reports, verdicts
from uadjax.evaluation.report import gallery, provenance
from uadjax.experiment import model_thresholds
from uadjax.inference import parts
from uadjax.model import model_dir as model_dirs
from uadjax.system import files, logging, progress, threads
from uadjax.training import workdir as workdirs
from uadjax.training.settings import Settings

# Settings of `data` that say how images are brought to the network.
_SETTINGS_OF_MODEL = 'ops', 'bits', 'range', 'roi'
# Titles of steps.
CHECK, EVALUATION = 'dataset check', 'evaluation'


def evaluate_and_report(
  model: model_dirs.Model,
  test_records: Sequence[Record],
  config: Settings,
  workdir: Path,
  timing: Mapping[str, float] | None = None,
  report_path: Path | None = None,
  loaded_images: Mapping[Path, LoadedImage] | None = None,
) -> dict[str, Any]:
  """Evaluate a model, write scores, pictures, curves and report, and return the result for JSON.

  Args:
    model: model to evaluate.
    test_records: records of the test images; if empty, nothing is evaluated.
    config: configuration of the run.
    workdir: directory for the outputs.
    timing: durations of the training in seconds by name, for the report.
    report_path: HTML file of the report, or None for report.html in `workdir`.
    loaded_images: images that need not be read again; see `evaluate.evaluate`.
  """
  result: dict[str, Any] = {'weights': model.weights._asdict()}
  if not test_records:
    logging.LOG.info('The dataset has no test images; skipping the evaluation.')
    return result
  progress.announce(EVALUATION)
  options, run_label = config.evaluate, workdirs.category_name(config)
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  start = time.perf_counter()
  evaluation = evaluate.evaluate(
    model,
    test_records,
    mesh,
    options.batch_size,
    config.data.mask,
    workdir,
    options.save_pictures,
    loaded_images or {},
    options.part_pattern,
  )
  evaluate_s = time.perf_counter() - start
  titled_curves = evaluation.curve_data._replace(
    title=f'{model.name} on {len(test_records)} test images of {run_label}'
  )
  anomalous_scores = titled_curves.scores[np.array([r.is_anomalous for r in test_records])]
  advice = model_thresholds.advise(model, evaluation.metrics, anomalous_scores)
  evaluation.metrics['threshold_advice'] = advice.to_dict() if advice else None
  warnings = curves.model_warnings(titled_curves)
  _log_result(run_label, titled_curves, evaluation.metrics, warnings)
  if advice:
    logging.LOG.warning('%s', advice)
  # matplotlib keeps one core busy; the pictures of the report are encoded meanwhile.
  with threads.thread_pool(1, 'uadjax-curves') as pool:
    drawing = pool.submit(curves.draw, workdir / 'curves', titled_curves)
    if options.report_pictures:
      report_timing = {**(timing or {}), 'evaluate_s': evaluate_s}
      report_path = report_path or workdir / 'report.html'
      evaluation = evaluation._replace(curve_data=titled_curves)
      _write_report(report_path, model, evaluation, test_records, config, report_timing)
    drawing.result()
  return {
    'metrics': evaluation.metrics,
    'warnings': warnings,
    'timing': {'evaluate_s': evaluate_s},
    **result,
  }


def _write_report(
  path: Path,
  model: model_dirs.Model,
  evaluation: evaluate.Evaluation,
  test_records: Sequence[Record],
  config: Settings,
  timing: Mapping[str, float],
) -> None:
  data = evaluation.curve_data
  indices = gallery.choose(
    test_records,
    data.scores,
    curves.image_labels(data),
    model.thresholds.image_threshold,
    config.evaluate.report_pictures,
  )
  pictures = gallery.make_pictures(
    test_records, evaluation.anomaly_maps, indices, model.ops, config.data.mask, model.pixel_range
  )
  metadata = provenance.collect(model, test_records, timing)
  path.parent.mkdir(parents=True, exist_ok=True)
  reports.write(path, data, evaluation.metrics, test_records, pictures, metadata)
  logging.LOG.info('Report: %s', path)


def log_ignored_settings(dataset: DataSettings, of_model: DataSettings) -> None:
  """Log which settings of a configuration are ignored, because those of the model are used."""
  for name in _SETTINGS_OF_MODEL:
    value, value_of_model = getattr(dataset, name), getattr(of_model, name)
    if value not in (value_of_model, pixel_range.AUTO):
      message = 'Using data.%s of the model, %s; the value in the config is ignored.'
      logging.LOG.info(message, name, value_of_model or repr(''))


def check_parts(config: Settings, test_records: Sequence[Record]) -> None:
  """Check that the part of every test image is known, before a fit or an evaluation.

  Raises:
    ConfigError: the name of an image does not match `evaluate.part_pattern`.
  """
  if pattern := config.evaluate.part_pattern:
    for record in test_records:
      parts.part_of(str(record.path), pattern, parts.EVALUATE_KEY)


def check_and_evaluate(
  model: model_dirs.Model, config: Settings, workdir: Path, report_path: Path | None = None
) -> dict[str, Any]:
  """Check the test set of a dataset, and evaluate a model on it as `evaluate_and_report` does.

  Raises:
    DataError: the check failed, unless `check.enforce` is false; or there are no test images.
  """
  cache = ImageCache(model.ops, SMALL_CACHE_BYTES, model.pixel_range)
  of_model = {name: getattr(model.config.data, name) for name in _SETTINGS_OF_MODEL}
  dataset = dataclasses.replace(config.data, **of_model)
  with progress.planned_steps([progress.Step(CHECK), progress.Step(EVALUATION)]):
    progress.announce(CHECK)
    test_records = prepare.checked_test_set(dataset, config.check.enforce, cache.add, model.ops)
    check_parts(config, test_records)
    return evaluate_and_report(
      model, test_records, config, workdir, None, report_path, cache.images
    )


def write_report(
  model_dir: Path,
  dataset: Path,
  category: str,
  report_path: Path,
  device: str,
  part_pattern: str = '',
) -> dict[str, Any]:
  """Evaluate a model on a dataset, write only the report, and return metrics and warnings.

  Test images that fail the dataset check are logged and excluded.

  Args:
    model_dir: model directory.
    dataset: root of a dataset in any layout.
    category: category below the root, or '' if the root is a single category.
    report_path: HTML file of the report, which is overwritten; a JSON file of the same stem is
      written next to it.
    device: devices, such as 'auto', 'cpu', 'gpu:0,1' or 'tpu'.
    part_pattern: pattern of `parts.part_of`, or '' if images are not grouped.

  Raises:
    ConfigError: `report_path` is not an HTML file name or cannot be written, the JSON file is not
      that of a report, or the part of an image is unknown.
    DataError: the dataset has no test images.
  """
  if part_pattern:
    parts.compile_pattern(part_pattern, parts.EVALUATE_KEY)
  json_path, is_replaced = report_path.with_suffix('.json'), report_path.exists()
  _require_report_path(report_path, json_path)
  model = model_dirs.load(model_dir)
  values = {'data.root': str(dataset), 'data.category': category, 'data.layout': 'auto'}
  values |= {'device': device, 'check.enforce': False, 'evaluate.save_pictures': 0}
  values[parts.EVALUATE_KEY] = part_pattern
  config = configs.replace(Settings(**vars(model.config)), values)
  with tempfile.TemporaryDirectory() as folder:
    result = check_and_evaluate(model, config, Path(folder), report_path)
  if is_replaced:
    logging.LOG.info('Replaced the existing %s and %s.', report_path, json_path.name)
  return {'warnings': result['warnings'], **result['metrics']}


def _require_report_path(report_path: Path, json_path: Path) -> None:
  """Raise a ConfigError unless both files of a report can be written."""
  if report_path.suffix not in ('.html', '.htm') or report_path.is_dir():
    raise ConfigError(
      f'The report must be a .html or .htm file, got {report_path}; use for example '
      f'{report_path / "report.html"}.'
    )
  if reason := files.unwritable_reason(report_path.parent):
    raise ConfigError(f'Cannot write {report_path} ({reason}); name another file.')
  if json_path.exists() and not report_path.exists():
    raise ConfigError(
      f'{json_path} already exists and does not belong to a report; use another file name than '
      f'{report_path}.'
    )


def _log_result(
  run_label: str,
  data: curves.CurveData,
  metrics: evaluate.Metrics,
  warnings: Sequence[Mapping[str, str]],
) -> None:
  """Log the verdicts on test images and parts, then the ranking metrics, then the warnings."""
  logging.LOG.info('%s: %s', run_label, curves.summary(data))
  if data.parts:
    logging.LOG.info('%s: %s', run_label, verdicts.summarize(metrics['parts'], 'part'))
  texts = [
    f'{key} {value:.4f}{" (oracle)" if key in metrics["oracles"] else ""}'
    for key, value in metrics.items()
    if isinstance(value, float)
  ]
  ranking_text = ', '.join(texts) or 'AUROC is undefined without both classes'
  logging.LOG.info('%s: %s', run_label, ranking_text)
  for warning in warnings:
    logging.LOG.warning('%s: %s', run_label, warning['message'])
