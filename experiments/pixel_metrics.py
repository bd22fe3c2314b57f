"""Pixel metrics of a test set: `numerics.metrics` compared with a plain sort of all pixels.

  python experiments/pixel_metrics.py --images=160 --size=1024 --rounds=3

Maps and masks are synthetic: smooth noise, log-normal like distances. Three images of four have
irregular defects of various sizes, 2 % of all pixels, whose scores overlap with normal ones. They
are .npy files in a temporary folder (TMPDIR selects another disk). Both implementations alternate,
each time in a separate process. The time lasts from the files, which are then in the page cache, to
AUROC, average precision, F1-max and AU-PRO of the pixels. Both use the same function for the
weights of regions. The straightforward one uses np.argsort without stability, which is faster than
what scikit-learn uses. Peak is the process's largest resident size, imports included.
"""

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from jaxtyping import Bool, Float32
import numpy as np
from scipy import ndimage

from uadjax.numerics import metrics

AnomalyMap = Float32[np.ndarray, 'h w']
Mask = Bool[np.ndarray, 'h w']

_DEFECTIVE_PIXEL_SHARE = 0.027  # Share in a defective image; 2 % of all pixels.
_KNOT_SPACINGS = (64, 16, 32)  # Pixels between knots of the noise.


def smooth_noise(rng: np.random.Generator, size: int, knot_spacing: int) -> AnomalyMap:
  """Return smooth noise of about unit variance."""
  knots = rng.standard_normal((-(-size // knot_spacing) + 1,) * 2, dtype=np.float32)
  return np.asarray(ndimage.zoom(knots, knot_spacing, order=1))[:size, :size]


def write_test_set(folder: Path, num_images: int, size: int) -> None:
  """Write maps and masks; each depends on its index alone."""
  for i in range(num_images):
    rng = np.random.default_rng(i)
    scores, mask = (
      np.float32(0.05) * np.exp(0.6 * smooth_noise(rng, size, 16)),
      np.zeros((size, size), bool),
    )
    if i % 4:
      field = smooth_noise(rng, size, _KNOT_SPACINGS[i % 3])
      mask = field > np.quantile(field, 1 - _DEFECTIVE_PIXEL_SHARE)
      scores += mask * np.maximum(0, 0.1 + 0.1 * smooth_noise(rng, size, 32))
    np.save(folder / f'map_{i:04d}.npy', scores.astype(np.float32))
    np.save(folder / f'mask_{i:04d}.npy', mask)


def read_pairs(folder: Path) -> Iterator[tuple[AnomalyMap, Mask]]:
  """Yield the map and the mask of each image."""
  for path in sorted(folder.glob('map_*.npy')):
    yield np.load(path), np.load(path.with_name(path.name.replace('map', 'mask')))


def uadjax_metrics(folder: Path) -> dict[str, float]:
  """Compute the metrics from all anomalous pixels, and normal pixels image by image."""
  anomalous, weights = zip(
    *((scores[mask], metrics.region_weights(mask)) for scores, mask in read_pairs(folder)),
    strict=True,
  )
  normal = (scores[~mask] for scores, mask in read_pairs(folder))
  ranking = metrics.rank(np.concatenate(anomalous), normal, np.concatenate(weights))
  return {
    'AUROC': metrics.auroc(ranking),
    'AP': metrics.average_precision(ranking),
    'F1-max': metrics.f1_max(ranking),
    'AU-PRO': metrics.au_pro(ranking),
  }


def straightforward_metrics(folder: Path) -> dict[str, float]:
  """Compute the metrics by sorting all pixels, with cumulative sums at the last of each tie."""
  flat_arrays = []
  for scores, mask in read_pairs(folder):
    weights = np.zeros(scores.shape)
    weights[mask] = metrics.region_weights(mask)
    flat_arrays.append((scores.ravel(), mask.ravel(), weights.ravel()))
  scores, mask, weights = (np.concatenate(arrays) for arrays in zip(*flat_arrays, strict=True))
  del flat_arrays  # A careful author would free this memory.
  order = np.argsort(scores)[::-1]
  scores, mask, weights = scores[order], mask[order], weights[order]
  del order
  last_of_tie = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
  tp, overlap = np.cumsum(mask)[last_of_tie], np.cumsum(weights)[last_of_tie]
  fp = last_of_tie + 1 - tp
  recall, fpr = np.append(0, tp / tp[-1]), np.append(0, fp / fp[-1])
  pro = np.append(0, overlap / overlap[-1])
  fpr_grid = np.append(fpr[fpr <= 0.3], 0.3)
  pro_on_grid = np.append(pro[fpr <= 0.3], np.interp(0.3, fpr, pro))
  return {
    'AUROC': float(np.trapezoid(recall, fpr)),
    'AP': float(np.diff(recall) @ (tp / (tp + fp))),
    'F1-max': float((2 * tp / (tp + fp + tp[-1])).max()),
    'AU-PRO': float(np.trapezoid(pro_on_grid, fpr_grid) / 0.3),
  }


_METRIC_NAMES = ('AUROC', 'AP', 'F1-max', 'AU-PRO')
_IMPLEMENTATIONS = {'uadjax': uadjax_metrics, 'straightforward': straightforward_metrics}


def measure(implementation: str, folder: Path) -> dict[str, float]:
  """Run an implementation in this process; return its results, seconds and peak in MB."""
  start = time.perf_counter()
  results = _IMPLEMENTATIONS[implementation](folder)
  seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
  return {**results, 'seconds': seconds, 'peak MB': peak}


def measure_in_subprocess(implementation: str, folder: Path) -> dict[str, float]:
  """Run an implementation in a separate process; return what `measure` returns."""
  command = [sys.executable, __file__, f'--implementation={implementation}', f'--folder={folder}']
  out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
  return json.loads(out)


def compare(folder: Path, rounds: int) -> None:
  """Run both implementations alternately and print the table."""
  titles = ['round', 'uadjax s', 'straightforward s', 'ratio', 'uadjax MB', 'straightforward MB']
  print(f'| {" | ".join([*titles, "max difference"])} |')
  print('|---|---|---|---|---|---|---|')
  ratios, results = [], {}
  for i in range(rounds):
    implementations = tuple(_IMPLEMENTATIONS) if i % 2 == 0 else tuple(reversed(_IMPLEMENTATIONS))
    results = {
      implementation: measure_in_subprocess(implementation, folder)
      for implementation in implementations
    }
    a, b = results['uadjax'], results['straightforward']
    max_difference = max(abs(a[key] - b[key]) for key in _METRIC_NAMES)
    if max_difference > 1e-9:
      raise SystemExit(f'Results differ by {max_difference}, more than 1e-9: {results}')
    ratios.append(b['seconds'] / a['seconds'])
    cells = [f'{a["seconds"]:.1f}', f'{b["seconds"]:.1f}', f'{ratios[-1]:.1f}']
    cells += [f'{a["peak MB"]:.0f}', f'{b["peak MB"]:.0f}', f'{max_difference:.0e}']
    print(f'| {i + 1} | {" | ".join(cells)} |', flush=True)
  metrics_text = ', '.join(f'{key} {results["uadjax"][key]:.6f}' for key in _METRIC_NAMES)
  print(f'\nMedian ratio {statistics.median(ratios):.1f}. {metrics_text}.')


def main() -> None:
  """Write the test set, then compare the implementations."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=160)
  parser.add_argument('--size', type=int, default=1024)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument(
    '--implementation',
    choices=_IMPLEMENTATIONS,
    help='measure it on --folder in this process',
  )
  parser.add_argument('--folder', type=Path)
  flags = parser.parse_args()
  if flags.implementation:
    print(json.dumps(measure(flags.implementation, flags.folder)))
    return
  with tempfile.TemporaryDirectory() as folder:
    write_test_set(Path(folder), flags.images, flags.size)
    compare(Path(folder), flags.rounds)


if __name__ == '__main__':
  main()
