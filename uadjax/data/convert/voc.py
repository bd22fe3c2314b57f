"""Reader of Pascal VOC: masks whose values are classes, or XML files with bounding boxes.

Folders are JPEGImages, SegmentationClass (labelme's older export: SegmentationClassPNG),
Annotations and ImageSets. A mask takes precedence over bounding boxes; boxes are filled. Images
that the lists in ImageSets do not name are ignored; without lists, an image without labels is good.
"""

from collections.abc import Mapping
import functools
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from jaxtyping import Int
import numpy as np
from PIL import Image

from uadjax.data import image_io
from uadjax.data.convert import outlines, samples
from uadjax.errors import DataError
from uadjax.system.progress import Progress

# Pixels that are neither defect nor background, in a mask of class numbers and in one of colors.
_VOID_CLASS = 255
_VOID_COLOR = (224, 224, 192)
_NON_DEFECT_LABELS = ('background', '_background_', '__ignore__', 'ignored', 'void')


class _VocFiles(NamedTuple):
  """Files and class names of a VOC folder; a stem is a path without suffix.

  Attributes:
    images: images that labels may name.
    mask_paths: files of masks, by stem.
    xml_paths: files with bounding boxes, by stem.
    class_names: names of classes, by their value in masks.
    names_by_color: names of classes, by their color in colored masks; else empty.
    held_out: stems of the images that lists exclude from training.
    has_image_sets: whether there are lists.
  """

  images: samples.ImageIndex
  mask_paths: Mapping[str, Path]
  xml_paths: Mapping[str, Path]
  class_names: Mapping[int, str]
  names_by_color: Mapping[tuple[int, ...], str]
  held_out: frozenset[str]
  has_image_sets: bool


def read(source: Path, progress: Progress) -> samples.SourceContents:
  """Read the images and masks of a VOC folder, or of the only one in a folder like VOCdevkit."""
  root = _find_root(source)
  folder = root / 'JPEGImages' if (root / 'JPEGImages').is_dir() else root
  train, held_out = _read_image_sets(root)
  images = samples.index_images(folder)
  annotations = root / 'Annotations' if (root / 'Annotations').is_dir() else folder
  mask_folders = [root / name for name in ('SegmentationClassPNG', 'SegmentationClass')]
  files = _VocFiles(
    images,
    {
      stem: path for folder in mask_folders for stem, path in _files_by_stem(folder, '.png').items()
    },
    _files_by_stem(annotations, '.xml'),
    _read_class_names(root / 'class_names.txt'),
    _read_color_names(root / 'labelmap.txt'),
    held_out,
    bool(train or held_out),
  )
  if not files.mask_paths and not files.xml_paths:
    # Without this error, defective images would become training images.
    message = f'No VOC annotations in {root}: neither Annotations/*.xml nor SegmentationClass/*.png'
    return samples.SourceContents(
      [], [f'{message}; name the format of the labels, or the folder that contains them.']
    )
  labeled_stems = files.mask_paths.keys() | files.xml_paths.keys()
  mask_paths = set(files.mask_paths.values())
  image_paths = [path for path in images if path not in mask_paths]
  image_stems = {samples.strip_suffix(images.relative_to_root(path)) for path in image_paths}
  # Labels without an image must be reported: the image of a defect may have another name.
  sample_stems = sorted(train | held_out if files.has_image_sets else image_stems | labeled_stems)
  jobs = [functools.partial(_read_sample, stem, files) for stem in sample_stems]
  listed_samples, problems = samples.collect_samples(jobs, progress, 'Reading labels')
  num_unlisted = len(image_stems - train - held_out) if files.has_image_sets else 0
  notes = (
    [f'{num_unlisted} images that no list in ImageSets names were ignored.'] if num_unlisted else []
  )
  if num_unlabeled := len(set(sample_stems) - labeled_stems):
    notes.append(f'{num_unlabeled} images without an XML file or a mask count as good.')
  return samples.SourceContents(listed_samples, problems, notes)


def _find_root(source: Path) -> Path:
  folder_names = ('JPEGImages', 'Annotations', 'SegmentationClass')
  nested_roots = [
    folder
    for folder in sorted(source.glob('*'))
    if any((folder / name).is_dir() for name in folder_names)
  ]
  return nested_roots[0] if len(nested_roots) == 1 else source


def _files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
  paths = samples.find_files(folder, suffix) if folder.is_dir() else []
  return {samples.strip_suffix(path.relative_to(folder).as_posix()): path for path in paths}


def _read_image_sets(root: Path) -> tuple[frozenset[str], frozenset[str]]:
  """Return the stems of training and of held-out images, for segmentation or else detection."""
  for task in ('Segmentation', 'Main'):
    folder = root / 'ImageSets' / task
    stems_by_set = {
      name: map(samples.to_posix, _read_lines(folder / f'{name}.txt'))
      for name in ('train', 'trainval', 'default', 'val', 'test')
    }
    held_out = {*stems_by_set['val'], *stems_by_set['test']}
    train = {*stems_by_set['train'], *stems_by_set['trainval'], *stems_by_set['default']}
    if train or held_out:
      return frozenset(train - held_out), frozenset(held_out)
  return frozenset(), frozenset()


