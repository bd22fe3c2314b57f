"""The command `uadjax check`: checks the categories of a dataset, and prints all problems."""

import collections
import dataclasses
from pathlib import Path

from rich import text
import typer

from uadjax import config as configs, data, errors
from uadjax.cli import console, runtime
from uadjax.cli.options import CheckOptions
from uadjax.data import checks
from uadjax.data.checks import report as reports, unused_files
from uadjax.data.settings import DataSettings
from uadjax.errors import DataError
from uadjax.system import files


def run(options: CheckOptions) -> None:
  """Check each named category; exit with status 1 if a check finds errors."""
  if not options.dataset.is_dir():
    raise DataError(f'{options.dataset} is not a folder; name a folder that holds images.')
  runtime.require_writable('--output', options.output)
  values = {
    'root': options.dataset,
    'category': options.category,
    'layout': options.layout,
    'mask': options.mask,
    'bits': options.bits,
    'range': options.range,
  }
  settings = configs.replace(DataSettings(), values)
  all_passed, output = True, options.output
  categories = data.expand(settings)
  for category in categories:
    folder = output / category if output and len(categories) > 1 else output
    category_settings = dataclasses.replace(settings, category=category)
    all_passed &= _check_category(category_settings, folder, options.as_json)
  if not_used := data.unused_in_root(settings, categories):
    _print_unused_in_root(options, not_used)
  if not all_passed:
    raise typer.Exit(errors.EXIT_FAILURE)


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
        'not_used': [group.to_dict() for group in report.not_used],
      }
    )
    return report.passed
  sign, style = console.SIGNS['OK' if report.passed else 'NG']
  # Line breaks in names are escaped, those between messages are not.
  directory = Path(runtime.to_printable(str(report.directory)))
  problems = tuple(p._replace(message=runtime.to_printable(p.message)) for p in report.problems)
  not_used = _printable(report.not_used)
  lines = str(report._replace(directory=directory, problems=problems, not_used=not_used))
  console.print_line(text.Text.assemble((sign, style), f' {lines}'))
  if defect_counts:
    counts = ', '.join(f'{name} {count}' for name, count in sorted(defect_counts.items()))
    console.print_line(f'Defects: {runtime.to_printable(counts)}.')
  if folder:
    console.print_line(f'Sample pictures and all problems: {runtime.to_printable(str(folder))}')
  return report.passed


def _print_unused_in_root(options: CheckOptions, not_used: tuple[checks.NotUsed, ...]) -> None:
  """Print which files lie in the folder of the categories, but in no category."""
  if options.as_json:
    groups = [group.to_dict() for group in not_used]
    console.print_json({'dataset_path': str(options.dataset), 'not_used': groups})
    return
  path = runtime.to_printable(str(options.dataset))
  text_of_groups = unused_files.describe(_printable(not_used))
  console.print_line(f'{path} has files outside of its categories. {text_of_groups}')


def _printable(groups: tuple[checks.NotUsed, ...]) -> tuple[checks.NotUsed, ...]:
  """Return groups of files whose names can be printed."""
  return tuple(g._replace(examples=tuple(map(runtime.to_printable, g.examples))) for g in groups)
