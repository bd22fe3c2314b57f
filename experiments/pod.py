"""Estimate of what a TPU pod slice would do; nothing here is measured on one.

  python experiments/pod.py
  python experiments/pod.py --chips=16 --share=0.3

Operations per image and bytes between devices are those that traffic.py and shards.py read from the
compiled programs, as formulas. The chip is described by published figures (TPU v5e:
cloud.google.com/tpu/docs/v5e) and by assumptions that you should replace with your own: the share
of peak performance that is reached, the bytes per second that a collective delivers to a chip, and
the duration of a sequential step. Reading files is not included; predict_speed.py measures it.

Letters: c chips, b images of a batch per chip, p patches per image, d dimensions of a patch, n
patches to select from, k selected patches.
"""

import argparse
from typing import Any

import subprocess_runs

from uadjax.sweep import tables

# Figures of ResNet-18 at 256x256 pixels, from traffic.py.
_FEATURE_FLOPS = 3.6e9  # Operations per image up to layer3.
_STEP_FLOPS = 13.7e9  # Operations per image of a training step of STFPM.
_GRADIENT_BYTES = 11.2e6  # Gradients of STFPM.
_PADIM_SHAPE = 64 * 64, 100  # Patches p and dimensions d.
_PATCHCORE_SHAPE = 32 * 32, 384
# Constants of numerics/coreset.py.
_SKETCH_DIM, _NUM_CANDIDATES, _MAX_NEW_CENTERS = 64, 4096, 1024
# A TPU computes a float32 product in full precision as six bfloat16 products.
_PRODUCTS_PER_FLOAT32 = 6


def float32_flops_per_s(flags: argparse.Namespace) -> float:
  """Return the operations per second of a chip in full float32 precision, as uadjax computes."""
  return flags.tflops * 1e12 * flags.share / _PRODUCTS_PER_FLOAT32


def batch_rows(flags: argparse.Namespace) -> list[list[Any]]:
  """Return table rows with the milliseconds to compute a batch and to communicate for it."""
  c, b = flags.chips, flags.batch
  flops_per_s, bytes_per_s = float32_flops_per_s(flags), flags.gbytes * 1e9
  p, d = _PADIM_SHAPE
  rows = [
    ['PaDiM: update', b * _FEATURE_FLOPS, 'b p d 4', b * p * d * 4],
    ['PatchCore: update', b * _FEATURE_FLOPS, '0', 0],
    ['STFPM: training step', b * _STEP_FLOPS, 'gradients', _GRADIENT_BYTES],
  ]
  p, d = _PATCHCORE_SHAPE
  search_flops = 2 * b * c * p * d * flags.rows / c
  rows += [
    [
      'PatchCore: score, bank sharded',
      b * _FEATURE_FLOPS + search_flops,
      'b c p d 4',
      b * c * p * d * 4,
    ],
    ['PatchCore: score, bank replicated', b * _FEATURE_FLOPS + search_flops, '0', 0],
  ]
  return [
    [title, f'{1e3 * flops / flops_per_s:.1f}', formula, f'{num_bytes / 1e6:.0f}',
     f'{1e3 * num_bytes / bytes_per_s:.1f}',
     f'{b * c / (flops / flops_per_s + num_bytes / bytes_per_s):,.0f}']
    for title, flops, formula, num_bytes in rows
  ]  # fmt: skip


def coreset_rows(flags: argparse.Namespace) -> list[list[Any]]:
  """Return table rows with the seconds of a coreset selection.

  They are the seconds to compute distances, to select centers one after the other, and to exchange
  candidates.
  """
  c, rows = flags.chips, []
  flops_per_s, bytes_per_s = float32_flops_per_s(flags), flags.gbytes * 1e9
  _, d = _PATCHCORE_SHAPE
  numbers_per_point = d + _SKETCH_DIM + 3
  for n, share in ((214_016, 0.1), (7_000_000, 0.01), (7_000_000, 0.1)):
    k = share * n
    measure_s = 2 * n / c * k * _SKETCH_DIM / flops_per_s
    # For each center, distances to all candidates are updated, which reads these from memory.
    select_s = k * (
      _NUM_CANDIDATES * numbers_per_point * 4 / (flags.hbm * 1e9) + flags.step_us * 1e-6
    )
    exchange_s = k / _MAX_NEW_CENTERS * _NUM_CANDIDATES * numbers_per_point * 4 / bytes_per_s
    memory_mb = n / c * 4 * numbers_per_point / 1e6
    rows.append([
      f'{n:,}', f'{share:.0%}', f'{memory_mb:,.0f}', f'{measure_s:.2f}', f'{select_s:.2f}',
      f'{exchange_s:.2f}', f'{measure_s + select_s + exchange_s:.1f}',
    ])  # fmt: skip
  return rows


def main() -> None:
  """Print the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--chips', type=int, default=64)
  parser.add_argument('--batch', type=int, default=32, help='images per chip')
  parser.add_argument('--rows', type=int, default=100_000, help='rows of the memory bank')
  parser.add_argument(
    '--tflops', type=float, default=197, help='bfloat16 TFLOP/s per chip (published)'
  )
  parser.add_argument('--hbm', type=float, default=819, help='memory GB/s per chip (published)')
  parser.add_argument('--share', type=float, default=0.2, help='share of peak reached (assumed)')
  parser.add_argument(
    '--gbytes', type=float, default=100, help='collective GB/s to a chip (assumed)'
  )
  parser.add_argument('--step_us', type=float, default=10, help='us per sequential step (assumed)')
  flags = parser.parse_args()
  titles = ['', 'ms to compute', 'bytes per chip', 'MB', 'ms to communicate', 'images/s']
  print(tables.markdown_table(titles, batch_rows(flags)) + '\n')
  titles = [
    'patches', 'selected', 'MB per chip', 's for distances', 's to select', 's to exchange', 's',
  ]  # fmt: skip
  print(tables.markdown_table(titles, coreset_rows(flags)))
  assumptions = ', '.join(f'{key} {value}' for key, value in vars(flags).items())
  print(
    f'\nEstimated with {assumptions}; {subprocess_runs.describe_machine().rpartition(", ")[2]}.'
  )


if __name__ == '__main__':
  main()
