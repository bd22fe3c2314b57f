"""STFPM's settings and number of steps: a table of accuracy over seeds, and its plot.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/stfpm_study.py --root=$DATA --category=toothbrush --weights=$WEIGHTS \
    --variant 'rate 0.4:' --variant 'rate 4: fit.learning_rate=4' -- --config.fit.batch_size=8

Each `--variant 'NAME: KEY=VALUE ...'` changes settings of configs/stfpm.py, or none. PaddleX's
tutorial has such a table: one run per cell, a rate that decays regardless of the table, and a
metric that ignores good images. Here every cell has several seeds, and good test images count:
image AUROC and false alarms need them. `--steps` are stages of one run. Each stage resumes the
previous one, which equals an uninterrupted run to the bit (see tests/test_main.py). In each stage
the step with the lowest held-out loss is evaluated. Finished stages are not repeated, so an
interrupted study continues. Arguments after `--` are passed on to every run.

The script prints the table, and writes table.md, table.csv (a row for each stage of each run) and
study.png to --workdir.
"""

import argparse
from collections.abc import Sequence
import itertools
import json
from pathlib import Path
import re
import statistics
import sys
from typing import NamedTuple

from matplotlib import figure
import subprocess_runs

from uadjax.sweep import results, tables
from uadjax.system import files

# Key of a summary -> title; the last five are at the calibrated thresholds.
_METRICS = {
  'image_auroc': 'image AUROC',
  'pixel_auroc': 'pixel AUROC',
  'defects_found': 'defects found',
  'defects_to_review': 'to review',
  'defects_missed': 'missed',
  'false_alarm_rate': 'false alarms',
  'iou': 'IoU',
}


class Variant(NamedTuple):
  """Changes to the settings of configs/stfpm.py, with a name for the table."""

  name: str
  changes: tuple[str, ...]

  def folder(self, workdir: Path, seed: int) -> Path:
    """Return the folder of a run."""
    return workdir / re.sub(r'\W+', '_', self.name) / f'seed_{seed}'


def parse_variant(text: str) -> Variant:
  """Parse `NAME: KEY=VALUE ...`."""
  name, colon, changes = text.partition(':')
  if not name or not colon:
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME: KEY=VALUE ...')
  return Variant(name, tuple(changes.split()))


def run_stage(folder: Path, steps: int, is_first: bool, flags: Sequence[str]) -> results.RunSummary:
  """Train in `folder` up to `steps`; return the metrics, or {'diverged': True}."""
  path = folder / f'steps_{steps}.json'
  if path.is_file():
    return json.loads(path.read_text())
  command = [sys.executable, '-m', 'uadjax.main', '--config=configs/stfpm.py']
  command += [f'--workdir={folder}', *flags]
  command += [f'--config.fit.steps={steps}', '--config.evaluate.save_pictures=0']
  command.append(f'--config.fit.{"overwrite=true" if is_first else "resume=latest"}')
  try:
    subprocess_runs.run_command(command)
  except SystemExit as failure:
    if 'training diverged' not in str(failure):
      raise
    summary: results.RunSummary = {'diverged': True}
  else:
    metrics = json.loads((folder / 'evaluate_result.json').read_text())['metrics']
    at_threshold = metrics['at_threshold']
    values = {**metrics, **at_threshold, **results.verdict_shares(at_threshold)}
    summary = {key: values[key] for key in _METRICS}
  folder.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(summary) + '\n')
  return summary


def format_cell(summaries: Sequence[results.RunSummary], key: str) -> str:
  """Return mean and range over the seeds that did not diverge, and the number that did."""
  num_diverged = sum('diverged' in summary for summary in summaries)
  text = tables.format_cell(
    tables.center_and_range([summary.get(key) for summary in summaries], statistics.mean), 3
  )
  return f'{text}; {num_diverged} of {len(summaries)} diverged' if num_diverged else text


Rows = dict[tuple[str, int], list[results.RunSummary]]  # By name of the variant, and steps.


def format_table(rows: Rows) -> str:
  """Return the rows as a Markdown table."""
  titles = ['variant', 'steps', 'seeds', *_METRICS.values()]
  return tables.markdown_table(
    titles,
    (
      [
        name,
        steps,
        len(summaries),
        *(format_cell(summaries, key) for key in _METRICS),
      ]
      for (name, steps), summaries in rows.items()
    ),
  )


def draw(rows: Rows, path: Path, title: str) -> None:
  """Draw image AUROC over steps: a line for each variant, and a band for the range."""
  fig = figure.Figure(figsize=(8, 4.5), layout='constrained')
  axes = fig.subplots()
  for name in dict.fromkeys(key[0] for key in rows):
    points = [
      (
        steps,
        tables.center_and_range(
          [summary.get('image_auroc') for summary in summaries], statistics.mean
        ),
      )
      for (row_name, steps), summaries in rows.items()
      if row_name == name
    ]
    curve_points = [(steps, *values) for steps, values in points if values]
    if not curve_points:
      continue
    steps, mean, low, high = zip(*curve_points, strict=True)
    (line,) = axes.plot(steps, mean, marker='o', label=name)
    axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
  axes.set(xlabel='steps', ylabel='image AUROC, mean and range over seeds', title=title)
  axes.grid(alpha=0.3)
  axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
  fig.savefig(path, dpi=120)


def main() -> None:
  """Run the missing stages, print the table and draw the plot."""
  parser = subprocess_runs.run_parser(__doc__)
  parser.add_argument('--variant', type=parse_variant, action='append', required=True)
  parser.add_argument('--steps', default='50,100,200')
  subprocess_runs.add_seeds(parser)
  parser.add_argument('--workdir', type=Path, default=Path('runs/stfpm_study'))
  parser.add_argument('overrides', nargs='*', help='after --: flags for every run')
  flags = parser.parse_args()
  variants: list[Variant] = flags.variant
  stage_steps = sorted(int(steps) for steps in flags.steps.split(','))
  summaries_by_cell: dict[tuple[str, int], dict[int, results.RunSummary]] = {}
  for seed, variant in itertools.product(flags.seeds, variants):
    run_flags = [
      *subprocess_runs.run_flags(flags.root, flags.category, flags.weights, seed),
      *flags.overrides,
      *(f'--config.{change}' for change in variant.changes),
    ]
    folder = variant.folder(flags.workdir, seed)
    summary: results.RunSummary = {}
    for steps in stage_steps:
      # A run that diverged does not recover.
      if 'diverged' not in summary:
        summary = run_stage(folder, steps, steps == stage_steps[0], run_flags)
      summaries_by_cell.setdefault((variant.name, steps), {})[seed] = summary
      print(f'seed {seed} {variant.name} steps {steps}: {summary}', flush=True)
  rows = {key: list(summaries.values()) for key, summaries in summaries_by_cell.items()}
  description = f'{flags.category}. {subprocess_runs.describe_machine()}.'
  if flags.overrides:
    description += f' Overrides: {" ".join(flags.overrides)}.'
  text = f'{format_table(rows)}\n\nOver seeds: mean (range). {description}\n'
  (flags.workdir / 'table.md').write_text(text)
  csv_rows = [
    [*key, seed, *(seed_summary.get(metric, 'diverged') for metric in _METRICS)]
    for key in summaries_by_cell
    for seed, seed_summary in summaries_by_cell[key].items()
  ]
  header = ['variant', 'steps', 'seed', *_METRICS]
  files.write_csv(flags.workdir / 'table.csv', [header, *csv_rows])
  draw(rows, flags.workdir / 'study.png', f'STFPM, {flags.category}')
  print(text)


if __name__ == '__main__':
  main()
