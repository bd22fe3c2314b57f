"""The picture at the top of README: what PatchCore finds in drawn parts, each category fitted anew.

python experiments/readme_picture.py --output docs/picture.png
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
import tempfile

from PIL import Image

import uadjax
from uadjax.data import demo

# Category, defect, number of the picture.
_SHOWN = (
  ('disc', 'scratch', 0),
  ('board', 'missing', 0),
  ('fabric', 'contamination', 0),
  ('steel', 'scratch', 1),
)
_COLUMNS, _GAP = 2, 12


def found() -> Iterator[Image.Image]:
  """Fit a model to each category, and judge a picture with it."""
  for category, defect, number in _SHOWN:
    folder = demo.cached_dataset(category) / category
    with tempfile.TemporaryDirectory() as run:
      overrides = {'evaluate.do_eval': False}
      model = uadjax.fit_model(folder, 'PatchCore', run, overrides=overrides)
      (result,) = model.predict(folder / 'test' / defect / f'{number:03d}.png')
      yield result.picture()


def main() -> None:
  """Lay the pictures out in columns."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', type=Path, required=True)
  flags = parser.parse_args()
  pictures = list(found())
  width, height = (max(sizes) for sizes in zip(*(p.size for p in pictures), strict=True))
  rows = -(-len(pictures) // _COLUMNS)
  sheet = Image.new(
    'RGB', (_COLUMNS * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), 'white'
  )
  for i, picture in enumerate(pictures):
    row, column = divmod(i, _COLUMNS)
    sheet.paste(picture, (column * (width + _GAP), row * (height + _GAP)))
  flags.output.parent.mkdir(parents=True, exist_ok=True)
  sheet.save(flags.output, optimize=True)


if __name__ == '__main__':
  main()
