"""What a slice of a TPU pod would do, by arithmetic: nothing here is measured on one.

  python experiments/pod.py
  python experiments/pod.py --chips=16 --share=0.3

Operations of an image and bytes between devices are those that traffic.py and shards.py read off
the compiled programs, by their formulas. A chip is told of by what its maker publishes (TPU v5e:
cloud.google.com/tpu/docs/v5e), and by guesses that you should make your own: the share of its peak
that is reached, the bytes per second that a collective brings to a chip, and how long a step takes
that waits for the one before it. Reading files is not in it: predict_speed.py measures that.

Letters: c chips, b images of a batch on each, p patches of an image, d numbers of a patch, n
patches to select from, k that are selected.
"""

import argparse
from typing import Any

import subprocess_runs

from uadjax.sweep import tables

# Of ResNet-18 at 256x256 pixels: traffic.py.
_FEATURE_FLOPS, _STEP_FLOPS = (
  3.6e9,
  13.7e9,
)  # Operations of an image: to layer3; of a training step of STFPM.
_GRADIENT_BYTES = 11.2e6  # Bytes of STFPM's.
_PADIM_SHAPE = 64 * 64, 100  # p, d
_PATCHCORE_SHAPE = 32 * 32, 384
_SKETCH_DIM, _NUM_CANDIDATES, _MAX_NEW_CENTERS = 64, 4096, 1024  # numerics/coreset.py.
_PRODUCTS_PER_FLOAT32 = (
  6  # Products of bfloat16 that one of float32 in full precision takes on a TPU.
)


def batch_rows(flags: argparse.Namespace) -> list[list[Any]]:
  """Milliseconds of a batch: computing, and what passes between chips meanwhile or after."""
  c, b = flags.chips, flags.batch
  flops_per_s, bytes_per_s = flags.tflops * 1e12 * flags.share, flags.gbytes * 1e9
  p, d = _PADIM_SHAPE
  rows = [
    ['PaDiM: fold in', b * _FEATURE_FLOPS, 'b p d 4', b * p * d * 4],
    ['PatchCore: fold in', b * _FEATURE_FLOPS, '0', 0],
    ['STFPM: training step', b * _STEP_FLOPS, 'gradients', _GRADIENT_BYTES],
  ]
  p, d = _PATCHCORE_SHAPE
  search_flops = 2 * b * c * p * d * flags.rows / c * _PRODUCTS_PER_FLOAT32
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
    [title, f'{1e3 * flops / flops_per_s:.1f}', formula, f'{num_bytes / 1e6:.0f}', f'{1e3 * num_bytes / bytes_per_s:.1f}',
     f'{b * c / (flops / flops_per_s + num_bytes / bytes_per_s):,.0f}']
    for title, flops, formula, num_bytes in rows
  ]  # fmt: skip


def coreset_rows(flags: argparse.Namespace) -> list[list[Any]]:
  """Seconds to select: measuring, taking one after the other, telling all of the candidates."""
  c, rows = flags.chips, []
  flops_per_s, bytes_per_s = flags.tflops * 1e12 * flags.share, flags.gbytes * 1e9
  _, d = _PATCHCORE_SHAPE
  numbers_per_point = d + _SKETCH_DIM + 3
  for n, share in ((214_016, 0.1), (7_000_000, 0.01), (7_000_000, 0.1)):
    k = share * n
    measure_s = 2 * n / c * k * _SKETCH_DIM * _PRODUCTS_PER_FLOAT32 / flops_per_s
    # Each center is measured against the candidates, which are read from memory for it.
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
  parser.add_argument('--batch', type=int, default=32, help='images on each chip')
  parser.add_argument('--rows', type=int, default=100_000, help='of a bank')
  parser.add_argument('--tflops', type=float, default=197, help='of bfloat16, a chip (published)')
  parser.add_argument('--hbm', type=float, default=819, help='GB/s (published)')
  parser.add_argument('--share', type=float, default=0.2, help='of the peak (a guess)')
  parser.add_argument('--gbytes', type=float, default=100, help='GB/s brought to a chip (a guess)')
  parser.add_argument('--step_us', type=float, default=10, help='of a sequential step (a guess)')
  flags = parser.parse_args()
  titles = ['', 'ms to compute', 'bytes to each', 'MB', 'ms to move', 'images/s']
  print(tables.markdown_table(titles, batch_rows(flags)) + '\n')
  titles = ['patches', 'kept', 'MB of each', 's to measure', 's to take', 's to tell', 's']
  print(tables.markdown_table(titles, coreset_rows(flags)))
  assumptions = ', '.join(f'{key} {value}' for key, value in vars(flags).items())
  print(
    f'\nBy arithmetic, of {assumptions}; {subprocess_runs.describe_machine().rpartition(", ")[2]}.'
  )


if __name__ == '__main__':
  main()
