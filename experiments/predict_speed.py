"""Whether predicting a directory keeps the cores busy: reading alone, scoring alone, and both.

  python experiments/predict_speed.py --model=runs/bottle/model \
    --images=../shared/data/mvtec_ad/screw/test

Reading: files to pixels at network size, in as many threads as predicting has. Scoring: batches
that are there already, as many at once as predicting computes. Predicting: `predict` of the
directory. Where both parts need the same cores, as on a CPU, nothing is faster than the sum of
their times: `bound`.
Rounds in turn; images per second.
"""

import argparse
from concurrent import futures
from pathlib import Path
import time

import fresh
import numpy as np

from uadjax import create_model
from uadjax.data import inputs
from uadjax.data.layouts import scanning
from uadjax.inference import predictor
from uadjax.sweep import tables
from uadjax.system import memory, threads


def reading(predictor: predictor.Predictor, paths: list[Path]) -> list[np.ndarray]:
  """Bring all images to network size."""

  def one(path: Path) -> np.ndarray:
    return predictor.model.ops.apply(inputs.read(inputs.Source(str(path), path)))

  with futures.ThreadPoolExecutor(threads.num_cores()) as pool:
    return list(pool.map(one, paths))


def scoring(predictor: predictor.Predictor, pixels: list[np.ndarray], rows: int) -> None:
  """Score batches, each on the next device."""
  whole = len(pixels) - len(pixels) % rows
  batches = [np.stack(pixels[at : at + rows]) for at in range(0, whole, rows)]

  def one(number: int) -> None:
    predictor.scorers[number % len(predictor.scorers)](batches[number])

  with futures.ThreadPoolExecutor(predictor.max_concurrent_batches) as pool:
    list(pool.map(one, range(len(batches))))


def measure(predictor: predictor.Predictor, folder: Path, rows: int, rounds: int) -> list[str]:
  """One line of the table."""
  paths = scanning.find_images(folder)
  pixels = reading(predictor, paths)
  list(predictor.predict(paths[: rows * len(predictor.devices)], rows))  # Compiles.
  seconds: dict[str, list[float]] = {'reading': [], 'scoring': [], 'predicting': []}
  for _ in range(rounds):
    for name, work in (
      ('reading', lambda: reading(predictor, paths)),
      ('scoring', lambda: scoring(predictor, pixels, rows)),
      ('predicting', lambda: [one.score for one in predictor.predict(folder, rows)]),
    ):
      began = time.perf_counter()
      work()
      seconds[name].append(time.perf_counter() - began)
  rates = {
    name: tables.center_and_range([len(paths) / s for s in each]) for name, each in seconds.items()
  }
  triples = list(zip(*seconds.values(), strict=True))
  share = tables.center_and_range([max(r, s) / p for r, s, p in triples])
  bound = tables.center_and_range([max(r, s) / (r + s) for r, s, _ in triples])
  return [
    str(rows),
    *(tables.format_cell(rate, 1) for rate in rates.values()),
    tables.format_cell(share, 2),
    tables.format_cell(bound, 2),
  ]


def main() -> None:
  """Print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', type=Path, required=True)
  parser.add_argument('--images', type=Path, required=True)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--backend', default='jax')
  flags = parser.parse_args()
  memory.retain_freed_pages()
  predictor = create_model(model_dir=flags.model, backend=flags.backend)
  rows = [measure(predictor, flags.images, rows, flags.rounds) for rows in (1, 8)]
  titles = ['batch', 'reading', 'scoring', 'predicting', 'share of the slower', 'bound']
  print(tables.markdown_table(titles, rows))
  print(
    f'\n{predictor.model.name}, {len(predictor.devices)} devices, '
    f'{len(scanning.find_images(flags.images))} images. {fresh.machine()}.'
  )


if __name__ == '__main__':
  main()
