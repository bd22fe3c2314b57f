"""Table of the finished runs of a sweep: statistics over seeds, and means over categories."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
from pathlib import Path
import statistics
from typing import Any, NamedTuple

from uadjax.sweep import tables
from uadjax.system import files

RunSummary = dict[str, Any]  # Flat dictionary of the metrics and timings of a run.
Rows = list[tuple[str, str, dict[int, RunSummary]]]  # Config label, category, summary by seed.


class Column(NamedTuple):
  """Column of the table.

  Attributes:
    title: title in the text.
    average: average over several runs.
    digits: number of decimal digits in the text.
    unit: value that the text shows as 1; 0.01 to show a share as a percentage.
  """

  title: str
  average: Callable[[Iterable[float]], float]
  digits: int
  unit: float = 1.0


# By class: column of the number of images, and columns of the shares of the verdicts in
# `at_threshold.counts`.
_VERDICT_COLUMNS = {
  'defective': ('num_defective', {
    'ng': 'defects_found', 'review': 'defects_to_review', 'ok': 'defects_missed',
  }),
  'good': ('num_good', {'ok': 'good_passed', 'review': 'good_to_review', 'ng': 'good_rejected'}),
}  # fmt: skip

COLUMNS = {
  'num_defective': Column('defective', statistics.mean, 0),
  'defects_found': Column('found %', statistics.mean, 1, 0.01),
  'defects_to_review': Column('defects to review %', statistics.mean, 1, 0.01),
  'defects_missed': Column('missed %', statistics.mean, 1, 0.01),
  'num_good': Column('good', statistics.mean, 0),
  'good_passed': Column('passed %', statistics.mean, 1, 0.01),
  'good_to_review': Column('good to review %', statistics.mean, 1, 0.01),
  'good_rejected': Column('falsely rejected %', statistics.mean, 1, 0.01),
  'image_auroc': Column('image AUROC', statistics.mean, 3),
  'pixel_auroc': Column('pixel AUROC', statistics.mean, 3),
  'au_pro': Column('AU-PRO', statistics.mean, 3),
  'au_pro_05': Column('AU-PRO to 5 %', statistics.mean, 3),
  'fit_s': Column('fit s', statistics.median, 1),
  'evaluate_s': Column('evaluate s', statistics.median, 1),
  'fit_peak_mb': Column('peak MB', statistics.median, 0),
}


def load_summary(workdir: Path) -> RunSummary | None:
  """Return the summary of the finished run in `workdir`, or None if there is none."""
  path = workdir / 'train_result.json'
  result = json.loads(path.read_text()) if path.is_file() else {}
  if not result.get('done_flag'):
    return None
  metrics, timing = result.get('metrics', {}), result['timing']
  return {
    **{key: metrics.get(key) for key in ('image_auroc', 'pixel_auroc', 'au_pro', 'au_pro_05')},
    **verdict_shares(metrics.get('at_threshold', {})),
    **{key: timing.get(key) for key in ('check_s', 'fit_s', 'calibrate_s', 'evaluate_s')},
    'fit_peak_mb': timing['peak_memory_mb'],
    **result.get('summary', {}),
  }


def verdict_shares(at_threshold: Mapping[str, Any]) -> RunSummary:
  """Return the number of defective and of good images, and the share of each verdict on them.

  Args:
    at_threshold: metrics at the calibrated thresholds. Without them all values are None; without
      images of a class, its shares are None.
  """
  summary: RunSummary = {}
  for image_class, (num_key, share_keys) in _VERDICT_COLUMNS.items():
    counts = at_threshold.get('counts', {}).get(image_class)
    summary[num_key] = num_images = sum(counts.values()) if counts else None
    for verdict, key in share_keys.items():
      summary[key] = counts[verdict] / num_images if counts and num_images else None
  return summary


def summarize_runs(runs: Iterable[tuple[str, str, int, RunSummary]]) -> Rows:
  """Group runs (config label, category, seed, summary) into rows, one per config and category.

  Configs with several categories get a further row with the mean over categories.
  """
  runs_by_config: dict[str, dict[str, dict[int, RunSummary]]] = {}
  for config_label, category, seed, summary in runs:
    runs_by_config.setdefault(config_label, {}).setdefault(category, {})[seed] = summary
  rows: Rows = []
  for label, by_category in runs_by_config.items():
    rows += [(label, category, by_seed) for category, by_seed in by_category.items()]
    means = _mean_over_categories([*by_category.values()]) if len(by_category) > 1 else None
    if means:
      rows.append((label, f'mean of {len(by_category)}', means))
  return rows


def _mean_over_categories(categories: Sequence[Mapping[int, RunSummary]]) -> dict[int, RunSummary]:
  """Return the mean over categories by seed, for the seeds that all categories have."""

  def mean(seed: int, key: str) -> float | None:
    values = tables.center_and_range(
      [by_seed[seed][key] for by_seed in categories], statistics.mean
    )
    return values.center if values else None

  seeds = sorted(set.intersection(*map(set, categories)))
  return {seed: {key: mean(seed, key) for key in COLUMNS} for seed in seeds}


def format_cells(summaries: Iterable[RunSummary]) -> list[str]:
  """Return the cells of a table row for one or several runs, in the order of `COLUMNS`."""
  ranges = _ranges([*summaries])
  return [
    tables.format_cell(cell, column.digits, column.unit)
    for cell, column in zip(ranges, COLUMNS.values(), strict=True)
  ]


def _ranges(summaries: Sequence[RunSummary]) -> list[tables.CenterAndRange | None]:
  """Return the average and range of each column."""
  return [
    tables.center_and_range([summary[key] for summary in summaries], column.average)
    for key, column in COLUMNS.items()
  ]


def write_tables(rows: Rows, workdir: Path, footnote: str) -> str:
  """Write table.md and table.csv into `workdir`, and return the text of table.md."""
  leading_titles, markdown_rows, csv_rows = ['detector', 'category', 'seeds'], [], []
  for label, category, by_seed in rows:
    leading_cells = [label, category, len(by_seed)]
    markdown_rows.append([*leading_cells, *format_cells(by_seed.values())])
    ranges = _ranges([*by_seed.values()])
    csv_rows.append([*leading_cells, *(x for cell in ranges for x in cell or ('', '', ''))])
  markdown = tables.markdown_table(
    [*leading_titles, *(column.title for column in COLUMNS.values())], markdown_rows
  )
  text = (
    f'{markdown}\n\nAt the calibrated thresholds, defective images are found (NG), to review or '
    'missed (OK); good images are passed (OK), to review or falsely rejected (NG). Over seeds: '
    'verdicts, AUROC and AU-PRO mean (range), others median (range). Rows of means average the '
    f'categories first, for each seed.\n{footnote}\n'
  )
  files.write_text(workdir / 'table.md', text)
  column_names = [key + suffix for key in COLUMNS for suffix in ('', '_low', '_high')]
  files.write_csv(workdir / 'table.csv', [[*leading_titles, *column_names], *csv_rows])
  return text
