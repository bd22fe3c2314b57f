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


class SweepOptions(NamedTuple):
  """What a sweep is of; see `options`."""

  dataset: Path
  models: str
  categories: str
  seeds: str
  workdir: Path
  override: Sequence[str] | None


def run_sweep(
  options: SweepOptions, device: str, jobs: int, shard: str, table_only: bool, as_json: bool
) -> None:
  """Carry out this host's part, and leave the table of all that is finished."""
  with runtime.prepare():
    # Whatever folder it is called from.
    root = str(options.dataset.resolve())
    settings = {'data.root': root, **predict.parse_overrides(options.override or ())}
    runs = _plan_runs(options, settings)
    overrides = [f'--config.{key}={value}' for key, value in settings.items()]
    host_shard = processes.resolve_shard(shard, may_ask_jax=False)  # The devices are for the runs.
    failures: list[str] = []
    try:
      if not table_only:
        failures = _run_missing(
          runs, options.workdir, overrides, slots.device_slots(device, jobs), host_shard
        )
    except Interrupted as interruption:
      raise Interrupted(
        f'{interruption} The same command goes on with {options.workdir}.'
      ) from None
    finished_results = {run: results.load_summary(run.run_dir(options.workdir)) for run in runs}
    rows = results.summarize_runs(
      (run.config_label, run.category, run.seed, result)
      for run, result in finished_results.items()
      if result
    )
    if not rows:
      hint = 'Leave --table-only out.' if table_only else ' '.join(failures[:1])
      raise UserError(f'There is no finished run of these in {options.workdir}. {hint}')
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
    console.print_line(runtime.to_printable(text, allowed='\n'))
    table_path = runtime.to_printable(str(options.workdir / 'table.md'))
    console.print_line(
      f'{counts["finished"]} of {counts["runs"]} runs are finished. Table: {table_path}'
    )
  if failures:
    print(f'Error: {len(failures)} runs failed.', *failures, sep='\n  ', file=sys.stderr)
    raise typer.Exit(runtime.EXIT_FAILURE)


def _plan_runs(options: SweepOptions, settings: Mapping[str, str]) -> list[sweeps.Run]:
  if not options.dataset.is_dir():
    raise ConfigError(f'{str(options.dataset)!r} is no folder; name the root of a data set.')
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
    raise typer.BadParameter('name at least one.', param_hint=option)
  return items


def _parse_seeds(text: str) -> range:
  """Of 3 that, of 3-7 all five."""
  match = re.fullmatch(r'(\d+)(?:-(\d+))?', text)
  if not match:
    raise typer.BadParameter(f'{text!r} is neither a seed nor a range.', param_hint='--seeds')
  seeds = range(int(match[1]), int(match[2] or match[1]) + 1)
  if not seeds:
    raise typer.BadParameter(f'{text!r} has none; write the smaller first.', param_hint='--seeds')
  return seeds


def _run_missing(
  runs: Sequence[sweeps.Run],
  workdir: Path,
  overrides: Sequence[str],
  device_slots: Sequence[slots.Slot],
  shard: tuple[int, int],
) -> list[str]:
  """The runs that failed, and why."""
  shard_index, num_shards = shard
  missing_runs = sweeps.unfinished_runs(runs, workdir, shard)
  num_missing = len(missing_runs)
  logging.LOG.info(
    '%d runs; of part %d of %d there are %d to be done, on %s.',
    len(runs), shard_index, num_shards, num_missing, ', '.join(slot.name for slot in device_slots),
  )  # fmt: skip
  failures = []
  titles = [column.title for column in results.COLUMNS.values()]
  # Closed before anything is said, so that no run goes on unseen.
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
