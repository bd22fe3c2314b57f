"""Images judged, told and saved: what `uadjax predict` and the spelling without a command do."""

import collections
from collections.abc import Generator, Iterator, Mapping, Sequence
import contextlib
from pathlib import Path
import sys
import time
from typing import Any, NamedTuple

import typer

from uadjax.cli import console, runtime
from uadjax.data import inputs as sources
from uadjax.distributed import processes
from uadjax.errors import ConfigError, Interrupted
from uadjax.inference import pipelines, predictor, score_table
from uadjax.inference.result import Result, UNREAD
from uadjax.system import http, progress

_FOUND = 3  # Exit status of --fail-on.


class Wishes(NamedTuple):
  """The options that both spellings have; see `options`."""

  device: str | None
  batch_size: int | None
  override: Sequence[str] | None
  allow_private_urls: bool
  threshold: float | None
  review_threshold: float | None
  pixel_threshold: float | None
  save_path: Path | None
  no_pictures: bool
  no_save: bool
  as_json: bool
  masks: str | None
  strict: bool
  fail_on: str | None


def wishes(options: Mapping[str, Any]) -> Wishes:
  """Pick them from all options of a command."""
  return Wishes(**{name: options[name] for name in Wishes._fields})


def judge(
  inputs: Sequence[str], pipeline: str, use_hpip: bool, named: Mapping[str, str], own: Wishes
) -> None:
  """Judge images with a pipeline.

  Args:
    inputs: paths, URLs and folders.
    pipeline: its name, or a YAML file.
    use_hpip: run the exported graph.
    named: settings that have options of their own.
    own: all else.
  """
  if own.masks and not own.as_json:
    raise typer.BadParameter('it is for the lines of --json.', param_hint='--masks')
  folder = None if own.no_save else own.save_path or Path('output')
  with runtime.ready():
    opened = _opened(pipeline, use_hpip, named, own)
    given = _given(inputs)
    _keep_apart(inputs, folder)
    began = time.perf_counter()
    results = opened.predict(given, own.batch_size, own.strict, folder)
    total = sum(1 for _ in sources.expand(given, folder))
    # Closed, so that what is being saved is whole before anything is said of it.
    with contextlib.closing(_saved(results, folder, not own.no_pictures)) as saved:
      counts = _told(saved, total, folder, own)
  if not own.as_json:
    _sum_up(counts, time.perf_counter() - began, opened.model.model.limits, folder)
  _leave(counts, own.fail_on)


def tabulate(
  inputs: Sequence[str], named: Mapping[str, str], own: Wishes, folder: Path, form: str, shard: str
) -> None:
  """Judge a share of many images into a table.

  Args:
    inputs: as for `judge`; so the next two.
    named: settings.
    own: all else; of results nothing is asked for.
    folder: of the table.
    form: its format.
    shard: of the images.
  """
  for name in ('save_path', 'no_pictures', 'no_save', 'masks'):
    if getattr(own, name):
      option = f'--{name.replace("_", "-")}'
      raise typer.BadParameter('it means nothing beside --table.', param_hint=option)
  with runtime.ready():
    table = score_table.Table(folder, form, processes.part(shard))
    opened = _opened(pipelines.NAMES[0], False, named, own)
    rows = own.batch_size or opened.config.SubModules.AnomalyDetection.batch_size
    try:
      told = score_table.judge(
        opened.model, _given(inputs), table, rows, progress.track, own.strict
      )
    except Interrupted as stopped:
      raise Interrupted(f'{stopped} The same command goes on with {folder}.') from None
  counts, (index, count) = told.counts, table.part
  if own.as_json:
    part = {'part': [index, count], 'judged': dict(counts), 'judged_before': dict(told.before)}
    console.tell_json({'table': str(folder), **part})
  else:
    console.tell(console.summary(counts + told.before))
    console.tell(f'Table: {runtime.printable(str(folder))}, part {index} of {count}: {told}.')
  _leave(counts + told.before, own.fail_on)


def _opened(
  pipeline: str, use_hpip: bool, named: Mapping[str, str], own: Wishes
) -> pipelines.Pipeline:
  thresholds = ('threshold', 'review_threshold', 'pixel_threshold')
  own_settings = {key: getattr(own, key) for key in thresholds if getattr(own, key) is not None}
  return pipelines.create_pipeline(
    pipeline,
    own.device,
    use_hpip or None,
    overrides={**overrides(own.override or ()), **named, **own_settings},
    access=http.Access(private=own.allow_private_urls),
  )


def _given(inputs: Sequence[str]) -> str | list[str]:
  """What is alone is refused at once where it cannot be read."""
  return inputs[0] if len(inputs) == 1 else list(inputs)


def _keep_apart(inputs: Sequence[str], folder: Path | None) -> None:
  """Refuse to save among the images: a_res.png may be one of them."""
  for path in map(Path, inputs):
    if folder and path.is_dir() and folder.is_dir() and path.samefile(folder):
      raise ConfigError(f'{folder} holds the images; name another folder with --save-path.')


def overrides(words: Sequence[str]) -> dict[str, str]:
  """Values by key, of KEY=VALUE."""
  pairs = [word.partition('=') for word in words]
  for key, given, _ in pairs:
    if not given:
      raise typer.BadParameter(f'{key!r} has no value; write KEY=VALUE.', param_hint='--override')
  return {key: value for key, _, value in pairs}


def _saved(
  results: Iterator[Result], folder: Path | None, pictures: bool
) -> Generator[Result, None, None]:
  yield from results if folder is None else predictor.saved(results, folder, pictures)


def _told(
  results: Iterator[Result], total: int, folder: Path | None, own: Wishes
) -> collections.Counter[str]:
  """Print each result; how many there are with each label."""
  counts = collections.Counter[str]()
  try:
    for result in progress.track(results, total, 'Judging'):
      counts[result.label or UNREAD] += 1
      if own.as_json:
        console.tell_json(result.to_json(own.masks or 'none'))
      else:
        console.tell(console.verdict(result))
  except Interrupted as stopped:
    judged = counts.total()
    done = f' The first {judged} of {total} images were judged' if judged else ''
    where = f'; their results are in {folder}' if judged and folder else ''
    raise Interrupted(f'{stopped}{done}{where}{"." if done else ""}') from None
  return counts


def _sum_up(
  counts: collections.Counter[str], seconds: float, limits: Any, folder: Path | None
) -> None:
  console.tell(console.summary(counts))
  band = f', review above {limits.review:.4g}' if limits.review < limits.image else ''
  rate = f'{counts.total() / seconds:.1f} images/s'
  console.tell(f'{rate}; NG above {limits.image:.4g}{band}.')
  if folder:
    console.tell(f'Results: {runtime.printable(str(folder))}')


def _leave(counts: collections.Counter[str], fail_on: str | None) -> None:
  if unread := counts[UNREAD]:
    told = f'{unread} of {counts.total()} images could not be read.'
    with contextlib.suppress(BrokenPipeError):
      print(f'Error: {told}', file=sys.stderr)
    raise typer.Exit(runtime.FAILED)
  if fail_on and (counts['NG'] or (fail_on == 'review' and counts['review'])):
    raise typer.Exit(_FOUND)
