"""Reader of LabelMe: one JSON file per labeled image, as labelme and X-AnyLabeling write it.

An image without a JSON file is good, unless no JSON files exist at all. Shapes are painted in
their order, as in labelme's own export, so that a later shape called '__ignore__' or '_background_'
cuts a hole. Points and lines have no area; they get that of labelme's export, with a remark. A flag
of the whole image, such as NG or OK, is a label without a region.
"""

import base64
from collections.abc import Mapping
import contextlib
import os
from pathlib import Path

import numpy as np

from uadjax.data import image_io
from uadjax.data.convert import label_files, outlines, samples
from uadjax.data.convert.images import ImageIndex, strip_suffix, to_posix
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system.progress import Progress

# Type of shape -> the function that fills it. Rectangles of more than two points are polygons.
_FILLS: Mapping[str, outlines.Fill] = {
  'polygon': outlines.fill_polygon,
  'quadrilateral': outlines.fill_polygon,
  'oriented_rectangle': outlines.fill_polygon,
  'rotation': outlines.fill_polygon,  # X-AnyLabeling's oriented rectangle.
  'rectangle': outlines.fill_rectangle,
  'circle': outlines.fill_circle,
  'ellipse': outlines.fill_ellipse,
  'line': outlines.draw_line,
  'linestrip': outlines.draw_line,
  'point': outlines.draw_point,
  'points': outlines.draw_point,
}
_REMARKS = {
  'ellipse': 'Ellipses were drawn into the bounding box of their points',
  **dict.fromkeys(
    ('line', 'linestrip'),
    f'Lines have no area and were drawn {outlines.LINE_WIDTH} pixels wide, as in labelme. Trust '
    'only image metrics',
  ),
  **dict.fromkeys(
    ('point', 'points'),
    f'Points have no area and were drawn as discs with a radius of {outlines.POINT_RADIUS} pixels, '
    'as in labelme. Trust only image metrics',
  ),
}
# Flags about the work on an image, not about its content.
_STATUS_FLAGS = ('checked', 'difficult', 'done', 'reviewed', 'verified')
_UNDECIDED = 'Images count as good, although a flag says that they are not and nothing is marked'


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read all images below a folder, and their masks from the JSON files that label them.

  Raises:
    DataError: there are no JSON files.
  """
  images = ImageIndex(source)
  json_paths = scanning.find_files(source, ['.json'])
  if not json_paths:
    # Without this error, defective images would become training images.
    hint = 'name the format of the labels, or the folder that contains both labels and images'
    raise DataError(f'No LabelMe annotations (*.json) in {source}; {hint}.')
  # PaddleX's list of the JSON files of the test set.
  held_out = set(map(to_posix, label_files.read_lines(source / 'val_anno_list.txt')))

  def read_labeled(path: Path) -> samples.Sample:
    return _read_sample(path, images, images.relative_to_root(path) in held_out)

  def read_unlabeled(path: Path) -> samples.Sample:
    images.require_no_defect(path)
    return samples.make_sample(images.relative_to_root(path), path)

  labeled, problems = samples.collect(read_labeled, json_paths, progress)
  others = images.without_labels({sample.image for sample in labeled})
  unlabeled, more_problems = samples.collect(read_unlabeled, others, progress)
  notes = [f'{len(unlabeled)} images without a JSON file count as good.'] if unlabeled else []
  problems += more_problems
  return samples.SourceContents([*labeled, *unlabeled], problems, notes, images.remarks)


def _read_sample(path: Path, images: ImageIndex, held_out: bool) -> samples.Sample:
  name = images.relative_to_root(path)
  content, remarks = label_files.read_json(path, name, 'LabelMe', ['shapes'])
  image = _find_image(path, content, images)
  if isinstance(image, Path):
    image_name = images.relative_to_root(image)
  else:
    suffix = '.png' if image.startswith(b'\x89PNG') else '.jpg'
    image_name = strip_suffix(name) + suffix
  labeled_size = content.get('imageHeight'), content.get('imageWidth')
  height, width = samples.require_matching_size(image, name, *labeled_size)
  shapes, flags = content['shapes'], content.get('flags')
  assert isinstance(shapes, list)  # `read_json` requires it.
  flags = flags if isinstance(flags, dict) else {}
  entries = [(f'{name}: shape {number}', shape) for number, shape in enumerate(shapes, 1)]
  entries += [
    (f'{name}: flag {flag!r}', samples.Shape(flag))
    for flag, value in flags.items()
    if value is True and flag.lower() not in _STATUS_FLAGS
  ]
  if not entries and any(map(scanning.is_normal, flags)):
    remarks.append(samples.Remark(_UNDECIDED, name))

  def read_entry(entry: object) -> samples.Shape | None:
    if isinstance(entry, samples.Shape):
      return entry
    return _read_shape(entry if isinstance(entry, dict) else {}, height, width)

  return samples.make_sample(image_name, image, entries, read_entry, held_out, remarks, name)


def _find_image(path: Path, content: Mapping[str, object], images: ImageIndex) -> Path | bytes:
  """Find an image by imagePath relative to the JSON file, by stem, by name, or embedded in it."""
  name, image_path = images.relative_to_root(path), str(content.get('imagePath') or '')
  expected_path = Path(os.path.normpath(path.parent / to_posix(image_path)))
  if expected_path.is_relative_to(images.root):
    if match := images.find_by_path(images.relative_to_root(expected_path)):
      return match
  elif expected_path.is_file():
    message = f'{name}: its image {image_path} lies outside of {images.root}'
    raise DataError(f'{message}; convert a folder that contains both.')
  # Without imagePath, the name of the JSON file is that of the image.
  if match := images.find_beside(name) or images.find(image_path or path.stem, name):
    return match
  if content.get('imageData'):
    return _decode_base64(content['imageData'], f'{name}:')
  raise DataError(f'{name}: no image {image_path!r}, and no image of the same name next to it.')


def _read_shape(entry: Mapping[str, object], height: int, width: int) -> samples.Shape | None:
  label = entry.get('label')
  if not isinstance(label, str) or not label.strip():
    raise DataError('it has no label')
  # Early versions had only polygons and no shape_type.
  kind, points = str(entry.get('shape_type') or 'polygon'), entry.get('points')
  points = outlines.parse_points(points)
  if kind == 'mask':
    mask = image_io.read_mask(_decode_base64(entry.get('mask'), 'its mask:'))
    if not len(points):
      raise DataError('its mask has no position')
    # The upper left corner of the embedded mask lies at the first point; labelme truncates it.
    left, top = points[0].astype(int).tolist()
    return samples.Shape(label, [outlines.place(mask, top, left, height, width)])
  if kind not in _FILLS:
    raise DataError(f'unknown shape_type {kind!r}; allowed are {sorted([*_FILLS, "mask"])}')
  is_point = kind in ('point', 'points')
  if not (len(points) if is_point else outlines.has_extent(points)):
    return None
  if kind == 'rectangle' and len(points) > 2:
    kind = 'polygon'
  parts = np.split(points, len(points)) if is_point else [points]
  patches = [_FILLS[kind](part, height, width) for part in parts]
  return samples.Shape(label, patches, _REMARKS.get(kind, ''))


def _decode_base64(text: object, description: str) -> bytes:
  with contextlib.suppress(ValueError):
    if isinstance(text, str):
      return base64.b64decode(text)
  raise DataError(f'{description} not an image in base64')
