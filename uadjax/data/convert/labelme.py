"""Reader of LabelMe: one JSON file per labeled image, as the labelme tool writes it.

An image without a JSON file is good, unless no JSON files exist at all. Shapes are painted in
their order, as in labelme's own export, so that a later shape called '__ignore__' or '_background_'
cuts a hole. Points and lines are rejected because they have no area: an invented width would become
the ground truth of pixel metrics.
"""

import base64
from collections.abc import Mapping
import contextlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.convert import outlines, samples
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system.progress import Progress

# Type of shape -> its smallest number of points and the function that fills it.
_FILLED_SHAPES = {
  'polygon': (3, outlines.fill_polygon),
  'oriented_rectangle': (4, outlines.fill_polygon),
  'rectangle': (2, outlines.fill_rectangle),  # Some tools write all four corners.
  'circle': (2, outlines.fill_circle),
}
_WITHOUT_AREA = ('point', 'points', 'line', 'linestrip')


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read all images below a folder, and their masks from the JSON files that label them.

  Raises:
    DataError: there are no JSON files.
  """
  images = samples.ImageIndex(source)
  json_paths = scanning.find_files(source, ['.json'])
  if not json_paths:
    # Without this error, defective images would become training images.
    hint = 'name the format of the labels, or the folder that contains both labels and images'
    raise DataError(f'No LabelMe annotations (*.json) in {source}; {hint}.')
  # PaddleX's list of the JSON files of the test set.
  held_out = set(map(samples.to_posix, samples.read_lines(source / 'val_anno_list.txt')))

  def read_labeled(path: Path) -> samples.Sample:
    return _read_sample(path, images, images.relative_to_root(path) in held_out)

  def read_unlabeled(path: Path) -> samples.Sample:
    return samples.sample_from_shapes(images.relative_to_root(path), path, [])

  labeled, problems = samples.collect(read_labeled, json_paths, progress)
  labeled_images = {sample.image for sample in labeled}
  other_images = [path for path in images.paths if path not in labeled_images]
  unlabeled, more_problems = samples.collect(read_unlabeled, other_images, progress)
  notes = [f'{len(unlabeled)} images without a JSON file count as good.'] if unlabeled else []
  return samples.SourceContents([*labeled, *unlabeled], [*problems, *more_problems], notes)


def _read_sample(path: Path, images: samples.ImageIndex, held_out: bool) -> samples.Sample:
  name = images.relative_to_root(path)
  content = samples.read_json(path, name, 'LabelMe', ['shapes'])
  image = _find_image(path, content, images)
  if isinstance(image, Path):
    image_name = images.relative_to_root(image)
  else:
    suffix = '.png' if image.startswith(b'\x89PNG') else '.jpg'
    image_name = samples.strip_suffix(name) + suffix
  labeled_size = content.get('imageHeight'), content.get('imageWidth')
  height, width = samples.require_matching_size(image, name, *labeled_size)
  entries = content['shapes']
  assert isinstance(entries, list)  # `read_json` requires it.
  shapes = samples.read_shapes(
    lambda entry: _read_shape(entry if isinstance(entry, dict) else {}, height, width),
    [(f'{name}: shape {number}:', entry) for number, entry in enumerate(entries, 1)],
  )
  return samples.sample_from_shapes(image_name, image, shapes, held_out)


def _find_image(
  path: Path, content: Mapping[str, object], images: samples.ImageIndex
) -> Path | bytes:
  """Find an image by imagePath relative to the JSON file, else by stem, else embedded in it."""
  name, image_path = images.relative_to_root(path), str(content.get('imagePath') or '')
  expected_path = Path(os.path.normpath(path.parent / samples.to_posix(image_path)))
  if expected_path.is_relative_to(images.root):
    if match := images.find_by_path(images.relative_to_root(expected_path)):
      return match
  elif expected_path.is_file():
    message = f'{name}: its image {image_path} lies outside of {images.root}'
    raise DataError(f'{message}; convert a folder that contains both.')
  same_stem = images.find_by_stem(samples.strip_suffix(name))
  if len(same_stem) == 1:
    return same_stem[0]
  if content.get('imageData') and not same_stem:
    return _decode_base64(content['imageData'], f'{name}:')
  raise DataError(f'{name}: no image {image_path!r}, and no image of the same name next to it.')


def _read_shape(entry: Mapping[str, object], height: int, width: int) -> samples.Shape:
  label = entry.get('label')
  if not isinstance(label, str) or not label.strip():
    raise DataError('it has no label')
  # Early versions had only polygons and no shape_type.
  kind, points = str(entry.get('shape_type') or 'polygon'), entry.get('points')
  if kind == 'mask':
    # The upper left corner of the embedded mask lies at the first point.
    mask = image_io.read_mask(_decode_base64(entry.get('mask'), 'its mask:'))
    left, top = np.round(outlines.parse_points(points, 1, kind)[0]).astype(int).tolist()
    canvas = Image.new('1', (width, height))
    canvas.paste(Image.fromarray(mask), (left, top))
    return samples.Shape(label, np.array(canvas))
  if kind in _WITHOUT_AREA:
    raise DataError(f'a {kind} {label!r} has no area; outline the defect with a polygon')
  if kind not in _FILLED_SHAPES:
    raise DataError(f'unknown shape_type {kind!r}; allowed are {sorted([*_FILLED_SHAPES, "mask"])}')
  min_points, fill = _FILLED_SHAPES[kind]
  return samples.Shape(label, fill(outlines.parse_points(points, min_points, kind), height, width))


def _decode_base64(text: object, description: str) -> bytes:
  with contextlib.suppress(ValueError):
    if isinstance(text, str):
      return base64.b64decode(text)
  raise DataError(f'{description} not an image in base64')
