"""A data set checked: all that is wrong with it as a table, then in sentences."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box, table, text
import typer

from uadjax import config as configs, data
from uadjax.cli import console, runtime
from uadjax.data import problems
from uadjax.data.checks import report as reports
from uadjax.data.problems import Problem
from uadjax.errors import DataError
from uadjax.system import files, progress
from uadjax.types import Config

_SIGNS = {'error': ('✗', 'bold red'), 'warning': ('!', 'yellow')}


def check(dataset: Path, category: str, layout: str, output: Path | None, as_json: bool) -> None:
  """Check each category that is named; exit with 1 where errors are found."""
  if not dataset.is_dir():
    raise DataError(f'{dataset} is no folder; name one that holds images.')
  config = configs.base()
  config.data.update({'root': str(dataset), 'category': category, 'layout': layout})
  passed = True
  with runtime.ready():
    names = data.expand(config.data)
    for name in names:
      config.data.category = name
      folder = output / name if output and len(names) > 1 else output
      passed &= _check(config, folder, as_json)
  if not passed:
    raise typer.Exit(runtime.FAILED)


def _check(config: Config, folder: Path | None, as_json: bool) -> bool:
  """Whether nothing speaks against training on one category, which is told."""
  report = data.examine(config.data, track=progress.track)
  train, test = report.splits
  defects = collections.Counter(record.defect for record in test if record.anomalous)
  if folder:
    folder.mkdir(parents=True, exist_ok=True)
    left = reports.leave(report, folder)
    files.write_json(folder / 'check_dataset_result.json', {'done_flag': True, **left})
  if as_json:
    console.tell_json(
      {
        'dataset_path': str(report.directory),
        'check_pass': report.passed,
        'train_samples': len(train),
        'val_samples': len(test),
        'defects': dict(defects),
        'problems': [{**p._asdict(), 'path': str(p.path)} for p in report.problems],
      }
    )
    return report.passed
  sign, style = console.SIGNS['OK' if report.passed else 'NG']
  verdict = 'Check dataset passed !' if report.passed else 'Check dataset failed.'
  console.tell(
    text.Text.assemble((f'{sign} {verdict}', style), f' {runtime.printable(str(report.directory))}')
  )
  console.tell(_counts(len(train), len(test), defects))
  _tell(report.problems)
  if folder:
    console.tell(f'Pictures and all problems: {runtime.printable(str(folder))}')
  return report.passed


def _counts(train: int, test: int, defects: Mapping[str, int]) -> table.Table:
  """How many images there are of which kind."""
  rows = table.Table(box=box.SIMPLE_HEAD)
  rows.add_column('images')
  rows.add_column('number', justify='right')
  rows.add_row('to learn from', str(train))
  rows.add_row('to test on: good', str(test - sum(defects.values())))
  for kind, count in sorted(defects.items()):
    rows.add_row(text.Text(f'to test on: {runtime.printable(kind)}'), str(count))
  return rows


def _tell(found: Sequence[Problem]) -> None:
  """Count problems of a kind in a table, then tell of each below it, where paths stay whole."""
  kinds: dict[tuple[str, str], list[str]] = {}
  for problem in sorted(found, key=lambda p: (p.severity, p.kind)):
    kinds.setdefault((problem.severity, problem.kind), []).append(problem.message)
  if not kinds:
    return
  rows = table.Table(box=box.SIMPLE_HEAD)
  rows.add_column('problem')
  rows.add_column('number', justify='right')
  for (severity, kind), messages in kinds.items():
    rows.add_row(_titled(severity, kind), str(len(messages)))
  console.tell(rows)
  for (severity, kind), messages in kinds.items():
    console.tell(_titled(severity, kind))
    console.tell(f'  {problems.listed([runtime.printable(message) for message in messages])}\n')


def _titled(severity: str, kind: str) -> text.Text:
  sign, style = _SIGNS[severity]
  return text.Text(f'{sign} {severity}, {kind}', style)
