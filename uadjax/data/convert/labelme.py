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
from uadjax.system.progress import Progress

FillFn = Callable[[Float[np.ndarray, 'n 2'], int, int], Bool[np.ndarray, 'h w']]

# Type of shape -> points it needs at least, and how it is filled.
_FILLED_SHAPES: dict[str, tuple[int, FillFn]] = {
  'polygon': (3, outlines.fill_polygon),
  'oriented_rectangle': (4, outlines.fill_polygon),
  'rectangle': (2, outlines.fill_rectangle),  # Other tools write all four corners.
  'circle': (2, outlines.fill_circle),
}
_WITHOUT_AREA = ('point', 'points', 'line', 'linestrip')


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read all images below a folder and the JSON files that label some of them."""
  images = samples.index_images(source)
  json_paths = samples.find_files(source, '.json')
  if not json_paths:
    # Else whatever is defective would be learned from.
    message = (
      f'No LabelMe annotations in {source}: not a single *.json; name the tool that made its'
    )
    return samples.SourceContents(
      [], [f'{message} labels, or the folder that holds them beside the images.']
    )
  held_out = _read_held_out(source)
  jobs = [functools.partial(_read_labeled_sample, path, images, held_out) for path in json_paths]
  labeled_samples, problems = samples.collect_samples(jobs, progress, 'Reading labels')
  labeled_images = {sample.image for sample in labeled_samples}
  jobs = [
    functools.partial(samples.good_sample, images.relative_to_root(path), path)
    for path in images
    if path not in labeled_images
  ]
  unlabeled_samples, unlabeled_problems = samples.collect_samples(
    jobs, progress, 'Reading unlabeled images'
  )
  notes = (
    [f'{len(unlabeled_samples)} images without a JSON file were taken for good.']
    if unlabeled_samples
    else []
  )
  return samples.SourceContents(
    [*labeled_samples, *unlabeled_samples], [*problems, *unlabeled_problems], notes
  )


def _read_held_out(source: Path) -> set[str]:
  """The JSON files that PaddleX's val_anno_list.txt names."""
  path = source / 'val_anno_list.txt'
  if not path.is_file():
    return set()
  lines = path.read_text('utf-8-sig', errors='replace').splitlines()
  return {samples.to_posix(line.strip()) for line in lines if line.strip()}


def _read_labeled_sample(
  path: Path, images: samples.ImageIndex, held_out: set[str]
) -> samples.Sample:
  relative_path = images.relative_to_root(path)
  data = read_json(path, relative_path)
  if not isinstance(data, dict) or not isinstance(data.get('shapes'), list):
    raise DataError(
      f"{relative_path}: no LabelMe file, for it has no list 'shapes'; move it elsewhere."
    )
  image = _find_image(path, relative_path, data, images)
  is_embedded = isinstance(image, bytes)
  suffix = '.png' if is_embedded and image.startswith(b'\x89PNG') else '.jpg'
  name = (
    samples.strip_suffix(relative_path) + suffix if is_embedded else images.relative_to_root(image)
  )
  height, width = samples.require_matching_size(
    image, relative_path, data.get('imageHeight'), data.get('imageWidth')
  )
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for shape_number, entry in enumerate(data['shapes'], 1):
    try:
      shapes.append(_read_shape(entry, height, width))
    except DataError as error:
      problems.append(f'{relative_path}: shape {shape_number}: {error}.')
  if problems:
    raise DataError('\n'.join(problems))
  return samples.sample_from_shapes(name, image, shapes, relative_path in held_out)


def read_json(path: Path, relative_path: str) -> Any:
  """Read a JSON file; DataError where it is none."""
  try:
    return json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as error:  # Decoding errors are ValueErrors as well.
    raise DataError(f'{relative_path}: no JSON in UTF-8: {error}.') from None
  except OSError as error:
    raise DataError(f'{relative_path}: cannot be read: {error.strerror}.') from None


def _find_image(
  path: Path, relative_path: str, data: dict[str, Any], images: samples.ImageIndex
) -> Path | bytes:
  """By imagePath as seen from the JSON file, else by the same stem beside it, else embedded."""
  image_path = data.get('imagePath') or ''
  expected_path = Path(os.path.normpath(path.parent / samples.to_posix(str(image_path))))
  if expected_path.is_relative_to(images.root):
    matching_image = images.find_by_path(images.relative_to_root(expected_path))
    if matching_image:
      return matching_image
  elif expected_path.is_file():
    raise DataError(
      f'{relative_path}: its image {image_path} lies outside of {images.root}; convert a folder that holds both.'
    )
  same_stem = images.find_by_stem(samples.strip_suffix(relative_path))
  if len(same_stem) == 1:
    return same_stem[0]
  if data.get('imageData') and not same_stem:
    return _decode_base64(data['imageData'], relative_path)
  raise DataError(f'{relative_path}: no image {image_path!r}, and none of the same name beside it.')


def _read_shape(entry: Any, height: int, width: int) -> samples.Shape:
  entry = entry if isinstance(entry, dict) else {}
  label, shape_type = entry.get('label'), entry.get('shape_type')
  if not isinstance(label, str) or not label.strip():
    raise DataError('it has no label')
  shape_type = str(shape_type or 'polygon')  # The first versions knew nothing else and named none.
  if shape_type == 'mask':
    return samples.Shape(label, _read_mask_shape(entry, height, width))
  if shape_type in _WITHOUT_AREA:
    raise DataError(f'a {shape_type} {label!r} has no area; outline the defect by a polygon')
  if shape_type not in _FILLED_SHAPES:
    raise DataError(f'unknown type {shape_type!r}; known are {sorted([*_FILLED_SHAPES, "mask"])}')
  min_points, fill = _FILLED_SHAPES[shape_type]
  corners = outlines.require_points(
    min_points, outlines.parse_points(entry.get('points')), shape_type
  )
  return samples.Shape(label, fill(corners, height, width))


def _read_mask_shape(entry: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, 'h w']:
  """A mask that covers the rectangle whose upper left corner is the first point."""
  cropped_mask = image_io.read_mask(_decode_base64(entry.get('mask'), 'its mask'))
  corner = outlines.require_points(1, outlines.parse_points(entry.get('points')), 'mask')[0]
  left, top = np.round(corner).astype(int)
  mask = np.zeros((height, width), bool)
  rows = slice(max(top, 0), min(top + cropped_mask.shape[0], height))
  columns = slice(max(left, 0), min(left + cropped_mask.shape[1], width))
  if rows.start < rows.stop and columns.start < columns.stop:
    mask[rows, columns] = cropped_mask[
      rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
  return mask


def _decode_base64(text: Any, description: str) -> bytes:
  try:
    return base64.b64decode(text, validate=False)
  except (TypeError, ValueError, binascii.Error):
    raise DataError(f'{description}: no picture in base64') from None
