"""Reader of Pascal VOC: masks whose values are classes, or XML files with outlines or boxes.

Folders are JPEGImages, SegmentationClass (labelme's older export: SegmentationClassPNG),
Annotations and ImageSets, or any other with XML files, such as train/ and valid/ with images and
XML files side by side. A mask takes precedence over an XML file, and an outline over its bounding
box; boxes are filled. Images that the lists in ImageSets do not name are ignored; without lists, an
image without labels is good.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import functools
import math
from pathlib import Path
import re
from typing import NamedTuple
from xml.etree import ElementTree

from jaxtyping import Int32
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.convert import label_files, outlines, samples
from uadjax.data.convert.images import ImageIndex, normalize, strip_suffix, to_posix
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system.progress import Progress

_VOC_FOLDERS = 'JPEGImages', 'Annotations', 'SegmentationClass', 'ImageSets'
_MASK_FOLDERS = 'segmentationclass', 'segmentationclasspng'
# Folders whose files belong together if their other folders and their stems agree.
_PARALLEL_FOLDERS = (*_MASK_FOLDERS, 'annotations', 'images', 'jpegimages')
_NO_REGION = 'Objects have neither an outline nor a box, such as polygons exported as rectangles'

# Values of background, and of pixels that are neither defect nor background, in a mask of class
# numbers and in one of colors.
_VOID_CLASSES = (0, 255)
_VOID_COLORS = ((0, 0, 0), (224, 224, 192))
_NON_DEFECT_LABELS = ('background', '_background_', '__ignore__', 'ignored', 'void')


class _VocFiles(NamedTuple):
  """Files and class names of a VOC folder.

  Attributes:
    images: images that labels may name.
    images_by_key: images by `_key`.
    label_paths: masks and XML files, by `_key`.
    class_names: names of classes, by their value in masks.
    names_by_color: names of classes, by their color in colored masks; else empty.
    must_have_mask: whether an image without labels is an error, because others have masks.
  """

  images: ImageIndex
  images_by_key: Mapping[str, Sequence[Path]]
  label_paths: Mapping[str, Sequence[Path]]
  class_names: Mapping[int, str]
  names_by_color: Mapping[tuple[int, ...], str]
  must_have_mask: bool


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images and masks of a VOC folder, or of the only one in a folder like VOCdevkit.

  Raises:
    DataError: there are no labels, or several folders with lists.
  """
  root = _find_root(source)
  train, held_out = _read_image_sets(root)
  files = _find_files(root, has_image_sets=bool(train or held_out))
  if not files.label_paths:
    # Without this error, defective images would become training images.
    message = f'No VOC annotations in {root}: neither Annotations/*.xml nor SegmentationClass/*.png'
    raise DataError(f'{message}; name the format of the labels, or the folder that contains them.')

  def read_listed(stem: str) -> samples.Sample:
    return _read_sample(stem, files, stem in held_out)

  def read_unlabeled(path: Path) -> samples.Sample:
    files.images.require_no_defect(path)
    return samples.make_sample(files.images.relative_to_root(path), path)

  # Labels without an image must be reported: the image of a defect may have another name.
  stems = sorted(train | held_out or files.label_paths)
  listed, problems = samples.collect(read_listed, stems, progress)
  used = {sample.image for sample in listed}
  notes = []
  if train or held_out:
    num_unlabeled = len({_key(stem) for stem in stems} - files.label_paths.keys())
    if num_unlisted := len(set(files.images.paths) - used):
      notes.append(f'{num_unlisted} images that no list in ImageSets names were ignored.')
  else:
    others = files.images.without_labels(used)
    unlabeled, more_problems = samples.collect(read_unlabeled, others, progress)
    listed, problems, num_unlabeled = listed + unlabeled, problems + more_problems, len(unlabeled)
  if num_unlabeled:
    notes.append(f'{num_unlabeled} images without an XML file or a mask count as good.')
  return samples.SourceContents(listed, problems, notes, files.images.remarks)


def _find_root(source: Path) -> Path:
  """Return the only VOC folder in a folder like VOCdevkit, or else the folder itself.

  Raises:
    DataError: there are several VOC folders with lists, which belong to different datasets.
  """

  def contains(folder: Path, *names: str) -> bool:
    return any((folder / name).is_dir() for name in names)

  roots = [f for f in scanning.folders_in(source) if contains(f, *_VOC_FOLDERS)]
  if contains(source, *_VOC_FOLDERS) or not roots:
    return source
  if len(roots) > 1 and any(contains(root, 'ImageSets') for root in roots):
    names = ', '.join(root.name for root in roots)
    raise DataError(f'{source} contains several VOC folders; name one of them: {names}.')
  return roots[0] if len(roots) == 1 else source


