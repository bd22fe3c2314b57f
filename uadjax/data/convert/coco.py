"""Reader of COCO: JSON files that list images, categories, and instances.

An instance is a set of polygons, a run-length code or a bounding box. An image without instances is
good. The mask of an instance is the union of its polygons, as in pycocotools, so that polygons
cannot have holes; run lengths can.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re
from typing import NamedTuple, TypeAlias

import numpy as np

from uadjax.data.convert import outlines, samples
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.numerics import regions
from uadjax.system.progress import Progress

_MAX_LISTED = 5  # Unusable files to list: a LabelMe folder has one JSON file per image.
_HELD_OUT_WORDS = {'val', 'valid', 'validation', 'test'}  # Words in the path of a JSON file.

Entry: TypeAlias = Mapping[str, object]
Id: TypeAlias = int | str


class _CocoFile(NamedTuple):
  """Content of a JSON file.

  Attributes:
    name: path relative to the source, with '/'.
    images: entries of the list 'images', each with those of the list 'annotations' for it.
    category_names: names of categories, by id.
    held_out: whether the file's path says that its images are held out from training.
  """

  name: str
  images: Sequence[tuple[Entry, Sequence[Entry]]]
  category_names: Mapping[Id, str]
  held_out: bool


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images that the JSON files below a folder list, and their masks."""
  images = samples.ImageIndex(source)
  paths = scanning.find_files(source, ['.json'])
  # COCO also has files with captions and keypoints of the same images, which would count twice.
  paths = [path for path in paths if path.stem.startswith('instances')] or paths
  files, problems = samples.collect(lambda path: _read_file(path, source), paths)
  if len(problems) > _MAX_LISTED:
    problems[_MAX_LISTED:] = [f'{len(problems) - _MAX_LISTED} more JSON files like these.']
  entries = [(file, *labeled_image) for file in files for labeled_image in file.images]
  if not entries and not problems:
    problems.append(f'No JSON file below {source} lists images and annotations as COCO does.')
  listed, more_problems = samples.collect(lambda e: _read_sample(images, *e), entries, progress)
  num_unlisted = len(set(images.paths) - {sample.image for sample in listed})
  notes = [f'{num_unlisted} images that no JSON file lists were ignored.'] if num_unlisted else []
  return samples.SourceContents(listed, [*problems, *more_problems], notes)


def _read_file(path: Path, source: Path) -> _CocoFile:
  name = path.relative_to(source).as_posix()
  content = samples.read_json(path, name, 'COCO', ('images', 'annotations', 'categories'))
  images = _entries_by_id(content['images'], 'id', name)
  instances: dict[Id, list[Entry]] = {image_id: [] for image_id, _ in images}
  annotations = _entries_by_id(content['annotations'], 'image_id', name)
  if orphans := [str(image_id) for image_id, _ in annotations if image_id not in instances]:
    message = f'{name}: {len(orphans)} annotations have an image_id that the file does not list'
    raise DataError(f'{message}: {sorted(set(orphans))[:5]}.')
  for image_id, instance in annotations:
    instances[image_id].append(instance)
  categories = _entries_by_id(content['categories'], 'id', name)
  category_names = {category_id: str(entry.get('name')) for category_id, entry in categories}
  labeled_images = [(entry, instances[image_id]) for image_id, entry in images]
  held_out = not _HELD_OUT_WORDS.isdisjoint(re.split('[^a-z]+', name.lower()))
  return _CocoFile(name, labeled_images, category_names, held_out)


def _entries_by_id(entries: object, key: str, name: str) -> list[tuple[Id, Entry]]:
  """Return the entries of a list with their ids.

  Raises:
    DataError: an entry has no id.
  """
  pairs: list[tuple[Id, Entry]] = []
  assert isinstance(entries, list)  # `read_json` requires it.
  for entry in entries:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int | str):
      raise DataError(f'{name}: an entry has no {key}: {str(entry)[:60]}.')
    pairs.append((value, entry))
  return pairs


