"""Steps of the anomaly map where tiles overlap, and the memory that a large image takes.

  python experiments/tile_steps.py --tiled=runs/tiled/model --whole=runs/whole/model \
    --images=../shared/data/mvtec_ad/bottle/test

`--tiled` is a model with tiles, such as of data.ops='resize(512)|tile(256,32)'. `--whole` is one of
the same images at the same size without tiles, 'resize(512)'. Where tiles overlap, the joined map
changes from one tile to the next. A step is the difference of two neighboring pixels there, in the
direction of the change. The script prints the steps as shares of the range of the values of all
maps: of the joined maps, and of the maps of whole images at the same places. The latter have no
tiles, so their steps are those of the anomalies.

With `--large=8000x6000` it also writes an image of that size, and prints the peak memory of `uadjax
predict` with it, and with an image of the size of one tile.
"""

import argparse
from collections.abc import Sequence
import itertools
from pathlib import Path
import sys
import tempfile

from jaxtyping import Float
import numpy as np
from PIL import Image
import subprocess_runs

from uadjax import create_model
from uadjax.data import transforms
from uadjax.sweep import tables


def overlaps(starts: Sequence[int], size: int) -> list[slice]:
  """Return the pixels along an axis that two successive tiles share.

  Args:
    starts: first pixel of each tile.
    size: number of pixels of a tile.
  """
  return [slice(b, a + size) for a, b in itertools.pairwise(starts)]


def steps_between_tiles(
  anomaly_map: Float[np.ndarray, 'h w'], ops: transforms.Ops
) -> Float[np.ndarray, ' n']:
  """Return the absolute differences of neighbors where the tiles of `ops` overlap."""
  grid = ops.tile_grid(anomaly_map.shape)
  vertical = [np.diff(anomaly_map[rows], axis=0) for rows in overlaps(grid.tops, grid.tile_size[0])]
  horizontal = [
    np.diff(anomaly_map[:, columns], axis=1) for columns in overlaps(grid.lefts, grid.tile_size[1])
  ]
  return np.abs(np.concatenate([steps.ravel() for steps in (*vertical, *horizontal)]))


def describe_steps(name: str, maps: Sequence[np.ndarray], ops: transforms.Ops) -> list[str]:
  """Return a table row: mean, 99th percentile and maximum of the steps, in percent of the range."""
  value_range = max(x.max() for x in maps) - min(x.min() for x in maps)
  steps = np.concatenate([steps_between_tiles(x, ops) for x in maps]) / value_range
  largest_by_image = [float(steps_between_tiles(x, ops).max() / value_range) for x in maps]
  values = (steps.mean(), np.quantile(steps, 0.99), np.median(largest_by_image), steps.max())
  return [name, str(len(maps)), *(f'{100 * value:.2f}' for value in values)]


def predict_peak_mb(model: Path, size: tuple[int, int]) -> float:
  """Return the peak memory (PSS) of `uadjax predict` with a noise image of a size, in MiB."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'image.png'
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=1)
    command = [sys.executable, '-m', 'uadjax', 'predict', str(model), str(path), '--backend=jax']
    completed = subprocess_runs.run_command(command, Path(folder), sample_memory=True)
  return completed.memory.pss_mb if completed.memory else float('nan')


def main() -> None:
  """Print the table of steps, and the memory."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--tiled', '--whole', '--images'):
    parser.add_argument(flag, type=Path, required=True)
  parser.add_argument('--large', metavar='WIDTHxHEIGHT', help='size of a large image')
  flags = parser.parse_args()
  paths = sorted(path for path in flags.images.rglob('*') if path.is_file())
  ops = create_model(model_dir=flags.tiled).model.ops
  rows = []
  for name, folder in (('joined tiles', flags.tiled), ('whole images', flags.whole)):
    model = create_model(model_dir=folder)
    maps = [result.network_map for result in model.predict(paths)]
    rows.append(describe_steps(name, maps, ops))
  titles = ['maps', 'images', 'mean %', '99th percentile %', 'largest of an image, median %']
  print(tables.markdown_table([*titles, 'largest %'], rows))
  if flags.large:
    width, height = map(int, flags.large.split('x'))
    small = (
      ops.tile_grid((height, width)).tile_size[1],
      ops.tile_grid((height, width)).tile_size[0],
    )
    for size in (small, (width, height)):
      print(f'{size[0]}x{size[1]}: peak {predict_peak_mb(flags.tiled.resolve(), size):.0f} MB')
  print(subprocess_runs.describe_machine())


if __name__ == '__main__':
  main()
