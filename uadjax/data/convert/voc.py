"""Reader of Pascal VOC: masks whose values are classes, or XML files with bounding boxes.

Folders are JPEGImages, SegmentationClass (labelme's older export: SegmentationClassPNG),
Annotations and ImageSets. A mask takes precedence over bounding boxes; boxes are filled. Images
that the lists in ImageSets do not name are ignored; without lists, an image without labels is good.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from jaxtyping import Int32
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.convert import outlines, samples
from uadjax.data.layouts import scanning
from uadjax.errors import DataError
from uadjax.system.progress import Progress

# Values of background, and of pixels that are neither defect nor background, in a mask of class
# numbers and in one of colors.
_VOID_CLASSES = (0, 255)
_VOID_COLORS = ((0, 0, 0), (224, 224, 192))
_NON_DEFECT_LABELS = ('background', '_background_', '__ignore__', 'ignored', 'void')


class _VocFiles(NamedTuple):
  """Files and class names of a VOC folder; a stem is a path without suffix.

  Attributes:
    images: images that labels may name.
    label_paths: masks or, for images without one, files with bounding boxes, by stem.
    class_names: names of classes, by their value in masks.
    names_by_color: names of classes, by their color in colored masks; else empty.
    must_have_mask: whether an image without labels is an error, because others have masks.
  """

  images: samples.ImageIndex
  label_paths: Mapping[str, Path]
  class_names: Mapping[int, str]
  names_by_color: Mapping[tuple[int, ...], str]
  must_have_mask: bool


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images and masks of a VOC folder, or of the only one in a folder like VOCdevkit.

  Raises:
    DataError: there are no labels.
  """
  root = _find_root(source)
  image_folder = root / 'JPEGImages' if (root / 'JPEGImages').is_dir() else root
  xml_folder = root / 'Annotations' if (root / 'Annotations').is_dir() else image_folder
  train, held_out = _read_image_sets(root)
  images = samples.ImageIndex(image_folder)
  mask_paths = _files_by_stem(root / 'SegmentationClassPNG', '.png')
  mask_paths |= _files_by_stem(root / 'SegmentationClass', '.png')
  xml_paths = _files_by_stem(xml_folder, '.xml')
  # The index of a line of labelme's list is the value of the class in masks.
  class_names = dict(enumerate(samples.read_lines(root / 'class_names.txt')))
  names_by_color = _read_color_names(root / 'labelmap.txt')
  has_image_sets = bool(train or held_out)
  must_have_mask = bool(mask_paths and has_image_sets)
  files = _VocFiles(images, xml_paths | mask_paths, class_names, names_by_color, must_have_mask)
  if not files.label_paths:
    # Without this error, defective images would become training images.
    message = f'No VOC annotations in {root}: neither Annotations/*.xml nor SegmentationClass/*.png'
    raise DataError(f'{message}; name the format of the labels, or the folder that contains them.')
  paths = set(images.paths) - set(mask_paths.values())
  image_stems = {samples.strip_suffix(images.relative_to_root(path)) for path in paths}
  # Labels without an image must be reported: the image of a defect may have another name.
  stems = train | held_out if has_image_sets else image_stems | files.label_paths.keys()

  def read_sample(stem: str) -> samples.Sample:
    return _read_sample(stem, files, stem in held_out)

  listed, problems = samples.collect(read_sample, sorted(stems), progress)
  notes = []
  if has_image_sets and (num_unlisted := len(image_stems - stems)):
    notes.append(f'{num_unlisted} images that no list in ImageSets names were ignored.')
  if num_unlabeled := len(stems - files.label_paths.keys()):
    notes.append(f'{num_unlabeled} images without an XML file or a mask count as good.')
  return samples.SourceContents(listed, problems, notes)


def _find_root(source: Path) -> Path:
  names = ('JPEGImages', 'Annotations', 'SegmentationClass')
  nested = [f for f in source.glob('*') if any((f / name).is_dir() for name in names)]
  return nested[0] if len(nested) == 1 else source


def _files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
  return {
    samples.strip_suffix(path.relative_to(folder).as_posix()): path
    for path in scanning.find_files(folder, [suffix])
  }


