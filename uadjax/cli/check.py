"""The command `uadjax check`: a table of problem counts, then all messages."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

from rich import box, table, text
import typer

from uadjax import config as configs, data
from uadjax.cli import console, runtime
from uadjax.data import problems
from uadjax.data.checks import report as reports
from uadjax.data.problems import Problem
from uadjax.data.settings import DataSettings
from uadjax.errors import DataError
from uadjax.system import files

_SEVERITY_SIGNS = {'error': ('✗', 'bold red'), 'warning': ('!', 'yellow')}


def check_dataset(
  dataset: Path, category: str, layout: str, output: Path | None, as_json: bool
) -> None:
  """Check each named category; exit with status 1 if a check finds errors."""
  if not dataset.is_dir():
    raise DataError(f'{dataset} is not a folder; name a folder that holds images.')
  settings = DataSettings(str(dataset), category)
  settings = configs.replace(settings, {'layout': layout})
  all_passed = True
  category_names = data.expand(settings)
  for category_name in category_names:
    folder = output / category_name if output and len(category_names) > 1 else output
    all_passed &= _check_category(
      dataclasses.replace(settings, category=category_name), folder, as_json
    )
  if not all_passed:
    raise typer.Exit(runtime.EXIT_FAILURE)


def _check_category(settings: DataSettings, folder: Path | None, as_json: bool) -> bool:
  """Check one category, print the result, and return whether it can be trained on."""
  report = data.check_dataset(settings)
  train, test = report.splits
  defect_counts = collections.Counter(record.defect for record in test if record.is_anomalous)
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
    report_fields = reports.write(report, folder)
    files.write_json(folder / 'check_dataset_result.json', {'done_flag': True, **report_fields})
  if as_json:
    console.print_json(
      {
        'dataset_path': str(report.directory),
        'check_pass': report.passed,
        'train_samples': len(train),
        'val_samples': len(test),
        'defects': dict(defect_counts),
        'problems': [{**p._asdict(), 'path': str(p.path)} for p in report.problems],
      }
    )
    return report.passed
  sign, style = console.SIGNS['OK' if report.passed else 'NG']
  message = 'Check dataset passed !' if report.passed else 'Check dataset failed.'
  console.print_line(
    text.Text.assemble(
      (f'{sign} {message}', style), f' {runtime.to_printable(str(report.directory))}'
    )
  )
  console.print_line(_count_table(len(train), len(test), defect_counts))
  _print_problems(report.problems)
  if folder:
    console.print_line(f'Sample pictures and all problems: {runtime.to_printable(str(folder))}')
  return report.passed


def _count_table(num_train: int, num_test: int, defect_counts: Mapping[str, int]) -> table.Table:
  """Return a table of the number of images per split and defect type."""
  rich_table = table.Table(box=box.SIMPLE_HEAD)
  rich_table.add_column('images')
  rich_table.add_column('count', justify='right')
  rich_table.add_row('train: good', str(num_train))
  rich_table.add_row('test: good', str(num_test - sum(defect_counts.values())))
  for defect, count in sorted(defect_counts.items()):
    rich_table.add_row(text.Text(f'test: {runtime.to_printable(defect)}'), str(count))
  return rich_table


def _print_problems(all_problems: Sequence[Problem]) -> None:
  """Print a table of problem counts, then all messages without wrapping, to keep paths intact."""
  messages_by_kind: dict[tuple[str, str], list[str]] = {}
  for problem in sorted(all_problems, key=lambda p: (p.severity, p.kind)):
    messages_by_kind.setdefault((problem.severity, problem.kind), []).append(problem.message)
  if not messages_by_kind:
    return
  rich_table = table.Table(box=box.SIMPLE_HEAD)
  rich_table.add_column('problem')
  rich_table.add_column('count', justify='right')
  for (severity, kind), messages in messages_by_kind.items():
    rich_table.add_row(_kind_heading(severity, kind), str(len(messages)))
  console.print_line(rich_table)
  for (severity, kind), messages in messages_by_kind.items():
    console.print_line(_kind_heading(severity, kind))
    console.print_line(
      f'  {problems.join_messages([runtime.to_printable(message) for message in messages])}\n'
    )


def _kind_heading(severity: str, kind: str) -> text.Text:
  sign, style = _SEVERITY_SIGNS[severity]
  return text.Text(f'{sign} {severity}, {kind}', style)
