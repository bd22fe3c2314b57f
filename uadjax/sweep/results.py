"""What finished runs tell, as one table: over seeds, and over categories in the mean."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
from pathlib import Path
import statistics
from typing import Any, NamedTuple

from uadjax.sweep import tables
from uadjax.system import files

Told = dict[str, Any]  # What a run tells of itself, without nesting.
# Detector, category, what each seed told.
Rows = list[tuple[str, str, dict[int, Told]]]


class Column(NamedTuple):
  """A number of every run: its title, what is shown of several, and how exactly."""

  title: str
  center: Callable[[Iterable[float]], float]
  digits: int


COLUMNS = {
  'image_auroc': Column('image AUROC', statistics.mean, 3),
  'pixel_auroc': Column('pixel AUROC', statistics.mean, 3),
  'au_pro': Column('AU-PRO', statistics.mean, 3),
  'fit_s': Column('fit s', statistics.median, 1),
  'evaluate_s': Column('evaluate s', statistics.median, 1),
  'fit_peak_mb': Column('peak MB', statistics.median, 0),
}


def done(workdir: Path) -> Told | None:
  """What the finished run in a folder tells; None where there is none."""
  path = workdir / 'train_result.json'
  result = json.loads(path.read_text()) if path.is_file() else {}
  if not result.get('done_flag'):
    return None
  metrics, timing = result.get('metrics', {}), result['timing']
  return {
    'image_auroc': metrics.get('image_auroc'),
    'pixel_auroc': metrics.get('pixel_auroc'),
    'au_pro': metrics.get('au_pro'),
    'fit_s': timing['fit_s'],
    'calibrate_s': timing['calibrate_s'],
    'evaluate_s': timing['evaluate_s'],
    'fit_peak_mb': timing['peak_memory_mb'],
    **result.get('learned', {}),
  }


def summed_up(runs: Iterable[tuple[str, str, int, Told]]) -> Rows:
  """Sort (detector, category, seed, what it told); for several categories then their mean."""
  found: dict[str, dict[str, dict[int, Told]]] = {}
  for model, category, seed, told in runs:
    found.setdefault(model, {}).setdefault(category, {})[seed] = told
  rows: Rows = []
  for model, of_model in found.items():
    rows += [(model, category, of_seed) for category, of_seed in of_model.items()]
    if len(of_model) > 1 and (means := _averaged(list(of_model.values()))):
      rows.append((model, f'mean of {len(of_model)}', means))
  return rows


def _averaged(categories: Sequence[Mapping[int, Told]]) -> dict[int, Told]:
  """The mean over categories, for each seed that all of them have."""
  seeds = sorted(set.intersection(*(set(of_seed) for of_seed in categories)))
  means = {}
  for seed in seeds:
    spreads = {
      key: tables.spread([of_seed[seed][key] for of_seed in categories], statistics.mean)
      for key in COLUMNS
    }
    means[seed] = {key: found.center if found else None for key, found in spreads.items()}
  return means


def cells(told: Iterable[Told]) -> list[str]:
  """The numbers of one run, or of several."""
  told = list(told)
  return [
    tables.cell(tables.spread([one[key] for one in told], column.center), column.digits)
    for key, column in COLUMNS.items()
  ]


def leave(rows: Rows, workdir: Path, about: str) -> str:
  """Write the table as table.md and table.csv; the former's text."""
  first, shown, written = ['detector', 'category', 'seeds'], [], []
  for model, category, of_seed in rows:
    begin = [model, category, len(of_seed)]
    shown.append([*begin, *cells(of_seed.values())])
    spreads = [
      tables.spread([told[key] for told in of_seed.values()], column.center)
      for key, column in COLUMNS.items()
    ]
    written.append([*begin, *(number for found in spreads for number in found or ('', '', ''))])
  markdown = tables.markdown([*first, *(column.title for column in COLUMNS.values())], shown)
  text = (
    f'{markdown}\n\nOver seeds: AUROC and AU-PRO mean (range), others median (range); in the rows '
    f'of means categories are averaged first, seed by seed.\n{about}\n'
  )
  files.write_text(workdir / 'table.md', text)
  names = [key + end for key in COLUMNS for end in ('', '_low', '_high')]
  files.write_csv(workdir / 'table.csv', [[*first, *names], *written])
  return text
