"""Thresholds of a fitted model: shown with their trade-off, and changed without fitting again."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
from pathlib import Path
import shlex
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np

from uadjax import config as configs
from uadjax.data.image_cache import ImageCache, SMALL_CACHE_BYTES
from uadjax.data.records import GOOD, Record
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError, format_value, ModelError, refuse, Setting, UserError
from uadjax.evaluation import labeled
from uadjax.evaluation.settings import EvaluateSettings
from uadjax.export import cached_graph, graph_hash, graph_thresholds
from uadjax.model import calibration, model_dir, trade_off
from uadjax.model.settings import CalibrateSettings
from uadjax.system import files
from uadjax.system.text import format_percent

# An evaluation shows the trade-off if image AUROC is at least the first value, and recall at most
# the second.
_GOOD_AUROC, _POOR_RECALL = 0.85, 0.75

# Lines of the titles of a table's columns.
_TITLES = (
  '|||false|95 %||defects|',
  '  budget:|image|review|alarms|upper||to|',
  '  option to set|threshold|threshold|expected|bound|found|review|missed',
)


class TradeOff(NamedTuple):
  """Choices of a budget for a model, and what each of them costs.

  Attributes:
    directory: model directory.
    choices: choices from the smallest to the largest budget.
    num_defective: number of labeled defective images for `defects_found`; 0 without labels.
  """

  directory: Path
  choices: Sequence[trade_off.Choice]
  num_defective: int = 0

  def to_dicts(self) -> list[dict[str, Any]]:
    """Return the choices as JSON-compatible values, each with the option that sets it."""
    return [{**choice._asdict(), 'option': _format_option(choice)} for choice in self.choices]

  def table(self, current: calibration.Thresholds) -> str:
    """Return a table of the choices with a legend, at most 80 columns wide; '' without any choice.

    Args:
      current: thresholds whose row is marked.
    """
    if not self.choices:
      return ''
    limits = current.image_threshold, current.review_threshold
    rows = [[*title.split('|')] for title in _TITLES]
    for choice in self.choices:
      thresholds = choice.image_threshold, choice.review_threshold
      rates = choice.expected_false_alarm_rate, choice.false_alarm_rate_bound
      counts = choice.defects_found, choice.defects_to_review, choice.defects_missed
      rows.append([
        ('* ' if thresholds == limits else '  ') + _format_option(choice),
        *(f'{threshold:.4g}' for threshold in thresholds),
        *(format_percent(rate, 2) for rate in rates),
        *map(str, counts),
      ])  # fmt: skip
    if not self.num_defective:
      rows = [row[:5] for row in rows]
    first_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
      '  '.join([first.ljust(first_width), *map(str.rjust, cells, widths)])
      for first, *cells in rows
    ]
    if any(line.startswith('*') for line in lines):
      lines.append('*: current thresholds.')
    return '\n'.join([*map(str.rstrip, lines), *self._legend()])

  def _legend(self) -> list[str]:
    lines = ['False alarms: good images that are NG; with 95 % confidence below the bound.']
    if self.num_defective:
      lines.append(f'Defects: of {self.num_defective} defective images, NG is found, OK is missed.')
    if any(choice.image_threshold == choice.review_threshold for choice in self.choices):
      lines.append('Where both thresholds are equal, no image is for review.')
    command = f'uadjax threshold {shlex.quote(str(self.directory))} OPTION'
    return [*lines, f'To set the thresholds of a row: {command}']


class Overview(NamedTuple):
  """Thresholds of a model, and the choices that its calibration scores offer.

  Attributes:
    info: manifest of the model.
    scores: calibration scores; None if they cannot be read.
    trade_off: choices of a budget.
    changes: changes of the thresholds since the model was fitted.
    previous: thresholds before this command changed them; None if it only shows them.
    updated_graphs: exported graphs that got the new thresholds.
    outdated_graphs: exported graphs that still have other thresholds in their metadata, or whose
      JSON file is missing.
  """

  info: model_dir.ModelInfo
  scores: calibration.CalibrationScores | None
  trade_off: TradeOff
  changes: Sequence[Mapping[str, Any]]
  previous: calibration.Thresholds | None = None
  updated_graphs: Sequence[Path] = ()
  outdated_graphs: Sequence[Path] = ()

  def to_dict(self) -> dict[str, Any]:
    """Return JSON-compatible values."""
    return {
      'model_dir': str(self.info.directory),
      'thresholds': self.info.thresholds._asdict(),
      'previous_thresholds': self.previous and self.previous._asdict(),
      'trade_off': self.trade_off.to_dicts(),
      'threshold_changes': list(self.changes),
      'updated_graphs': list(map(str, self.updated_graphs)),
      'outdated_graphs': list(map(str, self.outdated_graphs)),
    }

  def __str__(self) -> str:
    """Return the thresholds in sentences, and the choices as a table."""
    thresholds = self.info.thresholds
    lines = [f'{self.info.name} in {self.info.directory}: {thresholds}']
    if self.previous:
      lines.append(_describe_change(self.previous, thresholds))
    scores = self.scores.scores if self.scores else ()
    if thresholds.method not in ('normals', 'confident') and len(scores):
      num_above = sum(score > thresholds.image_threshold for score in scores)
      lines.append(
        f'{num_above} of {len(scores)} good calibration images exceed the image threshold.'
      )
    if self.changes:
      lines.append(f'Last change: {self.changes[-1]["time"]}, {self.changes[-1]["reason"]}.')
    if self.updated_graphs:
      lines.append(f'Graphs with the new thresholds: {", ".join(map(str, self.updated_graphs))}')
    if self.outdated_graphs:
      names = ', '.join(map(str, self.outdated_graphs))
      lines.append(f'Graphs with other thresholds, to be exported again: {names}')
    return '\n'.join([*lines, '', self.trade_off.table(thresholds)]).rstrip()


class Advice(NamedTuple):
  """Advice to choose another budget, after an evaluation.

  Attributes:
    message: why, in sentences.
    trade_off: choices of a budget, with the defective test images that each finds.
    current: thresholds of the evaluation.
  """

  message: str
  trade_off: TradeOff
  current: calibration.Thresholds

  def to_dict(self) -> dict[str, Any]:
    """Return JSON-compatible values."""
    return {'message': self.message, 'trade_off': self.trade_off.to_dicts()}

  def __str__(self) -> str:
    return f'{self.message}\n{self.trade_off.table(self.current)}'.rstrip()


def show(directory: Path) -> Overview:
  """Return the thresholds of a model and the choices from its stored calibration scores.

  Raises:
    ModelError: the model directory is missing or damaged.
  """
  manifest = model_dir.read_manifest(directory)
  return _overview(manifest, model_dir.load_calibration_scores(directory))


def change(
  directory: Path,
  calibrate_values: Mapping[str, object],
  thresholds_by_name: Mapping[str, float],
  device: str = 'auto',
) -> Overview:
  """Write new thresholds into a model, and into the metadata of its exported graphs.

  The manifest records the time and the reason. It is replaced last, so that an interrupted change
  leaves the old thresholds. Another change of the same model waits for this one. Graphs in the
  model directory and the cached graph are updated. Graphs in the work directory and in the current
  directory are only listed as outdated.

  Args:
    directory: model directory.
    calibrate_values: settings of the section `calibrate` for a new calibration; empty for none. All
      other settings are those of the fit, without its labeled images. A review budget of the fit is
      raised to the budget if it is smaller.
    thresholds_by_name: thresholds to set by hand.
    device: devices that score labeled images.

  Raises:
    ConfigError: a value is invalid, or the model directory cannot be written.
    ModelError: the model directory is missing or damaged, has no calibration scores, or was
      replaced in the meantime.
    DataError: labeled images are missing or unreadable.
  """
  if calibrate_values and 'image_threshold' in thresholds_by_name:
    image_threshold = thresholds_by_name['image_threshold']
    message = f'Image threshold {image_threshold} contradicts a calibration, which sets it, too.'
    hint = 'Omit ', Setting('image_threshold'), ', or all options of the calibration.'
    refuse('image_threshold', image_threshold, message, *hint)
  with contextlib.ExitStack() as stack:
    try:
      manifest = stack.enter_context(model_dir.lock_manifest(directory))
    except OSError as error:
      raise _unwritable(directory, error.strerror or str(error)) from None
    info, scores = manifest.info(), model_dir.load_calibration_scores(directory)
    options = _recalibration_settings(manifest.calibrate_settings(), calibrate_values)
    thresholds, anomalous_scores = info.thresholds, None
    if calibrate_values:
      thresholds, anomalous_scores = _calibrate(info, scores, options, device)
    thresholds = calibration.override(thresholds, **thresholds_by_name)
    values = {**calibrate_values, **thresholds_by_name}
    reason = ', '.join(f'{name}={format_value(value)}' for name, value in values.items())
    new_manifest = manifest.with_thresholds(thresholds, reason)
    graphs = _write(manifest, new_manifest)
  return _overview(new_manifest, scores, anomalous_scores, info.thresholds, *graphs)


def advise(
  model: model_dir.Model, metrics: Mapping[str, Any], anomalous_scores: Float[np.ndarray, ' m']
) -> Advice | None:
  """Return advice if the model ranks test images well, but misses many at its image threshold.

  There is none if the stored calibration is damaged, because an evaluation does not need it.

  Args:
    model: evaluated model.
    metrics: metrics of the evaluation.
    anomalous_scores: scores of the defective test images.
  """
  auroc, recall = metrics['image_auroc'], metrics['at_threshold']['image_recall']
  if auroc is None or auroc < _GOOD_AUROC or recall > _POOR_RECALL:
    return None
  if model.thresholds.is_uncalibrated:  # There is no budget to choose.
    return None
  scores = model_dir.load_calibration_scores(model.directory)
  try:
    options = model_dir.read_manifest(model.directory).calibrate_settings()
    choices = trade_off.choices(scores, options, anomalous_scores)
  except UserError:
    return None
  num_found = int((anomalous_scores > model.thresholds.image_threshold).sum())
  total = len(anomalous_scores)
  message = (
    f'Ranking is good (image AUROC {auroc:.3f}), but only {num_found} of {total} defective images '
    'are NG at the image threshold.'
  )
  if any((choice.defects_found or 0) > num_found for choice in choices):
    message += (
      ' A larger budget of false alarms finds more of them. If these images decide on the budget, '
      'metrics on them are optimistic.'
    )
  return Advice(message, TradeOff(model.directory, choices, total), model.thresholds)


def _overview(
  manifest: model_dir.Manifest,
  scores: calibration.CalibrationScores | None,
  anomalous_scores: Float[np.ndarray, ' m'] | None = None,
  previous: calibration.Thresholds | None = None,
  updated_graphs: Sequence[Path] = (),
  outdated_graphs: Sequence[Path] = (),
) -> Overview:
  info = manifest.info()
  # The options of the choices name a budget only. All other settings are then those of the fit.
  options = manifest.calibrate_settings()
  options = dataclasses.replace(options, budget=info.thresholds.budget)
  choices = trade_off.choices(scores, options, anomalous_scores)
  num_defective = 0 if anomalous_scores is None else len(anomalous_scores)
  changes = manifest.threshold_changes
  trade_offs = TradeOff(manifest.directory, choices, num_defective)
  return Overview(info, scores, trade_offs, changes, previous, updated_graphs, outdated_graphs)


def _describe_change(previous: calibration.Thresholds, current: calibration.Thresholds) -> str:
  before, after = calibration.by_name(previous), calibration.by_name(current)
  changes = [
    f'{name.replace("_", " ")} from {before[name]:.4g} to {value:.4g}'
    for name, value in after.items()
    if value != before[name]
  ]
  return f'Changed: {", ".join(changes) or "no threshold"}.'


def _format_option(choice: trade_off.Choice) -> str:
  return f'--budget {format_value(choice.budget)}'


def _recalibration_settings(
  options: CalibrateSettings, values: Mapping[str, object]
) -> CalibrateSettings:
  """Return the settings of the fit with other values, and without its labeled images."""
  method = options.method if options.method == 'confident' else 'normals'
  options = configs.replace(dataclasses.replace(options, method=method, labeled=''), values)
  if 'review_budget' not in values:
    review_budget = max(options.review_budget, options.budget)
    options = dataclasses.replace(options, review_budget=review_budget)
  calibration.validate_settings(options)
  if 'miss_cost' in values and options.method != 'cost':
    message = f'calibrate.miss_cost has no effect on calibrate.method {options.method!r}.'
    hint = 'Pass ', Setting('calibrate.method', 'cost'), ' and labeled images, or omit it.'
    refuse('calibrate.miss_cost', options.miss_cost, message, *hint)
  return options


def _calibrate(
  info: model_dir.ModelInfo,
  scores: calibration.CalibrationScores | None,
  options: CalibrateSettings,
  device: str,
) -> tuple[calibration.Thresholds, Float[np.ndarray, ' m'] | None]:
  """Calibrate again; return the thresholds, and the scores of labeled defective images.

  The scores are None without labeled images. A calibration image must not be a labeled image, too.
  """
  if scores is None or not (len(scores.scores) or options.labeled):
    hint = 'Fit the model again, or set ', Setting('image_threshold'), '.'
    raise ModelError(f'{info.directory} has no readable calibration scores.', hint=hint)
  if not options.labeled:
    return labeled.calibrate(options, scores, None), None
  mask_reading = info.config.data.mask
  calibration_records = [Record(Path(path), GOOD) for path in scores.paths if path]
  ops, pixel_range = info.ops, info.pixel_range
  records = labeled.load(options.labeled, mask_reading, calibration_records, ops, pixel_range)
  model, mesh = model_dir.load_arrays(info), meshes.make_mesh(device, -1, 0)
  labeled_scores = labeled.score(
    lambda fitted, batch: model.score(fitted, batch.image), model.fitted, records, mask_reading,
    ImageCache(ops, SMALL_CACHE_BYTES, pixel_range), EvaluateSettings.batch_size, mesh,
    info.config.detector.image_score,
  )  # fmt: skip
  assert labeled_scores is not None  # There are records.
  return labeled.calibrate(options, scores, labeled_scores), labeled_scores.anomalous_scores


def _write(
  previous: model_dir.Manifest, manifest: model_dir.Manifest
) -> tuple[list[Path], list[Path]]:
  """Write a new manifest, and its thresholds into the graphs of the model.

  Returns:
    The updated and the outdated graphs.
  """
  info = manifest.info()
  directory, digest, thresholds = info.directory, info.arrays_sha256, info.thresholds
  if model_dir.read_manifest(directory) != previous:  # A fit does not take the lock.
    message = f'{directory} was replaced while its thresholds were computed.'
    raise ModelError(message, hint='Repeat the command for the new model.')
  graphs = graph_thresholds.find(directory, digest)
  try:
    with files.atomic_files() as stage:
      manifest.stage(stage)
      for graph in graphs:
        graph_thresholds.stage(stage, graph, thresholds)
  except OSError as error:
    raise _unwritable(directory, error.strerror or str(error)) from None
  cached = cached_graph.cache_path(info)
  if cached.is_file():
    graphs.append(cached)
    # The cache may belong to another user.
    with contextlib.suppress(OSError), files.atomic_files() as stage:
      graph_thresholds.stage(stage, cached, thresholds)
  for folder in sorted({directory.resolve().parent, Path.cwd()} - {directory.resolve()}):
    graphs += graph_thresholds.find(folder, digest)
  outdated = [graph for graph in graphs if graph_thresholds.is_outdated(graph, thresholds)]
  updated = [graph for graph in graphs if graph not in outdated]
  return updated, [*outdated, *graph_hash.find_undescribed(directory)]


def _unwritable(directory: Path, reason: str) -> ConfigError:
  hint = 'Its thresholds did not change; copy the model to a writable folder.'
  return ConfigError(f'{directory} cannot be written ({reason}).', hint=hint)
