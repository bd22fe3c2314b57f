"""False-alarm rates on unseen good images, compared with the budget of the thresholds.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/false_alarms.py --root=$DATA --weights=$WEIGHTS --categories=all --seeds=3 \
    --config=configs/padim.py --config=configs/patchcore.py

Each run is a separate process with its own folder. Finished runs are not repeated, and those of
`uadjax sweep` with the same settings and --workdir are used, too. A run scores held-out good images
(`model/calibration.csv`: path, score, peak) and the test images (`scores.csv`: path, defect, score,
label). The script calibrates thresholds for every budget on the former, and counts verdicts on the
latter. Arguments after `--` are passed on to every run. The table is printed, and written to
--workdir as false_alarms.md and false_alarms.csv.

false alarms: share of the good test images that are NG. In parentheses the 95 % interval of Clopper
and Pearson (1934). Seeds share the test images, so they are averaged, not summed; categories are
summed.
at most: bound that the share of all unseen good images exceeds in one of 20 calibrations.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
import statistics
import sys
from typing import NamedTuple

import numpy as np
from scipy import special
import subprocess_runs

from uadjax import sweep
from uadjax.data import layouts
from uadjax.model import calibration
from uadjax.sweep import results, slots, tables
from uadjax.system import files

_TITLES = (
  'detector', 'category', 'seeds', 'set on', 'budget', 'expected', 'at most', 'good',
  'false alarms', 'to review', 'defective', 'not NG', 'missed',
)  # fmt: skip


class VerdictCounts(NamedTuple):
  """Numbers of test images by verdict at one budget; means over seeds.

  Attributes:
    normals: held-out good images that calibrate the threshold.
    expected: expected false-alarm rate on unseen good images.
    bound: upper bound of the false-alarm rate.
    good: good test images.
    false_alarms: good test images that are NG.
    reviewed: good test images that are to be reviewed.
    defective: defective test images.
    not_ng: defective test images that are to be reviewed or OK.
    missed: defective test images that are OK.
  """

  normals: float
  expected: float
  bound: float
  good: float
  false_alarms: float
  reviewed: float
  defective: float
  not_ng: float
  missed: float


def count_verdicts(
  folder: Path, budget: float, review_budget: float, is_confident: bool
) -> VerdictCounts:
  """Calibrate the thresholds of a finished run for a budget, and count verdicts on test images."""
  calibration_rows = _read_csv(folder / 'model' / 'calibration.csv')
  scores = np.array([float(row['score']) for row in calibration_rows])
  peaks = np.array([float(row['peak']) for row in calibration_rows])
  thresholds = calibration.from_normals(
    scores, peaks, budget, max(budget, review_budget), is_confident
  )
  verdicts: dict[bool, list[str]] = {True: [], False: []}
  for row in _read_csv(folder / 'scores.csv'):
    label = calibration.label(float(row['score']), thresholds, bool(row['warnings']))
    verdicts[row['defect'] == 'good'].append(label)
  good, defective = verdicts[True], verdicts[False]
  return VerdictCounts(
    thresholds.num_normals,
    thresholds.expected_false_alarm_rate,
    thresholds.false_alarm_rate_bound,
    len(good),
    good.count('NG'),
    good.count('review'),
    len(defective),
    len(defective) - defective.count('NG'),
    defective.count('OK'),
  )


def average_over_seeds(counts: Iterable[VerdictCounts]) -> VerdictCounts:
  """Average counts over seeds."""
  return VerdictCounts(*map(statistics.fmean, zip(*counts, strict=True)))


def sum_over_categories(counts: Sequence[VerdictCounts]) -> VerdictCounts:
  """Sum counts over categories; expected rates and bounds are weighted by good test images."""
  good = sum(c.good for c in counts)
  expected, bound = (
    sum(getattr(c, key) * c.good for c in counts) / max(good, 1) for key in ('expected', 'bound')
  )
  normals, _, _, *sums = map(sum, zip(*counts, strict=True))
  return VerdictCounts(normals, expected, bound, *sums)


def confidence_interval(hits: float, n: float) -> tuple[float, float]:
  """Return the 95 % confidence interval of a share of which `hits` of n were observed."""
  low = special.betaincinv(hits, n - hits + 1, 0.025) if hits else 0.0
  high = special.betaincinv(hits + 1, n - hits, 0.975) if hits < n else 1.0
  return float(low), float(high)


def write_table(
  rows: Sequence[tuple[str, str, int, float, VerdictCounts]], workdir: Path, notes: str
) -> None:
  """Print the table, and write it as Markdown and CSV."""
  table_rows = [
    [
      detector, category, seeds, f'{c.normals:.0f}', _format_percent(budget),
      _format_percent(c.expected), _format_percent(c.bound), f'{c.good:.0f}',
      _format_share_with_interval(c.false_alarms, c.good), _format_share(c.reviewed, c.good),
      f'{c.defective:.0f}', _format_share(c.not_ng, c.defective),
      _format_share(c.missed, c.defective),
    ]
    for detector, category, seeds, budget, c in rows
  ]  # fmt: skip
  text = f'{tables.markdown_table(_TITLES, table_rows)}\n\n{notes}\n'
  (workdir / 'false_alarms.md').write_text(text)
  names = ['detector', 'category', 'seeds', 'budget', *VerdictCounts._fields]
  files.write_csv(workdir / 'false_alarms.csv', [names, *([*row[:-1], *row[-1]] for row in rows)])
  print(text)


def _read_csv(path: Path) -> list[dict[str, str]]:
  if not path.is_file():
    sys.exit(f'{path} is missing: an older uadjax made this run. Pass another --workdir.')
  return list(files.read_csv(path))


def _format_percent(share: float) -> str:
  return f'{100 * share:.1f} %'


def _format_share(hits: float, n: float) -> str:
  return _format_percent(hits / n) if n else '—'


def _format_share_with_interval(hits: float, n: float) -> str:
  if not n:
    return '—'
  low, high = confidence_interval(hits, n)
  return f'{_format_percent(hits / n)} ({100 * low:.1f}-{100 * high:.1f})'


def _count_all(
  runs: Sequence[sweep.Run], flags: argparse.Namespace
) -> list[tuple[str, str, int, float, VerdictCounts]]:
  rows = []
  for config in flags.config:
    for budget in flags.budgets:
      detector_counts = []
      for category in dict.fromkeys(run.category for run in runs):
        counts = [
          count_verdicts(folder, budget, flags.review_budget, flags.confident)
          for run in runs
          if run.config == config and run.category == category
          if results.load_summary(folder := run.run_dir(flags.workdir)) is not None
        ]
        if counts:
          detector_counts.append(average_over_seeds(counts))
          rows.append(
            (sweep.config_label(config), category, len(counts), budget, detector_counts[-1])
          )
      if len(detector_counts) > 1:
        all_label = f'all {len(detector_counts)}'
        rows.append(
          (
            sweep.config_label(config),
            all_label,
            len(flags.seeds),
            budget,
            sum_over_categories(detector_counts),
          )
        )
  return rows


def main() -> None:
  """Make the missing runs, then count verdicts and print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--root', required=True)
  parser.add_argument('--weights', required=True)
  parser.add_argument('--config', action='append', help='may be repeated; default PaDiM')
  parser.add_argument('--categories', default='all', help='names; or all, textures, objects')
  subprocess_runs.add_seeds(parser)
  parser.add_argument('--workdir', type=Path, default=Path('runs/false_alarms'))
  parser.add_argument('--budgets', default='0.01,0.05,0.1,0.2', help='shares of good images')
  parser.add_argument('--review_budget', type=float, default=0.05, help='at least the budget')
  parser.add_argument('--confident', action='store_true', help='keep budgets with 95 %% confidence')
  parser.add_argument('--table-only', action='store_true', help='run nothing; count finished runs')
  parser.add_argument('overrides', nargs='*', help='after --: flags for every run')
  flags = parser.parse_args()
  flags.config = flags.config or ['configs/padim.py']
  flags.budgets = [float(budget) for budget in flags.budgets.split(',')]
  categories = [
    name for group in flags.categories.split(',') for name in layouts.expand(flags.root, group)
  ]
  runs = sweep.plan_runs(flags.config, categories, flags.seeds)
  data_flags = [f'--config.data.root={flags.root}', f'--config.backbone.weights={flags.weights}']
  overrides = [*data_flags, *flags.overrides]
  if not flags.table_only:
    unfinished_runs = sweep.unfinished_runs(runs, flags.workdir)
    for run, summary, error in sweep.run_sweep(
      unfinished_runs, flags.workdir, overrides, slots.device_slots('auto')
    ):
      print(run, *(results.format_cells([summary]) if summary else [error]), flush=True)
  machines = sweep.record_sweep(flags.workdir, overrides, add_machine=False)
  if not (rows := _count_all(runs, flags)):
    sys.exit(f'{flags.workdir} contains no finished run of these; see the errors above.')
  guarantee = 'with 95 % confidence' if flags.confident else 'on average'
  notes = [
    f'Thresholds keep their budget {guarantee}.',
    f'Machine: {"; ".join(machines) or "unknown"}.',
  ]
  if flags.overrides:
    notes.append(f'Overrides: {" ".join(flags.overrides)}.')
  write_table(rows, flags.workdir, ' '.join(notes))


if __name__ == '__main__':
  main()
