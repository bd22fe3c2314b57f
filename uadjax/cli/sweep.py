"""The command `uadjax sweep`: runs many experiments and tabulates their results."""

from collections.abc import Mapping, Sequence
import contextlib
import itertools
import re
import sys

import typer

from uadjax import errors, sweep as sweeps
from uadjax.cli import console, runtime
from uadjax.cli.options import SweepOptions
from uadjax.data import layouts
from uadjax.distributed import processes
from uadjax.errors import DataError, Interrupted, UserError
from uadjax.sweep import results, slots
from uadjax.system import logging, progress


def run(options: SweepOptions) -> None:
  """Run this host's shard of a sweep, and write the table of all finished runs."""
  workdir = options.workdir
  runtime.require_writable('--workdir', workdir)
  # Absolute, so that the settings do not depend on the working directory.
  root = str(options.dataset.resolve())
  settings = {'data.root': root, **runtime.parse_overrides(options.override)}
  runs = _plan_runs(options, settings)
  # Asking JAX would occupy the devices, which the runs need.
  shard = processes.resolve_shard(options.shard, may_ask_jax=False)
  overrides = [f'--config.{key}={value}' for key, value in settings.items()]
  try:
    failures = [] if options.table_only else _run_missing(options, runs, overrides, shard)
  except Interrupted as interruption:
    interruption.hint = (f'Repeat the command to resume {workdir}.',)
    raise
  summaries = ((run, results.load_summary(run.run_dir(workdir))) for run in runs)
  finished = {run: summary for run, summary in summaries if summary}
  rows = results.summarize_runs(
    (sweeps.config_label(run.config), run.category, run.seed, summary)
    for run, summary in finished.items()
  )
  if not rows:
    hint = 'Run without --table-only first.' if options.table_only else ' '.join(failures[:1])
    raise UserError(f'{workdir} has no finished run of this sweep. {hint}')
  machines = sweeps.record_sweep(workdir, overrides, add_machine=False)
  description = f'Machine: {"; ".join(machines) or "unknown"}. Overrides: {" ".join(overrides)}.'
  text = results.write_tables(rows, workdir, description)
  if options.as_json:
    counts = {'runs': len(runs), 'finished': len(finished), 'failed': failures}
    console.print_json({**counts, 'table': str(workdir / 'table.csv')})
  else:
    console.print_line(runtime.to_printable(text, allowed_chars='\n'))
    path = runtime.to_printable(str(workdir / 'table.md'))
    console.print_line(f'{len(finished)} of {len(runs)} runs are finished. Table: {path}')
  if failures:
    print(f'Error: {len(failures)} runs failed.', *failures, sep='\n  ', file=sys.stderr)
    raise typer.Exit(errors.EXIT_FAILURE)


def _plan_runs(options: SweepOptions, settings: Mapping[str, str]) -> list[sweeps.Run]:
  if not options.dataset.is_dir():
    raise DataError(f'{str(options.dataset)!r} is not a folder; name the root of a dataset.')
  groups = _parse_list(options.categories, '--categories')
  categories = [name for group in groups for name in layouts.expand(options.dataset, group)]
  for name in categories:
    layouts.require_category(options.dataset, name)
  ranges = map(_parse_seeds, _parse_list(options.seeds, '--seeds'))
  models = _parse_list(options.models, '--models')
  return sweeps.plan_runs(models, categories, [*itertools.chain(*ranges)], settings)


def _parse_list(text: str, option: str) -> list[str]:
  items = [item.strip() for item in text.split(',') if item.strip()]
  if not items:
    raise typer.BadParameter('the list is empty; name at least one.', param_hint=option)
  return items


def _parse_seeds(text: str) -> Sequence[int]:
  """Parse a seed, such as 3, or a range that includes both ends, such as 3-7."""
  match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
  seeds = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
  if not seeds:
    message = f'{text!r} is neither a seed (3) nor a range with the smaller seed first (3-7).'
    raise typer.BadParameter(message, param_hint='--seeds')
  return seeds


def _run_missing(
  options: SweepOptions,
  runs: Sequence[sweeps.Run],
  overrides: Sequence[str],
  shard: tuple[int, int],
) -> list[str]:
  """Run the unfinished runs of this host's shard, and return which ones failed and why."""
  shard_index, num_shards = shard
  device_slots = slots.device_slots(options.device, options.jobs)
  missing_runs = sweeps.unfinished_runs(runs, options.workdir, shard)
  num_missing = len(missing_runs)
  logging.LOG.info(
    '%d runs in total; %d left in shard %d/%d, on %s.',
    len(runs), num_missing, shard_index, num_shards, ', '.join(slot.name for slot in device_slots),
  )  # fmt: skip
  failures = []
  titles = [column.title for column in results.COLUMNS.values()]
  sweep = sweeps.run_sweep(missing_runs, options.workdir, overrides, device_slots)
  # Closing stops the runs before an error is reported, so that none continues unnoticed.
  with contextlib.closing(sweep) as outcomes:
    with_bar = progress.show_progress(outcomes, num_missing, 'Sweeping')
    for number, (run, summary, error) in enumerate(with_bar, 1):
      cells = zip(titles, results.format_cells([summary]), strict=True) if summary else ()
      message = error or '  '.join(f'{title} {cell}' for title, cell in cells)
      logging.LOG.info('[%d/%d] %s: %s', number, num_missing, run, message)
      if error:
        failures.append(f'{run}: {error}')
  return failures
