"""Many runs and their table: what `uadjax sweep` does."""

from collections.abc import Mapping, Sequence
import contextlib
from pathlib import Path
import re
import sys
from typing import NamedTuple

import typer

from uadjax import sweep as sweeps
from uadjax.cli import console, predict, runtime
from uadjax.data import layouts
from uadjax.distributed import processes
from uadjax.errors import ConfigError, Interrupted, UserError
from uadjax.sweep import results, slots
from uadjax.system import logging, progress


class Wishes(NamedTuple):
  """What a sweep is of; see `options`."""

  dataset: Path
  models: str
  categories: str
  seeds: str
  workdir: Path
  override: Sequence[str] | None


def sweep(own: Wishes, device: str, jobs: int, shard: str, table_only: bool, as_json: bool) -> None:
  """Carry out this host's part, and leave the table of all that is finished."""
  with runtime.ready():
    # Whatever folder it is called from.
    root = str(own.dataset.resolve())
    settings = {'data.root': root, **predict.overrides(own.override or ())}
    runs = _plan(own, settings)
    overrides = [f'--config.{key}={value}' for key, value in settings.items()]
    part = processes.part(shard, asking=False)  # The devices are for the runs.
    failed: list[str] = []
    try:
      if not table_only:
        failed = _carried_out(runs, own.workdir, overrides, slots.slots(device, jobs), part)
    except Interrupted as stopped:
      raise Interrupted(f'{stopped} The same command goes on with {own.workdir}.') from None
    finished = {run: results.done(run.folder(own.workdir)) for run in runs}
    rows = results.summed_up(
      (run.model, run.category, run.seed, told) for run, told in finished.items() if told
    )
    if not rows:
      why = 'Leave --table-only out.' if table_only else ' '.join(failed[:1])
      raise UserError(f'There is no finished run of these in {own.workdir}. {why}')
    known = sweeps.begin(own.workdir, overrides, here=False)
    about = f'Machine: {"; ".join(known) or "unknown"}. Overrides: {" ".join(overrides)}.'
    text = results.leave(rows, own.workdir, about)
  counts = {'runs': len(runs), 'finished': sum(told is not None for told in finished.values())}
  if as_json:
    console.tell_json({**counts, 'failed': failed, 'table': str(own.workdir / 'table.csv')})
  else:
    console.tell(runtime.printable(text, but='\n'))
    where = runtime.printable(str(own.workdir / 'table.md'))
    console.tell(f'{counts["finished"]} of {counts["runs"]} runs are finished. Table: {where}')
  if failed:
    print(f'Error: {len(failed)} runs failed.', *failed, sep='\n  ', file=sys.stderr)
    raise typer.Exit(runtime.FAILED)


def _plan(own: Wishes, settings: Mapping[str, str]) -> list[sweeps.Run]:
  if not own.dataset.is_dir():
    raise ConfigError(f'{str(own.dataset)!r} is no folder; name the root of a data set.')
  categories = [
    name
    for group in _listed(own.categories, '--categories')
    for name in layouts.expand(own.dataset, group)
  ]
  seeds = [seed for some in _listed(own.seeds, '--seeds') for seed in _seeds(some)]
  return sweeps.plan(_listed(own.models, '--models'), categories, seeds, settings)


def _listed(words: str, option: str) -> list[str]:
  found = [word.strip() for word in words.split(',') if word.strip()]
  if not found:
    raise typer.BadParameter('name at least one.', param_hint=option)
  return found


def _seeds(words: str) -> range:
  """Of 3 that, of 3-7 all five."""
  found = re.fullmatch(r'(\d+)(?:-(\d+))?', words)
  if not found:
    raise typer.BadParameter(f'{words!r} is neither a seed nor a range.', param_hint='--seeds')
  seeds = range(int(found[1]), int(found[2] or found[1]) + 1)
  if not seeds:
    raise typer.BadParameter(f'{words!r} has none; write the smaller first.', param_hint='--seeds')
  return seeds


def _carried_out(
  runs: Sequence[sweeps.Run],
  workdir: Path,
  overrides: Sequence[str],
  places: Sequence[slots.Slot],
  part: tuple[int, int],
) -> list[str]:
  """The runs that failed, and why."""
  index, count = part
  missing = sweeps.missing(runs, workdir, part)
  left = len(missing)
  logging.LOG.info(
    '%d runs; of part %d of %d there are %d to be done, on %s.',
    len(runs), index, count, left, ', '.join(place.name for place in places),
  )  # fmt: skip
  failed = []
  titles = [column.title for column in results.COLUMNS.values()]
  # Closed before anything is said, so that no run goes on unseen.
  with contextlib.closing(sweeps.sweep(missing, workdir, overrides, places)) as outcomes:
    for number, (run, told, error) in enumerate(progress.track(outcomes, left, 'Sweeping'), 1):
      numbers = zip(titles, results.cells([told]), strict=True) if told else ()
      shown = error or '  '.join(f'{title} {cell}' for title, cell in numbers)
      logging.LOG.info('[%d/%d] %s: %s', number, left, run, shown)
      if error:
        failed.append(f'{run}: {error}')
  return failed