def _find_files(root: Path, has_image_sets: bool) -> _VocFiles:
  # SegmentationObject and, of labelme, SegmentationClassVisualization are not photographs either.
  images = ImageIndex(root, ignored_folders='segmentation')
  masks = [
    path
    for path in scanning.find_files(root, ['.png'])
    if any(folder.lower() in _MASK_FOLDERS for folder in path.relative_to(root).parts[:-1])
  ]
  label_paths = [*masks, *scanning.find_files(root, ['.xml'])]
  # The index of a line of labelme's list is the value of the class in masks.
  class_names = dict(enumerate(label_files.read_lines(root / 'class_names.txt')))
  names_by_color = _read_color_names(root / 'labelmap.txt')
  by_key = _group_by_key(images.paths, root), _group_by_key(label_paths, root)
  return _VocFiles(images, *by_key, class_names, names_by_color, bool(masks) and has_image_sets)


def _group_by_key(paths: Iterable[Path], root: Path) -> Mapping[str, Sequence[Path]]:
  groups: dict[str, list[Path]] = collections.defaultdict(list)
  for path in paths:
    groups[_key(strip_suffix(path.relative_to(root).as_posix()))].append(path)
  return dict(groups)


def _key(stem: str) -> str:
  """Return what the paths of an image and its labels, without suffix, have in common."""
  *folders, name = stem.split('/')
  return normalize('/'.join([*(f for f in folders if f.lower() not in _PARALLEL_FOLDERS), name]))


def _read_image_sets(root: Path) -> tuple[frozenset[str], frozenset[str]]:
  """Return the stems of training and of held-out images, for segmentation or else detection."""

  def stems(folder: Path, *names: str) -> frozenset[str]:
    lines = (line for name in names for line in label_files.read_lines(folder / f'{name}.txt'))
    return frozenset(map(to_posix, lines))

  for task in ('Segmentation', 'Main'):
    folder = root / 'ImageSets' / task
    train, held_out = stems(folder, 'train', 'trainval', 'default'), stems(folder, 'val', 'test')
    if train or held_out:
      return train - held_out, held_out
  return frozenset(), frozenset()


def _read_color_names(path: Path) -> dict[tuple[int, ...], str]:
  """Read CVAT's labelmap.txt, whose lines are `name:red,green,blue:parts:actions`."""
  names_by_color: dict[tuple[int, ...], str] = {}
  for line in label_files.read_lines(path):
    name, color, *_ = (*line.split(':'), '')
    channels = color.split(',')
    if len(channels) == 3 and all(channel.strip().isdecimal() for channel in channels):
      names_by_color[tuple(map(int, channels))] = name
  return names_by_color


def _read_sample(stem: str, files: _VocFiles, held_out: bool) -> samples.Sample:
  label_path = _choose_label(stem, files.label_paths.get(_key(stem), ()))
  element, remarks, label_name = None, [], stem
  if label_path:
    label_name = files.images.relative_to_root(label_path)
    if label_path.suffix.lower() == '.xml':
      element, remarks = label_files.read_xml(label_path, label_name)
  file_name = (element.findtext('filename') or '').strip() if element is not None else ''
  image = _find_image(stem, file_name, label_name, files)
  name = files.images.relative_to_root(image)
  if files.must_have_mask and not label_path:
    raise DataError(f'{name}: listed, but without a mask; add one, all black if it is good.')
  if element is not None:
    labeled_size = (
      _parse_float(element.findtext(f'size/{key}', '')) for key in ('height', 'width')
    )
    size = samples.require_matching_size(image, label_name, *labeled_size)
    objects = [(f'{label_name}: object {n}', e) for n, e in enumerate(element.iter('object'), 1)]
    read_object = functools.partial(_read_object, h=size[0], w=size[1])
    return samples.make_sample(name, image, objects, read_object, held_out, remarks, label_name)
  if label_path:
    values, labels = _read_mask(label_path, label_name, image, files)

    def read_class(value: int) -> samples.Shape:
      return samples.Shape(labels[value], [outlines.Patch(0, 0, values == value)])

    classes = [(f'{label_name}: {label}', value) for value, label in labels.items()]
    return samples.make_sample(name, image, classes, read_class, held_out, (), label_name)
  return samples.make_sample(name, image, held_out=held_out)


def _choose_label(stem: str, paths: Sequence[Path]) -> Path | None:
  """Return the mask of an image, or else its XML file; None if it has no label."""
  masks = [path for path in paths if path.suffix.lower() != '.xml']
  first, *others = masks or paths or [None]
  if first and others:
    raise DataError(f'{stem}: it has labels in {first} and in {others[0]}; delete one.')
  return first


