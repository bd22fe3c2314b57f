"""COCO: JSON files that list images, categories, and instances as polygons or run lengths.

An image without instances is good. The polygons of one instance are its parts: their union, as in
pycocotools, and no holes; holes are what run lengths are for.
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
from uadjax.system.progress import Track

_SHOWN = 5  # Files that cannot be used; a folder of LabelMe's has one per image.
_HELD_OUT = ('val', 'valid', 'validation', 'test')  # In the path of a JSON file.


class _File(NamedTuple):
  """A JSON file, read.

  Attributes:
    path: relative to the source, with '/'.
    images: its entries.
    instances: by the id of their image.
    labels: names of categories by id.
  """

  path: str
  images: Sequence[Any]
  instances: Mapping[Any, Sequence[Any]]
  labels: Mapping[Any, str]

  @property
  def held_out(self) -> bool:
    """Whether its name says that nothing is learned from its images."""
    return not set(re.split('[^a-z]+', self.path.lower())).isdisjoint(_HELD_OUT)


def read(source: Path, track: Track) -> samples.Found:
  """Read the images that the JSON files below a folder list."""
  images = samples.gallery(source)
  paths = samples.below(source, '.json')
  # COCO has other files for the same images; those of captions and keypoints would double them.
  paths = [path for path in paths if path.stem.startswith('instances')] or paths
  files: list[_File] = []
  problems: list[str] = []
  for path in paths:
    try:
      files.append(_file(path, images.relative(path)))
    except DataError as error:
      problems.extend(str(error).splitlines())
  if len(problems) > _SHOWN:
    problems[_SHOWN:] = [f'{len(problems) - _SHOWN} more JSON files like these.']
  jobs = [
    functools.partial(_sample, entry, file, images) for file in files for entry in file.images
  ]
  if not jobs and not problems:
    problems.append(f'No JSON file below {source} lists images and annotations as COCO does.')
  found, more = samples.collect(jobs, track, 'Reading labels')
  left = len(set(images) - {sample.image for sample in found})
  notes = [f'{left} images that no JSON file lists were passed over.'] if left else []
  return samples.Found(found, [*problems, *more], notes)


def _file(path: Path, where: str) -> _File:
  data = labelme.parse(path, where)
  keys = ('images', 'annotations', 'categories')
  if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in keys):
    raise DataError(f'{where}: no COCO file, for it lacks one of {keys}; move it elsewhere.')
  instances: dict[Any, list[Any]] = {_known(entry, 'id', where): [] for entry in data['images']}
  strays = []
  for instance in data['annotations']:
    image = _known(instance, 'image_id', where)
    instances.get(image, strays).append(instance)
  if strays:
    ids = sorted({str(instance['image_id']) for instance in strays})[:5]
    raise DataError(f'{where}: {len(strays)} annotations of images it does not list: {ids}.')
  labels = {_known(c, 'id', where): str(c.get('name')) for c in data['categories']}
  return _File(where, data['images'], instances, labels)


def _known(entry: Any, key: str, where: str) -> int | str:
  value = entry.get(key) if isinstance(entry, dict) else None
  if not isinstance(value, int | str):
    raise DataError(f'{where}: an entry has no {key}: {str(entry)[:60]}.')
  return value


def _sample(entry: dict[str, Any], file: _File, images: samples.Gallery) -> samples.Sample:
  image = _image(str(entry.get('file_name') or ''), file.path, images)
  name = images.relative(image)
  height, width = samples.fits(image, name, entry.get('height'), entry.get('width'))
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for instance in file.instances[entry['id']]:
    try:
      shapes.append(_shape(instance, file.labels, height, width))
    except DataError as error:
      problems.append(f'{file.path}: {name}: annotation {instance.get("id")}: {error}.')
  if problems:
    raise DataError('\n'.join(problems))
  return samples.drawn(name, image, shapes, file.held_out)


def _image(told: str, where: str, images: samples.Gallery) -> Path:
  """The image whose path ends as the file says.

  Of several the one nearest to the JSON file, where annotations/instances_train2017.json is near
  to train2017/.
  """
  path = samples.posix(told)
  ending = images.ending(re.sub(r'^([a-zA-Z]:)?(/|\.\./)*', '', path))
  folder = PurePosixPath(where).parent
  beside = images.named((folder / path).as_posix())
  ranked = [
    [p for p in ending if p == beside],
    [p for p in ending if PurePosixPath(where).stem.endswith(f'_{p.parent.name}')],
    [p for p in ending if folder in PurePosixPath(images.relative(p)).parents],
    ending,
  ]
  for candidates in ranked:
    if len(candidates) == 1:
      return candidates[0]
  raise DataError(
    f'{where}: no image {told!r}.'
    if not ending
    else f'{where}: {told!r} may be any of {[images.relative(p) for p in ending[:5]]}.'
  )


def _shape(
  instance: dict[str, Any], labels: Mapping[Any, str], height: int, width: int
) -> samples.Shape:
  """An instance; a crowd, of which run lengths are often made, is one like any other."""
  category = instance.get('category_id')
  label = labels.get(category) if isinstance(category, int | str) else None
  if label is None:
    raise DataError(f'unknown category_id {category!r}')
  segmentation = instance.get('segmentation')
  if isinstance(segmentation, dict):
    return samples.Shape(label, _runs(segmentation, height, width))
  if isinstance(segmentation, list) and segmentation:
    rings = [_ring(values) for values in segmentation]
    masks = [outlines.ring(ring, height, width) for ring in rings]
    return samples.Shape(label, np.logical_or.reduce(masks))
  box = instance.get('bbox')
  if not isinstance(box, list) or len(box) != 4:
    raise DataError('it has neither segmentation nor bbox')
  (left, top), (across, down) = outlines.points([box[:2], box[2:]])
  right, bottom = left + across, top + down
  corners = outlines.points([[left, top], [right, top], [right, bottom], [left, bottom]])
  return samples.Shape(label, outlines.ring(corners, height, width), box=True)


def _ring(values: Any) -> Any:
  if not isinstance(values, list) or len(values) % 2:
    raise DataError(f'a polygon must be a list [x1, y1, x2, y2, …], not {str(values)[:60]}')
  pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
  return outlines.at_least(3, outlines.points(pairs), 'polygon')


def _runs(segmentation: dict[str, Any], height: int, width: int) -> Bool[np.ndarray, 'h w']:
  counts, size = segmentation.get('counts'), segmentation.get('size')
  if size != [height, width]:
    raise DataError(f'its run lengths are of size {size}, and the image is {[height, width]}')
  if not isinstance(counts, str) and not (
    isinstance(counts, list) and all(isinstance(count, int) for count in counts)
  ):
    raise DataError('its run lengths are neither a list of integers nor a string')
  try:
    return regions.runs(counts, height, width)
  except ValueError as error:
    raise DataError(str(error)) from None
