"""The command `uadjax predict`, also for `uadjax` without a command: scores and saves images."""

import collections
from collections.abc import Generator, Iterator, Mapping, Sequence
import contextlib
from pathlib import Path
import shlex
import sys
import time
from typing import NamedTuple

import typer

from uadjax import config as configs, errors
from uadjax.cli import console, result_text, runtime
from uadjax.cli.options import PredictOptions, ScoringOptions, with_dashes
from uadjax.data import inputs as sources
from uadjax.distributed import processes
from uadjax.errors import ConfigError, Interrupted, refuse, Setting
from uadjax.inference import parts, pipelines, predictor, score_table
from uadjax.inference.result import Result, UNREADABLE
from uadjax.inference.settings import PipelineSettings, PredictSettings
from uadjax.model import calibration
from uadjax.system import files, http, progress

_FAIL_ON_STATUS = 3
_NUM_WORST = 5


def run(options: PredictOptions) -> None:
  """Score images as the options say; into a table if they name one."""
  settings = {'model_dir': options.model_dir, 'backend': options.backend}
  if options.table:
    _tabulate_scores(options, settings, options.table)
    return
  for name in ('format', 'shard'):
    if getattr(options, name) is not None:
      raise typer.BadParameter('only valid with --table.', param_hint=f'--{name}')
  predict_images(options.inputs, pipelines.NAMES[0], False, settings, options.scoring)


def predict_images(
  inputs: Sequence[str],
  pipeline_name: str,
  use_hpip: bool,
  settings: Mapping[str, object],
  options: ScoringOptions,
) -> None:
  """Score images with a pipeline, print the results, and save them.

  Args:
    inputs: paths, URLs and folders.
    pipeline_name: name of a pipeline, or path of a YAML file.
    use_hpip: whether to run the exported graph on an inference runtime.
    settings: values of pipeline settings that have options of their own; None if not set.
    options: all other options.
  """
  if options.masks and not options.as_json:
    raise typer.BadParameter('only valid with --json.', param_hint='--masks')
  folder = None if options.no_save else options.save_path or Path('output')
  runtime.require_writable('--save-path', folder)
  pipeline = _create_pipeline(pipeline_name, use_hpip, settings, options)
  pipeline_input = _unwrap_single_input(inputs)
  _require_separate_folder(inputs, folder)
  start = time.perf_counter()
  results = pipeline.predict(pipeline_input, options.batch_size, options.strict, folder)
  sizes = _image_sizes(pipeline_input, folder, options.part_pattern)
  if folder and not options.no_pictures:
    # A result picture shows its image twice, in the format of its file.
    files.announce_size('result pictures', folder, 2 * sum(sizes))
  # Closing the generator finishes the files that are being saved before the summary is printed.
  with contextlib.closing(_save_results(results, folder, not options.no_pictures)) as saved_results:
    summary = _print_results(saved_results, len(sizes), folder, options)
  counts, _, verdicts = summary
  if folder and options.part_pattern:
    files.write_csv(folder / 'parts.csv', verdicts.table())
  if options.as_json:
    for row in verdicts.rows():
      console.print_json(row)
  else:
    rate = counts.total() / (time.perf_counter() - start)
    _print_summary(summary)
    console.print_line(f'{rate:.1f} images/s; {_describe(pipeline.model.model.thresholds)}.')
    if folder:
      console.print_line(f'Results: {runtime.to_printable(str(folder))}')
  _exit_by_counts(counts, options.fail_on)


