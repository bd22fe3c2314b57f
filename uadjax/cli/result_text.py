"""Results and metrics as colored lines and tables, for the commands that score images."""

from collections.abc import Mapping
from typing import Any

from rich import box, table, text

from uadjax.cli import console, runtime
from uadjax.evaluation import verdicts
from uadjax.inference.result import Result, UNREADABLE

SIGNS = {**console.SIGNS, UNREADABLE: ('!', 'magenta')}
_WIDTH = max(map(len, SIGNS))
_METRIC_TITLES = {
  'image_auroc': 'image AUROC',
  'pixel_auroc': 'pixel AUROC',
  'au_pro': 'AU-PRO',
  'image_f1_max': 'image F1-max (oracle)',
}


def verdict_line(result: Result) -> text.Text:
  """Format label, score, path, codes of warnings and, for review, where to look."""
  label = UNREADABLE if result.error else result.label
  details = result.error or f'{result.score:>10.4g}  {result.input_path}'
  if result.warnings:
    details += f'  ({result.warning_codes})'
  if result.label == 'review':
    details += f'  look at x {result.at[0]}, y {result.at[1]}'
  sign, style = SIGNS[label]
  printable = runtime.to_printable(details)
  return text.Text.assemble((f'{sign} {label:<{_WIDTH}}', style), '  ', printable)


def part_line(row: Mapping[str, Any]) -> text.Text:
  """Format label, name and number of images of a part."""
  sign, style = SIGNS[row['label']]
  noun = 'image' if row['images'] == 1 else 'images'
  details = runtime.to_printable(f'{row["part"]}  ({row["images"]} {noun})')
  return text.Text.assemble((f'{sign} {row["label"]:<{_WIDTH}}', style), '  ', details)


def summary_table(counts: Mapping[str, int], noun: str = 'images') -> table.Table:
  """Return a table of the number and share of images, or of another noun, per label."""
  rich_table = table.Table(box=box.SIMPLE_HEAD, show_footer=True, padding=(0, 1))
  total = sum(counts.values())
  rich_table.add_column('label', noun)
  rich_table.add_column('count', str(total), justify='right')
  rich_table.add_column('share', justify='right')
  for label, (sign, style) in SIGNS.items():
    if (count := counts[label]) or label in ('OK', 'NG'):
      share = f'{count / total:.1%}' if total else ''
      rich_table.add_row(text.Text(f'{sign} {label}', style), str(count), share)
  return rich_table


def metrics_table(metrics: Mapping[str, Any]) -> table.Table:
  """Return a table of the verdicts on test images and parts, then of the ranking metrics."""
  columns = ('test images', table.Column('', justify='right'), table.Column('', justify='right'))
  rich_table = table.Table(*columns, box=box.SIMPLE_HEAD)
  counts = {'': metrics['at_threshold']['counts'], ' parts': metrics.get('parts', {})}
  for noun, class_counts in counts.items():
    for outcome in verdicts.outcomes(class_counts):
      title = f'{outcome.image_class}{noun}: {outcome.name}'
      number = f'{outcome.num_images} of {outcome.num_in_class}'
      rich_table.add_row(title, number, outcome.percent)
  for key, title in _METRIC_TITLES.items():
    if (value := metrics[key]) is not None:
      rich_table.add_row(title, f'{value:.3f}')
  return rich_table