def _read_lines(path: Path) -> list[str]:
  if not path.is_file():
    return []
  lines = path.read_text('utf-8-sig', errors='replace').splitlines()
  return [line.strip() for line in lines if line.strip()]


def _read_class_names(path: Path) -> dict[int, str]:
  """Read labelme's class_names.txt, where the index of a line is the class value in masks."""
  return dict(enumerate(_read_lines(path)))


def _read_color_names(path: Path) -> dict[tuple[int, ...], str]:
  """Read CVAT's labelmap.txt, whose lines are `name:red,green,blue:parts:actions`."""
  names_by_color: dict[tuple[int, ...], str] = {}
  for line in _read_lines(path):
    name, color, *_ = (*line.split(':'), '')
    channels = color.split(',')
    if len(channels) == 3 and all(channel.strip().isdecimal() for channel in channels):
      names_by_color[tuple(map(int, channels))] = name
  return names_by_color


def _read_sample(stem: str, files: _VocFiles) -> samples.Sample:
  matches = files.images.find_by_stem(stem)
  if not matches:
    raise DataError(f'{stem}: no such image.')
  if len(matches) > 1:
    file_names = ', '.join(path.name for path in matches)
    raise DataError(f'{stem}: {file_names} share its labels; rename all but one.')
  image, name = matches[0], files.images.relative_to_root(matches[0])
  held_out = stem in files.held_out
  if stem in files.mask_paths:
    return samples.sample_from_shapes(
      name, image, _read_mask_shapes(name, image, files.mask_paths[stem], files), held_out
    )
  if stem in files.xml_paths:
    return samples.sample_from_shapes(
      name, image, _read_box_shapes(name, image, files.xml_paths[stem]), held_out
    )
  if files.mask_paths and files.has_image_sets:
    raise DataError(f'{name}: listed, but without a mask; add one, all black if it is good.')
  return samples.good_sample(name, image, held_out)


def _read_mask_shapes(
  name: str, image: Path, mask_path: Path, files: _VocFiles
) -> list[samples.Shape]:
  values = _read_mask(mask_path, is_colored=bool(files.names_by_color))
  samples.require_matching_size(image, f'{name}: its mask', *values.shape[:2])
  if values.ndim == 2:
    labels_by_value = {
      int(v): files.class_names.get(int(v), f'class_{v}') for v in np.unique(values)
    }
    return [
      samples.Shape(label, values == value)
      for value, label in labels_by_value.items()
      if value not in (0, _VOID_CLASS) and label not in _NON_DEFECT_LABELS
    ]
  shapes = []
  for color in map(tuple, np.unique(values.reshape(-1, 3), axis=0).tolist()):
    label = files.names_by_color.get(color, 'void' if color in ((0, 0, 0), _VOID_COLOR) else None)
    if label is None and files.names_by_color:
      raise DataError(f'{name}: labelmap.txt does not name the color {color} of its mask.')
    if label not in _NON_DEFECT_LABELS:
      shapes.append(samples.Shape(label or 'defect', (values == color).all(-1)))
  return shapes


def _read_mask(path: Path, is_colored: bool) -> Int[np.ndarray, 'h w'] | Int[np.ndarray, 'h w 3']:
  """Read the raw values of a mask: class numbers, or colors.

  Raises:
    DataError: the mask cannot be read, or has only the values 0 and 255 (void).
  """
  image_io.verify(path)
  with Image.open(path, formats=['PNG']) as mask:
    has_class_numbers = mask.mode in ('P', 'L') and not is_colored
    values = np.asarray(mask if has_class_numbers else mask.convert('RGB')).astype(np.int32)
    if (
      mask.mode == 'L'
      and has_class_numbers
      and set(np.unique(values)) <= {0, _VOID_CLASS}
      and values.any()
    ):
      raise DataError(
        f'{path.name}: the mask has only the values 0 and 255, but 255 means void in VOC; write '
        'defects as 1.'
      )
  return values


def _read_box_shapes(name: str, image: Path, xml_path: Path) -> list[samples.Shape]:
  try:
    root = ElementTree.parse(xml_path).getroot()
  except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
    raise DataError(f'{xml_path.name}: not XML: {error}.') from None
  sizes = [_parse_float(root.findtext(f'size/{key}')) for key in ('height', 'width')]
  height, width = samples.require_matching_size(image, name, *sizes)
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for object_number, element in enumerate(root.iter('object'), 1):
    label = (element.findtext('name') or '').strip()
    edges = [
      _parse_float(element.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')
    ]
    if not label or None in edges:
      problems.append(
        f'{xml_path.name}: object {object_number} lacks a name or a numeric bounding box.'
      )
      continue
    corners = outlines.parse_points(np.reshape(np.array(edges, float), (2, 2)).tolist())
    # VOC counts pixels from one, so coordinates are shifted.
    shapes.append(
      samples.Shape(label, outlines.fill_rectangle(corners - 1, height, width), is_box=True)
    )
  if problems:
    raise DataError('\n'.join(problems))
  return shapes


def _parse_float(text: str | None) -> float | None:
  try:
    return float(text or '')
  except ValueError:
    return None
