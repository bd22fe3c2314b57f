"""Settings compared by their effect: a table of accuracy, time and memory over sets and seeds.

  python experiments/variants.py --root=../shared/data --categories=kolektor --config=patchcore \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth --workdir=runs/kolektor \
    --variant 'resize(256):' --variant 'tiles: data.ops=fit_within(1024)|tile(256,32)'

Each `--variant 'NAME: KEY=VALUE ...'` changes settings of --config, or none. A category is a folder
below --root, also of several levels (`mvtec_ad/bottle`). With `--num-train=5` each run learns from
five training images, drawn by its seed. Each run is a separate process. Finished runs are not
repeated, so the script can be stopped and started again. Arguments after `--` are passed on to
every run.

The script prints the table and writes it to --workdir, as table.md and table.csv.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import itertools
from pathlib import Path
import random
import re
import tempfile

import subprocess_runs

from uadjax.sweep import results

Variant = tuple[str, list[str]]  # Name, and flags for its settings.


def parse_variant(text: str) -> Variant:
  """Parse `NAME: KEY=VALUE ...`."""
  name, colon, changes = text.partition(':')
  if not name or not colon:
    raise argparse.ArgumentTypeError(f'{text!r} is not NAME: KEY=VALUE ...')
  return name, [f'--config.{change}' for change in changes.split()]


@contextlib.contextmanager
def draw_training_images(source: Path, num_train: int, seed: int) -> Iterator[Path]:
  """Yield a category folder of links to the test images and to `num_train` training images."""
  with tempfile.TemporaryDirectory() as folder:
    category = Path(folder) / source.name
    good = category / 'train' / 'good'
    good.mkdir(parents=True)
    for name in ('test', 'ground_truth'):
      (category / name).symlink_to(source.absolute() / name)
    images = sorted((source / 'train' / 'good').absolute().iterdir())
    for image in random.Random(seed).sample(images, num_train):
      (good / image.name).symlink_to(image)
    yield category


def run_variant(
  folder: Path, category: Path, seed: int, changes: Sequence[str], flags: argparse.Namespace
) -> results.RunSummary:
  """Return the summary of a run in `folder`; fit and evaluate if it is not finished."""
  summary = results.load_summary(folder)
  if summary is not None:
    return summary
  source = (
    draw_training_images(category, flags.num_train, seed)
    if flags.num_train
    else contextlib.nullcontext(category)
  )
  with source as path:
    run_flags = subprocess_runs.run_flags(str(path.parent), path.name, flags.weights, seed)
    run_flags += ['--config.evaluate.save_pictures=0', *changes, *flags.overrides]
    return subprocess_runs.train(flags.config, folder, run_flags)


def main() -> None:
  """Run what is missing, and print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag in ('--root', '--categories', '--weights', '--config'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--variant', type=parse_variant, action='append', required=True)
  subprocess_runs.add_seeds(parser)
  parser.add_argument('--num-train', type=int, default=0, help='training images; 0: all')
  parser.add_argument('--workdir', type=Path, default=Path('runs/variants'))
  parser.add_argument('overrides', nargs='*', help='after --: flags for every run')
  flags = parser.parse_args()
  runs = []
  variants: list[Variant] = flags.variant
  for category, seed, (name, changes) in itertools.product(
    flags.categories.split(','), flags.seeds, variants
  ):
    folder = flags.workdir / re.sub(r'\W+', '_', f'{flags.config} {name} {category}')
    summary = run_variant(folder / f'seed_{seed}', Path(flags.root, category), seed, changes, flags)
    runs.append((name, category, seed, summary))
    print(f'{category} seed {seed} {name}: {summary}', flush=True)
  footnote = f'{flags.config}. {subprocess_runs.describe_machine()}.'
  print(results.write_tables(results.summarize_runs(runs), flags.workdir, footnote))


if __name__ == '__main__':
  main()