def _tabulate_scores(command: PredictOptions, settings: Mapping[str, object], folder: Path) -> None:
  """Score one shard of many images and write the results into a table in a folder."""
  options = command.scoring
  for name in ('save_path', 'no_pictures', 'no_save', 'masks'):
    if getattr(options, name):
      raise typer.BadParameter('not valid with --table.', param_hint=f'--{with_dashes(name)}')
  runtime.require_writable('--table', folder)
  shard = processes.resolve_shard(command.shard or PredictSettings.shard)
  file_format, pattern = command.format or PredictSettings.format, options.part_pattern or ''
  table = score_table.Table(folder, file_format, shard, pattern)
  pipeline = _create_pipeline(pipelines.NAMES[0], False, settings, options)
  batch_size = options.batch_size or pipeline.config.SubModules.AnomalyDetection.batch_size
  images, bar = _unwrap_single_input(command.inputs), progress.show_progress
  try:
    summary = score_table.score_images(
      pipeline.model, images, table, batch_size, bar, options.strict
    )
  except Interrupted as interruption:
    interruption.hint = (f'Repeat the command to resume {folder}.',)
    raise
  counts, previous_counts = summary.counts, summary.previous_counts
  if options.as_json:
    scored = {'scored': dict(counts), 'scored_before': dict(previous_counts)}
    scored |= {'parts': dict(summary.part_verdicts.counts)} if pattern else {}
    console.print_json({'table': str(folder), 'shard': [*table.shard], **scored})
  else:
    _print_counts(counts + previous_counts, summary.part_verdicts)
    index, num_shards = table.shard
    path = runtime.to_printable(str(folder))
    console.print_line(f'Table: {path}, shard {index}/{num_shards}: {summary}.')
  _exit_by_counts(counts + previous_counts, options.fail_on)


def _create_pipeline(
  pipeline_name: str, use_hpip: bool, settings: Mapping[str, object], options: ScoringOptions
) -> pipelines.Pipeline:
  if options.part_pattern:  # Fails early, before a model is opened.
    parts.compile_pattern(options.part_pattern)
  thresholds = ('image_threshold', 'review_threshold', 'pixel_threshold')
  values = {**settings, **{name: getattr(options, name) for name in thresholds}}
  values = {name: value for name, value in values.items() if value is not None}
  overrides = runtime.parse_overrides(options.override)
  _require_effect(overrides)
  return pipelines.create_pipeline(
    pipeline_name,
    options.device,
    use_hpip or None,
    overrides={**overrides, **values},
    access=http.Access(private=options.allow_private_urls),
  )


def _require_effect(overrides: Mapping[str, str]) -> None:
  """Refuse settings of an experiment, which a pipeline does not have; others are left to it."""
  own_keys = configs.describe(PipelineSettings())
  own_names = {*own_keys, *(key.rpartition('.')[2] for key in own_keys)}
  unknown_keys = [key for key in overrides if key not in own_names]
  if not unknown_keys:
    return
  from uadjax.training import settings  # Imports much, and is needed for the message only.

  experiment_keys = {entry.info.key for entry in settings.catalog()}
  for key in filter(experiment_keys.__contains__, unknown_keys):
    value = overrides[key]
    if key.startswith('predict.'):
      refuse(key, value, f'{key} is for experiments.', 'Use ', Setting(key, value), '.')
    message = f'{key} has no effect in a prediction: a model keeps the settings of its fit.'
    command = f'uadjax fit DATASET --override {shlex.quote(f"{key}={value}")}'
    refuse(key, value, message, f'Fit a model with it: `{command}`.')


def _unwrap_single_input(inputs: Sequence[str]) -> str | list[str]:
  """Return a single input by itself, so that an unreadable one is rejected immediately."""
  return inputs[0] if len(inputs) == 1 else list(inputs)


def _num_bytes(source: sources.Source) -> int:
  """Return the size of the file of an image; 0 if it is not a file that exists."""
  origin = source.origin
  return origin.stat().st_size if isinstance(origin, Path) and origin.is_file() else 0


def _require_separate_folder(inputs: Sequence[str], folder: Path | None) -> None:
  """Raise ConfigError if the results folder holds the images, which results could overwrite."""
  for path in map(Path, inputs):
    if folder and path.is_dir() and folder.is_dir() and path.samefile(folder):
      raise ConfigError(f'{folder} holds the images; name another folder with --save-path.')