def _find_image(stem: str, file_name: str, label_name: str, files: _VocFiles) -> Path:
  """Find an image by the path of its labels, or else by the name in them."""
  matches = files.images_by_key.get(_key(stem), [])
  if len(matches) > 1:
    names = ', '.join(path.name for path in matches)
    raise DataError(f'{stem}: {names} share its labels; rename all but one.')
  if matches:
    return matches[0]
  image = files.images.find(file_name, label_name) or files.images.find(stem, label_name)
  if not image:
    raise DataError(f'{label_name}: no such image.')
  return image


def _read_mask(
  path: Path, label_name: str, image: Path, files: _VocFiles
) -> tuple[Int32[np.ndarray, 'h w'], dict[int, str]]:
  """Read a mask; return its values, and the types of defects by value.

  Raises:
    DataError: the mask cannot be read, has another size than its image, or unknown colors.
  """
  values, is_colored = _read_values(path, bool(files.names_by_color))
  samples.require_matching_size(image, label_name, *values.shape)
  labels: dict[int, str] = {}
  for value in np.unique(values).tolist():
    if is_colored:
      color = tuple(value.to_bytes(3, 'big'))
      label = files.names_by_color.get(color, 'void' if color in _VOID_COLORS else '')
      if not label and files.names_by_color:
        raise DataError(f'{label_name}: labelmap.txt does not name the color {color} of the mask.')
    else:
      class_name = files.class_names.get(value, f'class_{value}')
      label = 'void' if value in _VOID_CLASSES else class_name
    if label not in _NON_DEFECT_LABELS:
      labels[value] = label or 'defect'
  return values, labels


def _read_values(path: Path, has_color_names: bool) -> tuple[Int32[np.ndarray, 'h w'], bool]:
  """Read a mask; return its class numbers, or its colors as 0xRRGGBB, and whether it has colors.

  Raises:
    DataError: the mask cannot be read, or has only the values 0 and 255 (void).
  """
  image_io.verify(path)
  with Image.open(path, formats=['PNG']) as mask:
    if mask.mode not in ('P', 'L') or has_color_names:
      colors = np.asarray(mask.convert('RGB')).astype(np.int32)
      return colors @ np.array([1 << 16, 1 << 8, 1], np.int32), True
    values = np.asarray(mask).astype(np.int32)
    if mask.mode == 'L' and values.any() and set(np.unique(values)) <= {*_VOID_CLASSES}:
      message = f'{path.name}: the mask has only the values 0 and 255, which means void in VOC'
      raise DataError(f'{message}; write defects as 1.')
  return values, False


def _read_object(element: ElementTree.Element, h: int, w: int) -> samples.Shape | None:
  """Convert an object; without any outline or box, it is a label of the whole image."""
  label = (element.findtext('name') or '').strip()
  if not label:
    raise DataError('it has no name')
  polygons = [_parse_polygon(polygon) for polygon in element.findall('polygon')]
  patches = [outlines.fill_polygon(p, h, w) for p in polygons if outlines.has_extent(p)]
  if patches:
    return samples.Shape(label, patches)
  edges = [element.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
  if any(edges):
    corners = outlines.parse_points([edges[:2], edges[2:]])
    # VOC counts pixels from one, so coordinates are shifted.
    patches = [outlines.fill_rectangle(corners - 1, h, w)] if outlines.has_extent(corners) else []
    return samples.Shape(label, patches, samples.BOXES_FILLED) if patches else None
  if (box := element.find('robndbox')) is not None:
    corners = _parse_rotated_box(box)
    return samples.Shape(label, [outlines.fill_polygon(corners, h, w)], samples.BOXES_FILLED)
  return None if polygons else samples.Shape(label, remark=_NO_REGION)


def _parse_polygon(polygon: ElementTree.Element) -> outlines.Points:
  """Read the points of x1, y1, x2, y2 …, in any order, or of pairs of x and y."""
  numbered: dict[str, list[tuple[int, str | None]]] = {'x': [], 'y': []}
  for element in polygon.iter():
    if match := re.fullmatch(r'([xy])(\d*)', element.tag.lower()):
      numbered[match[1]].append((int(match[2] or 0), element.text))
  # Sorting keeps the order of pairs without numbers.
  xs, ys = ([text for _, text in sorted(numbered[axis], key=lambda n: n[0])] for axis in 'xy')
  if len(xs) != len(ys):
    raise DataError(f'its polygon has {len(xs)} x but {len(ys)} y')
  return outlines.parse_points(list(zip(xs, ys, strict=True)))


def _parse_rotated_box(box: ElementTree.Element) -> outlines.Points:
  """Read the corners of a box of roLabelImg, whose angle is clockwise and in radians."""
  cx, cy, width, height, angle = (box.findtext(key) for key in ('cx', 'cy', 'w', 'h', 'angle'))
  center, size, (radians, _) = outlines.parse_points([[cx, cy], [width, height], [angle, 0]])
  cos, sin = math.cos(radians), math.sin(radians)
  corners = size / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
  return center + corners @ np.array([[cos, sin], [-sin, cos]])


def _parse_float(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
