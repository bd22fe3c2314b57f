"""Reader of LabelMe: one JSON file per labeled image, as the labelme tool writes it.

An image without a JSON file is good, unless no JSON files exist at all. Shapes are painted in
their order, as in labelme's own export, so that a later shape called '__ignore__' or '_background_'
cuts a hole. Points and lines are rejected because they have no area: an invented width would become
the ground truth of pixel metrics.
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

# Type of shape -> its smallest number of points and the function that fills it.
_FILLED_SHAPES: dict[str, tuple[int, FillFn]] = {
  'polygon': (3, outlines.fill_polygon),
  'oriented_rectangle': (4, outlines.fill_polygon),
  'rectangle': (2, outlines.fill_rectangle),  # Some tools write all four corners.
  'circle': (2, outlines.fill_circle),
}
_WITHOUT_AREA = ('point', 'points', 'line', 'linestrip')


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read all images below a folder, and their masks from the JSON files that label them."""
  images = samples.index_images(source)
  json_paths = samples.find_files(source, '.json')
  if not json_paths:
    # Without this error, defective images would become training images.
    message = (
      f'No LabelMe annotations (*.json) in {source}; name the format of the labels, or the folder '
      'that contains both labels and images.'
    )
    return samples.SourceContents([], [message])
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
    [f'{len(unlabeled_samples)} images without a JSON file count as good.']
    if unlabeled_samples
    else []
  )
  return samples.SourceContents(
    [*labeled_samples, *unlabeled_samples], [*problems, *unlabeled_problems], notes
  )


def _read_held_out(source: Path) -> set[str]:
  """Return the paths of the JSON files that PaddleX's val_anno_list.txt names."""
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
      f"{relative_path}: not a LabelMe file, because it has no list 'shapes'; move it elsewhere."
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
  """Read a JSON file.

  Args:
    path: the file.
    relative_path: name of the file in messages.

  Raises:
    DataError: the file cannot be read, or is not JSON in UTF-8.
  """
  try:
    return json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError.
    raise DataError(f'{relative_path}: not JSON in UTF-8: {error}.') from None
  except OSError as error:
    raise DataError(f'{relative_path}: cannot be read: {error.strerror}.') from None


def _find_image(
  path: Path, relative_path: str, data: dict[str, Any], images: samples.ImageIndex
) -> Path | bytes:
  """Find an image by imagePath relative to the JSON file, else by stem, else embedded in it."""
  image_path = data.get('imagePath') or ''
  expected_path = Path(os.path.normpath(path.parent / samples.to_posix(str(image_path))))
  if expected_path.is_relative_to(images.root):
    matching_image = images.find_by_path(images.relative_to_root(expected_path))
    if matching_image:
      return matching_image
  elif expected_path.is_file():
    raise DataError(
      f'{relative_path}: its image {image_path} lies outside of {images.root}; convert a folder '
      'that contains both.'
    )
  same_stem = images.find_by_stem(samples.strip_suffix(relative_path))
  if len(same_stem) == 1:
    return same_stem[0]
  if data.get('imageData') and not same_stem:
    return _decode_base64(data['imageData'], relative_path)
  raise DataError(
    f'{relative_path}: no image {image_path!r}, and no image of the same name next to it.'
  )


def _read_shape(entry: Any, height: int, width: int) -> samples.Shape:
  entry = entry if isinstance(entry, dict) else {}
  label, shape_type = entry.get('label'), entry.get('shape_type')
  if not isinstance(label, str) or not label.strip():
    raise DataError('it has no label')
  shape_type = str(shape_type or 'polygon')  # Early versions had only polygons and no shape_type.
  if shape_type == 'mask':
    return samples.Shape(label, _read_mask_shape(entry, height, width))
  if shape_type in _WITHOUT_AREA:
    raise DataError(f'a {shape_type} {label!r} has no area; outline the defect with a polygon')
  if shape_type not in _FILLED_SHAPES:
    raise DataError(
      f'unknown shape_type {shape_type!r}; allowed are {sorted([*_FILLED_SHAPES, "mask"])}'
    )
  min_points, fill = _FILLED_SHAPES[shape_type]
  corners = outlines.require_points(
    min_points, outlines.parse_points(entry.get('points')), shape_type
  )
  return samples.Shape(label, fill(corners, height, width))


def _read_mask_shape(entry: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, 'h w']:
  """Read a shape's embedded mask, whose upper left corner lies at the shape's first point."""
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
    raise DataError(f'{description}: not an image in base64') from None
