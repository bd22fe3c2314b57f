"""Reader of COCO: JSON files that list images, categories, and instances.

An instance is a set of polygons, a run-length code or a bounding box. An image without instances is
good. The mask of an instance is the union of its polygons, as in pycocotools, so that polygons
cannot have holes; run lengths can.
"""

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path, PurePosixPath
import re
from typing import Any, NamedTuple

from jaxtyping import Bool
import numpy as np

from uadjax.data.convert import labelme, outlines, samples
from uadjax.errors import DataError
from uadjax.numerics import regions
from uadjax.system.progress import Progress

_MAX_LISTED_PROBLEMS = 5  # Unusable files to list: a LabelMe folder has one JSON file per image.
_HELD_OUT_WORDS = ('val', 'valid', 'validation', 'test')  # Words in the path of a JSON file.


class _CocoFile(NamedTuple):
  """Content of a JSON file.

  Attributes:
    relative_path: path relative to the source, with '/'.
    image_entries: entries of the list 'images'.
    instances_by_image: entries of the list 'annotations', by the id of their image.
    category_names: names of categories, by id.
  """

  relative_path: str
  image_entries: Sequence[Any]
  instances_by_image: Mapping[Any, Sequence[Any]]
  category_names: Mapping[Any, str]

  @property
  def is_held_out(self) -> bool:
    """Return whether the file's path says that its images are held out from training."""
    return not set(re.split('[^a-z]+', self.relative_path.lower())).isdisjoint(_HELD_OUT_WORDS)


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images that the JSON files below a folder list, and their masks."""
  images = samples.index_images(source)
  paths = samples.find_files(source, '.json')
  # COCO also has files with captions and keypoints of the same images, which would count twice.
  paths = [path for path in paths if path.stem.startswith('instances')] or paths
  files: list[_CocoFile] = []
  problems: list[str] = []
  for path in paths:
    try:
      files.append(_read_file(path, images.relative_to_root(path)))
    except DataError as error:
      problems.extend(str(error).splitlines())
  if len(problems) > _MAX_LISTED_PROBLEMS:
    problems[_MAX_LISTED_PROBLEMS:] = [
      f'{len(problems) - _MAX_LISTED_PROBLEMS} more JSON files like these.'
    ]
  jobs = [
    functools.partial(_read_sample, entry, file, images)
    for file in files
    for entry in file.image_entries
  ]
  if not jobs and not problems:
    problems.append(f'No JSON file below {source} lists images and annotations as COCO does.')
  listed_samples, sample_problems = samples.collect_samples(jobs, progress, 'Reading labels')
  num_unlisted = len(set(images) - {sample.image for sample in listed_samples})
  notes = [f'{num_unlisted} images that no JSON file lists were ignored.'] if num_unlisted else []
  return samples.SourceContents(listed_samples, [*problems, *sample_problems], notes)


def _read_file(path: Path, relative_path: str) -> _CocoFile:
  data = labelme.read_json(path, relative_path)
  keys = ('images', 'annotations', 'categories')
  if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in keys):
    raise DataError(
      f'{relative_path}: not a COCO file, because it lacks one of {keys}; move it elsewhere.'
    )
  instances_by_image: dict[Any, list[Any]] = {
    _require_id(entry, 'id', relative_path): [] for entry in data['images']
  }
  orphan_instances = []
  for instance in data['annotations']:
    image_id = _require_id(instance, 'image_id', relative_path)
    instances_by_image.get(image_id, orphan_instances).append(instance)
  if orphan_instances:
    ids = sorted({str(instance['image_id']) for instance in orphan_instances})[:5]
    raise DataError(
      f'{relative_path}: {len(orphan_instances)} annotations have an image_id that the file does '
      f'not list: {ids}.'
    )
  category_names = {
    _require_id(category, 'id', relative_path): str(category.get('name'))
    for category in data['categories']
  }
  return _CocoFile(relative_path, data['images'], instances_by_image, category_names)


def _require_id(entry: Any, key: str, relative_path: str) -> int | str:
  value = entry.get(key) if isinstance(entry, dict) else None
  if not isinstance(value, int | str):
    raise DataError(f'{relative_path}: an entry has no {key}: {str(entry)[:60]}.')
  return value


def _read_sample(
  entry: dict[str, Any], file: _CocoFile, images: samples.ImageIndex
) -> samples.Sample:
  image = _find_image(str(entry.get('file_name') or ''), file.relative_path, images)
  name = images.relative_to_root(image)
  height, width = samples.require_matching_size(
    image, name, entry.get('height'), entry.get('width')
  )
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for instance in file.instances_by_image[entry['id']]:
    try:
      shapes.append(_read_shape(instance, file.category_names, height, width))
    except DataError as error:
      problems.append(f'{file.relative_path}: {name}: annotation {instance.get("id")}: {error}.')
  if problems:
    raise DataError('\n'.join(problems))
  return samples.sample_from_shapes(name, image, shapes, file.is_held_out)


def _find_image(file_name: str, relative_path: str, images: samples.ImageIndex) -> Path:
  """Find the image whose path ends with `file_name`.

  Among several, choose the one nearest to the JSON file; for annotations/instances_train2017.json,
  the folder train2017/ is also near.

  Raises:
    DataError: no image matches, or several match equally well.
  """
  normalized_path = samples.to_posix(file_name)
  matches = images.find_by_ending(re.sub(r'^([a-zA-Z]:)?(/|\.\./)*', '', normalized_path))
  folder = PurePosixPath(relative_path).parent
  exact_match = images.find_by_path((folder / normalized_path).as_posix())
  ranked_matches = [
    [p for p in matches if p == exact_match],
    [p for p in matches if PurePosixPath(relative_path).stem.endswith(f'_{p.parent.name}')],
    [p for p in matches if folder in PurePosixPath(images.relative_to_root(p)).parents],
    matches,
  ]
  for candidates in ranked_matches:
    if len(candidates) == 1:
      return candidates[0]
  raise DataError(
    f'{relative_path}: {file_name!r} is ambiguous: it matches '
    f'{[images.relative_to_root(p) for p in matches[:5]]}; list images with their folders.'
    if matches
    else f'{relative_path}: no image {file_name!r}.'
  )


def _read_shape(
  instance: dict[str, Any], category_names: Mapping[Any, str], height: int, width: int
) -> samples.Shape:
  """Convert an instance to a shape; crowds, often run-length encoded, are no exception."""
  category = instance.get('category_id')
  label = category_names.get(category) if isinstance(category, int | str) else None
  if label is None:
    raise DataError(f'unknown category_id {category!r}')
  segmentation = instance.get('segmentation')
  if isinstance(segmentation, dict):
    return samples.Shape(label, _decode_run_lengths(segmentation, height, width))
  if isinstance(segmentation, list) and segmentation:
    polygons = [_read_polygon(coordinates) for coordinates in segmentation]
    masks = [outlines.fill_polygon_even_odd(polygon, height, width) for polygon in polygons]
    return samples.Shape(label, np.logical_or.reduce(masks))
  bounding_box = instance.get('bbox')
  if not isinstance(bounding_box, list) or len(bounding_box) != 4:
    raise DataError('it has neither segmentation nor bbox')
  (left, top), (box_width, box_height) = outlines.parse_points([bounding_box[:2], bounding_box[2:]])
  right, bottom = left + box_width, top + box_height
  corners = outlines.parse_points([[left, top], [right, top], [right, bottom], [left, bottom]])
  return samples.Shape(label, outlines.fill_polygon_even_odd(corners, height, width), is_box=True)


def _read_polygon(coordinates: Any) -> Any:
  if not isinstance(coordinates, list) or len(coordinates) % 2:
    raise DataError(f'a polygon must be a list [x1, y1, x2, y2, …], not {str(coordinates)[:60]}')
  pairs = [coordinates[i : i + 2] for i in range(0, len(coordinates), 2)]
  return outlines.require_points(3, outlines.parse_points(pairs), 'polygon')


def _decode_run_lengths(
  segmentation: dict[str, Any], height: int, width: int
) -> Bool[np.ndarray, 'h w']:
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
