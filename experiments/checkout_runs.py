"""Runs of two checkouts of uadjax in alternating order, logged so that they can be continued."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any

Values = dict[str, Any]


def parse_flags(
  description: str | None, checkouts: Sequence[str], rounds: int
) -> argparse.Namespace:
  """Return the flags of a script: a path for each checkout, data, weights, log and rounds.

  Args:
    description: help of the script.
    checkouts: names of the flags with the checkouts' paths.
    rounds: default number of rounds.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in (*checkouts, 'root', 'weights', 'log'):
    parser.add_argument(f'--{name}', type=lambda text: Path(text).resolve(), required=True)
  parser.add_argument('--rounds', type=int, default=rounds)
  return parser.parse_args()


def alternate(
  log: Path,
  rounds: int,
  cases: Sequence[str],
  checkouts: Mapping[str, Path],
  measure: Callable[[Path, Path, str], Values],
) -> list[Values]:
  """Measure every case with both checkouts in each round, and return all runs of the log.

  The order of the checkouts alternates from round to round. Runs that the log has are not repeated.
  Processes that `measure` starts import uadjax from the checkout.

  Args:
    log: JSON lines, one per run: case, version (name of the checkout), round and values.
    rounds: number of rounds.
    cases: names of the cases.
    checkouts: paths of the checkouts by name.
    measure: (checkout, folder for its runs, case) -> values.
  """
  log.parent.mkdir(parents=True, exist_ok=True)
  log.touch()
  runs = [json.loads(line) for line in log.read_text().splitlines()]
  finished = {(run['case'], run['version'], run['round']) for run in runs}
  for number in range(rounds):
    for case in cases:
      for version, checkout in sorted(checkouts.items(), reverse=bool(number % 2)):
        if (case, version, number) in finished:
          continue
        os.environ['PYTHONPATH'] = str(checkout)
        values = measure(checkout, log.parent / version, case)
        runs.append({'case': case, 'version': version, 'round': number} | values)
        with log.open('a') as file:
          print(json.dumps(runs[-1]), file=file)
        print({k: v for k, v in runs[-1].items() if not isinstance(v, list)}, flush=True)
  return runs


def pairs(
  runs: Sequence[Values], case: str, versions: tuple[str, str]
) -> list[tuple[Values, Values]]:
  """Return the runs of a case with both checkouts, in the order of the rounds they share."""
  first, second = (
    {run['round']: run for run in runs if (run['case'], run['version']) == (case, version)}
    for version in versions
  )
  return [(first[number], second[number]) for number in sorted(first.keys() & second.keys())]
