"""Reader of COCO: JSON files that list images, categories, and instances.

An instance is a set of polygons, a run-length code or a bounding box. An image without instances is
good. The mask of an instance is the union of its polygons, as in pycocotools, so that polygons
cannot have holes; run lengths can. An instance without any extent is ignored with a remark.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from uadjax.data.convert import label_files, outlines, samples
from uadjax.data.convert.images import ImageIndex
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.numerics import regions
from uadjax.system.progress import Progress

_MAX_LISTED = 5  # Unusable files to list: a LabelMe folder has one JSON file per image.

Entry: TypeAlias = Mapping[str, object]
Id: TypeAlias = int | str


class _CocoFile(NamedTuple):
  """Content of a JSON file.

  Attributes:
    name: path relative to the source, with '/'.
    images: entries of the list 'images', each with those of the list 'annotations' for it.
    category_names: names of categories, by id.
    held_out: whether the file's path says that its images are held out from training.
    remarks: decisions about the file.
  """

  name: str
  images: Sequence[tuple[Entry, Sequence[Entry]]]
  category_names: Mapping[Id, str]
  held_out: bool
  remarks: Sequence[samples.Remark]


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images that the JSON files below a folder list, and their masks."""
  images = ImageIndex(source)
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
  remarks = [*(remark for file in files for remark in file.remarks), *images.remarks]
  return samples.SourceContents(listed, [*problems, *more_problems], notes, remarks)


def _read_file(path: Path, source: Path) -> _CocoFile:
  name = path.relative_to(source).as_posix()
  keys = 'images', 'annotations', 'categories'
  content, remarks = label_files.read_json(path, name, 'COCO', keys)
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
  held_out = samples.lists_held_out_images(name)
  return _CocoFile(name, labeled_images, category_names, held_out, remarks)


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
  images: ImageIndex, file: _CocoFile, entry: Entry, instances: Sequence[Entry]
) -> samples.Sample:
  file_name = str(entry.get('file_name') or '')
  image = images.find(file_name, file.name)
  if not image:
    raise DataError(f'{file.name}: no image {file_name!r}.')
  name = images.relative_to_root(image)
  location = f'{file.name}: {name}'
  size = samples.require_matching_size(image, location, entry.get('height'), entry.get('width'))
  return samples.make_sample(
    name,
    image,
    [(f'{location}: annotation {i.get("id")}', i) for i in instances],
    lambda instance: _read_shape(instance, file.category_names, *size),
    file.held_out,
  )


def _read_shape(
  instance: Entry, category_names: Mapping[Id, str], height: int, width: int
) -> samples.Shape | None:
  """Convert an instance to a shape; crowds, often run-length encoded, are no exception."""
  category = instance.get('category_id')
  label = category_names.get(category) if isinstance(category, int | str) else None
  if label is None:
    raise DataError(f'unknown category_id {category!r}')
  segmentation, box = instance.get('segmentation'), instance.get('bbox')
  if isinstance(segmentation, dict):
    patch = _decode_run_lengths(segmentation, height, width)
    if patch.mask.any():
      return samples.Shape(label, [patch])
  elif isinstance(segmentation, list):
    polygons = filter(outlines.has_extent, map(_parse_polygon, segmentation))
    patches = [outlines.fill_polygon_even_odd(p, height, width) for p in polygons]
    if patches:
      return samples.Shape(label, patches)
  elif segmentation is not None:
    raise DataError(f'its segmentation is no list or object, but {str(segmentation)[:60]}')
  if box:
    if not isinstance(box, list) or len(box) != 4:
      raise DataError(f'its bbox must be [x, y, width, height], not {str(box)[:60]}')
    corner, box_size = outlines.parse_points([box[:2], box[2:]])
    if box_size.all():
      corners = corner + box_size * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
      patch = outlines.fill_polygon_even_odd(corners, height, width)
      return samples.Shape(label, [patch], samples.BOXES_FILLED)
  # Tools write empty instances for objects that were never drawn, but without any of these keys, or
  # with an area, an instance says that there is a defect somewhere.
  is_never_drawn = ('segmentation' in instance or 'bbox' in instance) and not instance.get('area')
  return None if is_never_drawn else samples.Shape(label)


def _parse_polygon(coordinates: object) -> outlines.Points:
  if not isinstance(coordinates, list) or len(coordinates) % 2:
    raise DataError(f'a polygon must be a list [x1, y1, x2, y2, …], not {str(coordinates)[:60]}')
  return outlines.parse_points(list(zip(coordinates[::2], coordinates[1::2], strict=True)))


def _decode_run_lengths(segmentation: Entry, height: int, width: int) -> outlines.Patch:
  counts, size = segmentation.get('counts'), segmentation.get('size')
  if size != [height, width]:
    raise DataError(f'its run lengths have size {size}, but the image has {[height, width]}')
  if not isinstance(counts, str) and not (
    isinstance(counts, list) and all(isinstance(count, int) for count in counts)
  ):
    raise DataError('its run lengths are neither a list of integers nor a string')
  try:
    return outlines.Patch(0, 0, regions.decode_run_lengths(counts, height, width))
  except ValueError as error:
    raise DataError(str(error)) from None
