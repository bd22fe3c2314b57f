"""Use of the cores by prediction of a directory, compared with reading and scoring alone.

  python experiments/predict_speed.py --model=runs/bottle/model \
    --images=../shared/data/mvtec_ad/screw/test

Reading: files to pixels at network size, in as many threads as prediction uses. Scoring: batches in
memory, as many at a time as prediction computes. Predicting: `predict` of the directory. If reading
and scoring need the same cores, as on a CPU, prediction takes at least the sum of their times:
`bound`. Rounds alternate; figures are images per second.
"""

import argparse
from concurrent import futures
from pathlib import Path
import time

import numpy as np
import subprocess_runs

from uadjax import create_model
from uadjax.data import inputs
from uadjax.data.layouts import scanning
from uadjax.inference import predictor
from uadjax.sweep import tables
from uadjax.system import memory, threads


def read_images(predictor: predictor.Predictor, paths: list[Path]) -> list[np.ndarray]:
  """Read all images and resize them to network size."""

  def read_image(path: Path) -> np.ndarray:
    return predictor.model.ops.apply(inputs.read(inputs.Source(str(path), path)))

  with futures.ThreadPoolExecutor(threads.num_cores()) as pool:
    return list(pool.map(read_image, paths))


def score_batches(
  predictor: predictor.Predictor, pixels: list[np.ndarray], batch_size: int
) -> None:
  """Score batches on alternating devices."""
  num_scored = len(pixels) - len(pixels) % batch_size
  batches = [
    np.stack(pixels[start : start + batch_size]) for start in range(0, num_scored, batch_size)
  ]

  def score_batch(index: int) -> None:
    predictor.scorer.runs[index % len(predictor.scorer.runs)](batches[index])

  with futures.ThreadPoolExecutor(predictor.scorer.concurrency) as pool:
    list(pool.map(score_batch, range(len(batches))))


def measure(
  predictor: predictor.Predictor, folder: Path, batch_size: int, rounds: int
) -> list[str]:
  """Measure with one batch size and return the table row."""
  paths = scanning.find_files(folder)
  pixels = read_images(predictor, paths)
  list(predictor.predict(paths[: batch_size * len(predictor.devices)], batch_size))  # Compiles.
  seconds: dict[str, list[float]] = {'reading': [], 'scoring': [], 'predicting': []}
  for _ in range(rounds):
    for name, task in (
      ('reading', lambda: read_images(predictor, paths)),
      ('scoring', lambda: score_batches(predictor, pixels, batch_size)),
      ('predicting', lambda: [result.score for result in predictor.predict(folder, batch_size)]),
    ):
      start_time = time.perf_counter()
      task()
      seconds[name].append(time.perf_counter() - start_time)
  rates = {
    name: tables.center_and_range([len(paths) / s for s in durations])
    for name, durations in seconds.items()
  }
  triples = list(zip(*seconds.values(), strict=True))
  share_of_slower = tables.center_and_range([max(r, s) / p for r, s, p in triples])
  bound = tables.center_and_range([max(r, s) / (r + s) for r, s, _ in triples])
  return [
    str(batch_size),
    *(tables.format_cell(rate, 1) for rate in rates.values()),
    tables.format_cell(share_of_slower, 2),
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
  rows = [measure(predictor, flags.images, batch_size, flags.rounds) for batch_size in (1, 8)]
  titles = ['batch', 'reading', 'scoring', 'predicting', 'share of the slower', 'bound']
  print(tables.markdown_table(titles, rows))
  print(
    f'\n{predictor.model.name}, {len(predictor.devices)} devices, '
    f'{len(scanning.find_files(flags.images))} images. {subprocess_runs.describe_machine()}.'
  )


if __name__ == '__main__':
  main()