def _read_image_sets(root: Path) -> tuple[frozenset[str], frozenset[str]]:
  """Return the stems of training and of held-out images, for segmentation or else detection."""

  def stems(folder: Path, *names: str) -> frozenset[str]:
    lines = (line for name in names for line in samples.read_lines(folder / f'{name}.txt'))
    return frozenset(map(samples.to_posix, lines))

  for task in ('Segmentation', 'Main'):
    folder = root / 'ImageSets' / task
    train, held_out = stems(folder, 'train', 'trainval', 'default'), stems(folder, 'val', 'test')
    if train or held_out:
      return train - held_out, held_out
  return frozenset(), frozenset()


def _read_color_names(path: Path) -> dict[tuple[int, ...], str]:
  """Read CVAT's labelmap.txt, whose lines are `name:red,green,blue:parts:actions`."""
  names_by_color: dict[tuple[int, ...], str] = {}
  for line in samples.read_lines(path):
    name, color, *_ = (*line.split(':'), '')
    channels = color.split(',')
    if len(channels) == 3 and all(channel.strip().isdecimal() for channel in channels):
      names_by_color[tuple(map(int, channels))] = name
  return names_by_color


def _read_sample(stem: str, files: _VocFiles, held_out: bool) -> samples.Sample:
  matches = files.images.find_by_stem(stem)
  if not matches:
    raise DataError(f'{stem}: no such image.')
  if len(matches) > 1:
    names = ', '.join(path.name for path in matches)
    raise DataError(f'{stem}: {names} share its labels; rename all but one.')
  image, shapes = matches[0], []
  name, label_path = files.images.relative_to_root(image), files.label_paths.get(stem)
  if label_path and label_path.suffix.lower() == '.xml':
    shapes = _read_box_shapes(name, image, label_path)
  elif label_path:
    shapes = _read_mask_shapes(name, image, label_path, files)
  elif files.must_have_mask:
    raise DataError(f'{name}: listed, but without a mask; add one, all black if it is good.')
  return samples.sample_from_shapes(name, image, shapes, held_out)


def _read_mask_shapes(name: str, image: Path, path: Path, files: _VocFiles) -> list[samples.Shape]:
  values, is_colored = _read_mask(path, bool(files.names_by_color))
  samples.require_matching_size(image, f'{name}: its mask', *values.shape)
  shapes = []
  for value in np.unique(values).tolist():
    if is_colored:
      color = tuple(value.to_bytes(3, 'big'))
      label = files.names_by_color.get(color, 'void' if color in _VOID_COLORS else '')
      if not label and files.names_by_color:
        raise DataError(f'{name}: labelmap.txt does not name the color {color} of its mask.')
    else:
      class_name = files.class_names.get(value, f'class_{value}')
      label = 'void' if value in _VOID_CLASSES else class_name
    if label not in _NON_DEFECT_LABELS:
      shapes.append(samples.Shape(label or 'defect', values == value))
  return shapes


def _read_mask(path: Path, has_color_names: bool) -> tuple[Int32[np.ndarray, 'h w'], bool]:
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


def _read_box_shapes(name: str, image: Path, xml_path: Path) -> list[samples.Shape]:
  try:
    root = ElementTree.parse(xml_path).getroot()
  except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
    raise DataError(f'{xml_path.name}: not XML: {error}.') from None
  labeled_size = (_parse_float(root.findtext(f'size/{key}', '')) for key in ('height', 'width'))
  height, width = samples.require_matching_size(image, name, *labeled_size)

  def read_box(element: ElementTree.Element) -> samples.Shape:
    label = (element.findtext('name') or '').strip()
    edges = [element.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    if not label or not all(edges):
      raise DataError('lacks a name or a numeric bounding box')
    corners = outlines.parse_points([edges[:2], edges[2:]])
    # VOC counts pixels from one, so coordinates are shifted.
    mask = outlines.fill_rectangle(corners - 1, height, width)
    return samples.Shape(label, mask, is_box=True)

  entries = [(f'{xml_path.name}: object {n}', e) for n, e in enumerate(root.iter('object'), 1)]
  return samples.read_shapes(read_box, entries)


def _parse_float(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
