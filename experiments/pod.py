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

import fresh

from uadjax.sweep import tables

# Of ResNet-18 at 256x256 pixels: traffic.py.
_FEATURES, _STEP = 3.6e9, 13.7e9  # Operations of an image: to layer3; of a training step of STFPM.
_GRADIENTS = 11.2e6  # Bytes of STFPM's.
_PADIM = 64 * 64, 100  # p, d
_PATCHCORE = 32 * 32, 384
_SKETCH, _CANDIDATES, _FRESH = 64, 4096, 1024  # numerics/coreset.py.
_EXACT = 6  # Products of bfloat16 that one of float32 in full precision takes on a TPU.


def of_batches(flags: argparse.Namespace) -> list[list[Any]]:
  """Milliseconds of a batch: computing, and what passes between chips meanwhile or after."""
  c, b = flags.chips, flags.batch
  rate, between = flags.tflops * 1e12 * flags.share, flags.gbytes * 1e9
  p, d = _PADIM
  rows = [
    ['PaDiM: fold in', b * _FEATURES, 'b p d 4', b * p * d * 4],
    ['PatchCore: fold in', b * _FEATURES, '0', 0],
    ['STFPM: training step', b * _STEP, 'gradients', _GRADIENTS],
  ]
  p, d = _PATCHCORE
  search = 2 * b * c * p * d * flags.rows / c * _EXACT
  rows += [
    ['PatchCore: score, bank split', b * _FEATURES + search, 'b c p d 4', b * c * p * d * 4],
    ['PatchCore: score, bank on each', b * _FEATURES + search, '0', 0],
  ]
  return [
    [title, f'{1e3 * work / rate:.1f}', what, f'{moved / 1e6:.0f}', f'{1e3 * moved / between:.1f}',
     f'{b * c / (work / rate + moved / between):,.0f}']
    for title, work, what, moved in rows
  ]  # fmt: skip


def of_coresets(flags: argparse.Namespace) -> list[list[Any]]:
  """Seconds to select: measuring, taking one after the other, telling all of the candidates."""
  c, rows = flags.chips, []
  rate, between = flags.tflops * 1e12 * flags.share, flags.gbytes * 1e9
  _, d = _PATCHCORE
  numbers = d + _SKETCH + 3
  for n, share in ((214_016, 0.1), (7_000_000, 0.01), (7_000_000, 0.1)):
    k = share * n
    measuring = 2 * n / c * k * _SKETCH * _EXACT / rate
    # Each center is measured against the candidates, which are read from memory for it.
    taking = k * (_CANDIDATES * numbers * 4 / (flags.hbm * 1e9) + flags.step_us * 1e-6)
    told = k / _FRESH * _CANDIDATES * numbers * 4 / between
    memory = n / c * 4 * numbers / 1e6
    rows.append([
      f'{n:,}', f'{share:.0%}', f'{memory:,.0f}', f'{measuring:.2f}', f'{taking:.2f}',
      f'{told:.2f}', f'{measuring + taking + told:.1f}',
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
  print(tables.markdown_table(titles, of_batches(flags)) + '\n')
  titles = ['patches', 'kept', 'MB of each', 's to measure', 's to take', 's to tell', 's']
  print(tables.markdown_table(titles, of_coresets(flags)))
  given = ', '.join(f'{key} {value}' for key, value in vars(flags).items())
  print(f'\nBy arithmetic, of {given}; {fresh.machine().rpartition(", ")[2]}.')


if __name__ == '__main__':
  main()