def _save_results(
  results: Iterator[Result], folder: Path | None, save_pictures: bool
) -> Generator[Result, None, None]:
  yield from results if folder is None else predictor.save_results(results, folder, save_pictures)


class _Summary(NamedTuple):
  """Summary of the results that were printed.

  Attributes:
    counts: number of images by label.
    worst: the worst results that are not OK.
    verdicts: verdicts on parts; none without a pattern.
  """

  counts: collections.Counter[str]
  worst: list[Result]
  verdicts: parts.PartVerdicts


def _image_sizes(images: object, skip: Path | None, part_pattern: str | None) -> list[int]:
  """Return the size of each image file in bytes, and check that the part of each image is known."""
  sizes = []
  for source in sources.expand(images, skip, warn=False):  # The prediction warns.
    if part_pattern:
      parts.part_of(source.name, part_pattern)
    sizes.append(_num_bytes(source))
  return sizes


def _print_counts(counts: collections.Counter[str], verdicts: parts.PartVerdicts) -> None:
  """Print the number of images by label, or that of parts if there are any."""
  table = (verdicts.counts, 'parts') if verdicts.labels else (counts, 'images')
  console.print_line(result_text.summary_table(*table))


def _print_summary(summary: _Summary) -> None:
  """Print the worst results, if there are many images, the verdicts on parts, and the counts."""
  counts, worst, verdicts = summary
  if worst and counts.total() > _NUM_WORST:
    num_not_ok = counts['NG'] + counts['review']
    console.print_line(f'Worst first, {len(worst)} of {num_not_ok} images that are not OK:')
    for result in worst:
      console.print_line(result_text.verdict_line(result))
  for row in verdicts.rows():
    console.print_line(result_text.part_line(row))
  _print_counts(counts, verdicts)


def _print_results(
  results: Iterator[Result], total: int, folder: Path | None, options: ScoringOptions
) -> _Summary:
  """Print each result, and return the summary."""
  counts, worst = collections.Counter[str](), list[Result]()
  verdicts = parts.PartVerdicts(options.part_pattern)
  try:
    for result in progress.show_progress(results, total, 'Scoring'):
      counts[result.label or UNREADABLE] += 1
      if result.label in ('NG', 'review'):
        worst = sorted([*worst, result], key=_worst_first_key)[:_NUM_WORST]
      part = verdicts.add_image(result.input_path, result.label)
      if options.as_json:
        part_field = {'part': part} if part else {}
        console.print_json({**result.to_json(options.masks or 'none'), **part_field})
      else:
        console.print_line(result_text.verdict_line(result))
  except Interrupted as interruption:
    num_scored = counts.total()
    if num_scored:
      location_text = f'; their results are in {folder}' if folder else ''
      interruption.hint = (f'The first {num_scored} of {total} images were scored{location_text}.',)
    raise
  return _Summary(counts, worst, verdicts)


def _worst_first_key(result: Result) -> tuple[bool, float]:
  return calibration.worst_first_key(result.score, result.label, result.image_threshold)


def _describe(thresholds: calibration.Thresholds) -> str:
  if thresholds.is_uncalibrated:
    return 'no thresholds, every image to review'
  text = f'NG (not good) above {thresholds.image_threshold:.4g}'
  if thresholds.review_threshold < thresholds.image_threshold:
    text += f', to review above {thresholds.review_threshold:.4g}'
  return text


def _exit_by_counts(counts: collections.Counter[str], fail_on: str | None) -> None:
  if num_unread := counts[UNREADABLE]:
    message = f'{num_unread} of {counts.total()} images could not be read.'
    with contextlib.suppress(BrokenPipeError):
      print(f'Error: {message}', file=sys.stderr)
    raise typer.Exit(errors.EXIT_FAILURE)
  if fail_on and (counts['NG'] or (fail_on == 'review' and counts['review'])):
    raise typer.Exit(_FAIL_ON_STATUS)
