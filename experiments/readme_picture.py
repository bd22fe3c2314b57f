"""Picture at the top of README: results of PatchCore on synthetic parts, one model per category.

python experiments/readme_picture.py --output docs/picture.png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
import tempfile

from PIL import Image

import uadjax
from uadjax.data import demo

# Category, defect, number of the image.
_EXAMPLES = (
  ('disc', 'scratch', 0),
  ('board', 'missing', 0),
  ('fabric', 'contamination', 0),
  ('steel', 'scratch', 1),
)
_COLUMNS, _GAP = 2, 12


def result_pictures() -> Iterator[Image.Image]:
  """Fit a model to each category, and yield the picture of its result on an image."""
  for category, defect, image_number in _EXAMPLES:
    folder = demo.cached_dataset(category) / category
    with tempfile.TemporaryDirectory() as workdir:
      overrides = {'evaluate.do_eval': False}
      model = uadjax.fit_model(folder, 'PatchCore', workdir, overrides=overrides)
      (result,) = model.predict(folder / 'test' / defect / f'{image_number:03d}.png')
      yield result.picture()


def main() -> None:
  """Arrange the pictures in columns and save them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', type=Path, required=True)
  flags = parser.parse_args()
  pictures = list(result_pictures())
  width, height = (max(sizes) for sizes in zip(*(p.size for p in pictures), strict=True))
  rows = -(-len(pictures) // _COLUMNS)
  canvas = Image.new(
    'RGB', (_COLUMNS * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), 'white'
  )
  for i, picture in enumerate(pictures):
    row, column = divmod(i, _COLUMNS)
    canvas.paste(picture, (column * (width + _GAP), row * (height + _GAP)))
  flags.output.parent.mkdir(parents=True, exist_ok=True)
  canvas.save(flags.output, optimize=True)


if __name__ == '__main__':
  main()
