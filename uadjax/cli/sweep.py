"""The command `uadjax sweep`: runs many experiments and tabulates their results."""

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


class SweepOptions(NamedTuple):
  """Options that select the runs of a sweep; see `options`."""

  dataset: Path
  models: str
  categories: str
  seeds: str
  workdir: Path
  override: Sequence[str] | None


def run_sweep(
  options: SweepOptions, device: str, jobs: int, shard: str, table_only: bool, as_json: bool
) -> None:
  """Run this host's shard of a sweep, and write the table of all finished runs."""
  # Absolute, so that the settings do not depend on the working directory.
  root = str(options.dataset.resolve())
  settings = {'data.root': root, **predict.parse_overrides(options.override or ())}
  runs = _plan_runs(options, settings)
  overrides = [f'--config.{key}={value}' for key, value in settings.items()]
  # Asking JAX would occupy the devices, which the runs need.
  host_shard = processes.resolve_shard(shard, may_ask_jax=False)
  failures: list[str] = []
  try:
    if not table_only:
      failures = _run_missing(
        runs, options.workdir, overrides, slots.device_slots(device, jobs), host_shard
      )
  except Interrupted as interruption:
    interruption.hint = (f'Repeat the command to resume {options.workdir}.',)
    raise
  finished_results = {run: results.load_summary(run.run_dir(options.workdir)) for run in runs}
  rows = results.summarize_runs(
    (run.config_label, run.category, run.seed, result)
    for run, result in finished_results.items()
    if result
  )
  if not rows:
    hint = 'Run without --table-only first.' if table_only else ' '.join(failures[:1])
    raise UserError(f'{options.workdir} has no finished run of this sweep. {hint}')
  machines = sweeps.record_sweep(options.workdir, overrides, add_machine=False)
  description = f'Machine: {"; ".join(machines) or "unknown"}. Overrides: {" ".join(overrides)}.'
  text = results.write_tables(rows, options.workdir, description)
  counts = {
    'runs': len(runs),
    'finished': sum(result is not None for result in finished_results.values()),
  }
  if as_json:
    console.print_json({**counts, 'failed': failures, 'table': str(options.workdir / 'table.csv')})
  else:
    console.print_line(runtime.to_printable(text, allowed_chars='\n'))
    table_path = runtime.to_printable(str(options.workdir / 'table.md'))
    console.print_line(
      f'{counts["finished"]} of {counts["runs"]} runs are finished. Table: {table_path}'
    )
  if failures:
    print(f'Error: {len(failures)} runs failed.', *failures, sep='\n  ', file=sys.stderr)
    raise typer.Exit(runtime.EXIT_FAILURE)


def _plan_runs(options: SweepOptions, settings: Mapping[str, str]) -> list[sweeps.Run]:
  if not options.dataset.is_dir():
    raise ConfigError(f'{str(options.dataset)!r} is not a folder; name the root of a dataset.')
  categories = [
    name
    for group in _parse_list(options.categories, '--categories')
    for name in layouts.expand(options.dataset, group)
  ]
  seeds = [
    seed
    for seed_range in _parse_list(options.seeds, '--seeds')
    for seed in _parse_seeds(seed_range)
  ]
  return sweeps.plan_runs(_parse_list(options.models, '--models'), categories, seeds, settings)


def _parse_list(text: str, option: str) -> list[str]:
  items = [item.strip() for item in text.split(',') if item.strip()]
  if not items:
    raise typer.BadParameter('the list is empty; name at least one.', param_hint=option)
  return items


def _parse_seeds(text: str) -> range:
  """Parse a seed, such as 3, or a range that includes both ends, such as 3-7."""
  match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
  if not match:
    message = f'{text!r} is neither a seed (3) nor a range (3-7).'
    raise typer.BadParameter(message, param_hint='--seeds')
  seeds = range(int(match[1]), int(match[2] or match[1]) + 1)
  if not seeds:
    message = f'{text!r} is an empty range; write the smaller seed first.'
    raise typer.BadParameter(message, param_hint='--seeds')
  return seeds


def _run_missing(
  runs: Sequence[sweeps.Run],
  workdir: Path,
  overrides: Sequence[str],
  device_slots: Sequence[slots.Slot],
  shard: tuple[int, int],
) -> list[str]:
  """Run the unfinished runs of a shard, and return which ones failed and why."""
  shard_index, num_shards = shard
  missing_runs = sweeps.unfinished_runs(runs, workdir, shard)
  num_missing = len(missing_runs)
  logging.LOG.info(
    '%d runs in total; %d left in shard %d/%d, on %s.',
    len(runs), num_missing, shard_index, num_shards, ', '.join(slot.name for slot in device_slots),
  )  # fmt: skip
  failures = []
  titles = [column.title for column in results.COLUMNS.values()]
  # Closing stops the runs before an error is reported, so that none continues unnoticed.
  with contextlib.closing(
    sweeps.run_sweep(missing_runs, workdir, overrides, device_slots)
  ) as outcomes:
    for run_number, (run, result, error) in enumerate(
      progress.show_progress(outcomes, num_missing, 'Sweeping'), 1
    ):
      titled_cells = zip(titles, results.format_cells([result]), strict=True) if result else ()
      message = error or '  '.join(f'{title} {cell}' for title, cell in titled_cells)
      logging.LOG.info('[%d/%d] %s: %s', run_number, num_missing, run, message)
      if error:
        failures.append(f'{run}: {error}')
  return failures
