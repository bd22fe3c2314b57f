"""LabelMe: a JSON file per labeled image, as the labelme tool writes it.

An image without such a file is good, where there are such files at all. Shapes are painted in their
order, as labelme's own export does, so that a later shape called '__ignore__' or '_background_'
cuts a hole. Points and lines are refused: they have no area, and a width made up here would become
the truth that pixels are measured against.
"""

import base64
import binascii
from collections.abc import Callable
import functools
import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from uadjax.data import image_io
from uadjax.data.convert import outlines, samples
from uadjax.errors import DataError
from uadjax.system.progress import Track

Draw = Callable[[Float[np.ndarray, 'n 2'], int, int], Bool[np.ndarray, 'h w']]

# Type of shape -> points it needs at least, and how it is filled.
_SHAPES: dict[str, tuple[int, Draw]] = {
  'polygon': (3, outlines.polygon),
  'oriented_rectangle': (4, outlines.polygon),
  'rectangle': (2, outlines.rectangle),  # Other tools write all four corners.
  'circle': (2, outlines.circle),
}
_WITHOUT_AREA = ('point', 'points', 'line', 'linestrip')


def read(source: Path, track: Track) -> samples.Found:
  """Read all images below a folder and the JSON files that label some of them."""
  images = samples.gallery(source)
  files = samples.below(source, '.json')
  if not files:
    # Else whatever is defective would be learned from.
    told = f'No LabelMe annotations in {source}: not a single *.json; name the tool that made its'
    return samples.Found([], [f'{told} labels, or the folder that holds them beside the images.'])
  held_out = _held_out(source)
  jobs = [functools.partial(_labeled, path, images, held_out) for path in files]
  labeled, problems = samples.collect(jobs, track, 'Reading labels')
  used = {sample.image for sample in labeled}
  jobs = [
    functools.partial(samples.good, images.relative(path), path)
    for path in images
    if path not in used
  ]
  unlabeled, more = samples.collect(jobs, track, 'Reading unlabeled images')
  notes = [f'{len(unlabeled)} images without a JSON file were taken for good.'] if unlabeled else []
  return samples.Found([*labeled, *unlabeled], [*problems, *more], notes)


def _held_out(source: Path) -> set[str]:
  """The JSON files that PaddleX's val_anno_list.txt names."""
  path = source / 'val_anno_list.txt'
  if not path.is_file():
    return set()
  lines = path.read_text('utf-8-sig', errors='replace').splitlines()
  return {samples.posix(line.strip()) for line in lines if line.strip()}


def _labeled(path: Path, images: samples.Gallery, held_out: set[str]) -> samples.Sample:
  where = images.relative(path)
  data = parse(path, where)
  if not isinstance(data, dict) or not isinstance(data.get('shapes'), list):
    raise DataError(f"{where}: no LabelMe file, for it has no list 'shapes'; move it elsewhere.")
  image = _image(path, where, data, images)
  embedded = isinstance(image, bytes)
  suffix = '.png' if embedded and image.startswith(b'\x89PNG') else '.jpg'
  name = samples.without_suffix(where) + suffix if embedded else images.relative(image)
  height, width = samples.fits(image, where, data.get('imageHeight'), data.get('imageWidth'))
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for number, shape in enumerate(data['shapes'], 1):
    try:
      shapes.append(_shape(shape, height, width))
    except DataError as error:
      problems.append(f'{where}: shape {number}: {error}.')
  if problems:
    raise DataError('\n'.join(problems))
  return samples.drawn(name, image, shapes, where in held_out)


def parse(path: Path, where: str) -> Any:
  """Read a JSON file; DataError where it is none."""
  try:
    return json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as error:  # Decoding errors are ValueErrors as well.
    raise DataError(f'{where}: no JSON in UTF-8: {error}.') from None
  except OSError as error:
    raise DataError(f'{where}: cannot be read: {error.strerror}.') from None


def _image(path: Path, where: str, data: dict[str, Any], images: samples.Gallery) -> Path | bytes:
  """By imagePath as seen from the JSON file, else by the same stem beside it, else embedded."""
  told = data.get('imagePath') or ''
  beside = Path(os.path.normpath(path.parent / samples.posix(str(told))))
  if beside.is_relative_to(images.root):
    found = images.named(images.relative(beside))
    if found:
      return found
  elif beside.is_file():
    raise DataError(
      f'{where}: its image {told} lies outside of {images.root}; convert a folder that holds both.'
    )
  same = images.stem(samples.without_suffix(where))
  if len(same) == 1:
    return same[0]
  if data.get('imageData') and not same:
    return _decoded(data['imageData'], where)
  raise DataError(f'{where}: no image {told!r}, and none of the same name beside it.')


def _shape(shape: Any, height: int, width: int) -> samples.Shape:
  shape = shape if isinstance(shape, dict) else {}
  label, kind = shape.get('label'), shape.get('shape_type')
  if not isinstance(label, str) or not label.strip():
    raise DataError('it has no label')
  kind = str(kind or 'polygon')  # The first versions knew nothing else and named none.
  if kind == 'mask':
    return samples.Shape(label, _pasted(shape, height, width))
  if kind in _WITHOUT_AREA:
    raise DataError(f'a {kind} {label!r} has no area; outline the defect by a polygon')
  if kind not in _SHAPES:
    raise DataError(f'unknown type {kind!r}; known are {sorted([*_SHAPES, "mask"])}')
  least, draw = _SHAPES[kind]
  corners = outlines.at_least(least, outlines.points(shape.get('points')), kind)
  return samples.Shape(label, draw(corners, height, width))


def _pasted(shape: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, 'h w']:
  """A mask that covers the rectangle whose upper left corner is the first point."""
  patch = image_io.read_mask(_decoded(shape.get('mask'), 'its mask'))
  corner = outlines.at_least(1, outlines.points(shape.get('points')), 'mask')[0]
  left, top = np.round(corner).astype(int)
  mask = np.zeros((height, width), bool)
  rows = slice(max(top, 0), min(top + patch.shape[0], height))
  columns = slice(max(left, 0), min(left + patch.shape[1], width))
  if rows.start < rows.stop and columns.start < columns.stop:
    mask[rows, columns] = patch[
      rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
  return mask


def _decoded(text: Any, what: str) -> bytes:
  try:
    return base64.b64decode(text, validate=False)
  except (TypeError, ValueError, binascii.Error):
    raise DataError(f'{what}: no picture in base64') from None