def _read_sample(
  images: samples.ImageIndex, file: _CocoFile, entry: Entry, instances: Sequence[Entry]
) -> samples.Sample:
  image = _find_image(str(entry.get('file_name') or ''), file.name, images)
  name = images.relative_to_root(image)
  size = samples.require_matching_size(image, name, entry.get('height'), entry.get('width'))
  shapes = samples.read_shapes(
    lambda instance: _read_shape(instance, file.category_names, *size),
    [(f'{file.name}: {name}: annotation {i.get("id")}:', i) for i in instances],
  )
  return samples.sample_from_shapes(name, image, shapes, file.held_out)


def _find_image(file_name: str, json_name: str, images: samples.ImageIndex) -> Path:
  """Find the image whose path ends with `file_name`.

  Among several, choose the one nearest to the JSON file; for annotations/instances_train2017.json,
  the folder train2017/ is also near.

  Raises:
    DataError: no image matches, or several match equally well.
  """
  file_path, json_path = samples.to_posix(file_name), images.root / json_name
  matches = images.find_by_ending(re.sub(r'^([a-zA-Z]:)?(/|\.\./)*', '', file_path))
  exact_match = images.find_by_path((Path(json_name).parent / file_path).as_posix())

  def closeness(path: Path) -> tuple[bool, ...]:
    is_named_like_json = json_path.stem.endswith(f'_{path.parent.name}')
    return path == exact_match, is_named_like_json, json_path.parent in path.parents

  if not matches:
    raise DataError(f'{json_name}: no image {file_name!r}.')
  closest, *others = sorted(matches, key=closeness, reverse=True)
  if others and closeness(closest) == closeness(others[0]):
    names = [images.relative_to_root(path) for path in matches[:5]]
    message = f'{json_name}: {file_name!r} is ambiguous: it matches {names}'
    raise DataError(f'{message}; list images with their folders.')
  return closest


def _read_shape(
  instance: Entry, category_names: Mapping[Id, str], height: int, width: int
) -> samples.Shape:
  """Convert an instance to a shape; crowds, often run-length encoded, are no exception."""
  category = instance.get('category_id')
  label = category_names.get(category) if isinstance(category, int | str) else None
  if label is None:
    raise DataError(f'unknown category_id {category!r}')
  segmentation, box = instance.get('segmentation'), instance.get('bbox')
  if isinstance(segmentation, dict):
    return samples.Shape(label, _decode_run_lengths(segmentation, height, width))
  if isinstance(segmentation, list) and segmentation:
    masks = [_fill_polygon(coordinates, height, width) for coordinates in segmentation]
    return samples.Shape(label, np.logical_or.reduce(masks))
  if not isinstance(box, list) or len(box) != 4:
    raise DataError('it has neither segmentation nor bbox')
  corner, box_size = outlines.parse_points([box[:2], box[2:]])
  corners = corner + box_size * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
  return samples.Shape(label, outlines.fill_polygon_even_odd(corners, height, width), is_box=True)


def _fill_polygon(coordinates: object, height: int, width: int) -> outlines.Mask:
  if not isinstance(coordinates, list) or len(coordinates) % 2:
    raise DataError(f'a polygon must be a list [x1, y1, x2, y2, …], not {str(coordinates)[:60]}')
  pairs = list(zip(coordinates[::2], coordinates[1::2], strict=True))
  return outlines.fill_polygon_even_odd(outlines.parse_points(pairs, 3, 'polygon'), height, width)


def _decode_run_lengths(segmentation: Entry, height: int, width: int) -> outlines.Mask:
  counts, size = segmentation.get('counts'), segmentation.get('size')
  if size != [height, width]:
    raise DataError(f'its run lengths have size {size}, but the image has {[height, width]}')
  if not isinstance(counts, str) and not (
    isinstance(counts, list) and all(isinstance(count, int) for count in counts)
  ):
    raise DataError('its run lengths are neither a list of integers nor a string')
  try:
    return regions.decode_run_lengths(counts, height, width)
  except ValueError as error:
    raise DataError(str(error)) from None
