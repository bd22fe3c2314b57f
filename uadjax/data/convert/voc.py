"""Pascal VOC: masks whose values are classes, else XML files with bounding boxes.

Folders are JPEGImages, SegmentationClass (labelme's older export: SegmentationClassPNG),
Annotations and ImageSets. A mask wins over a bounding box; boxes are filled. Images that lists of
ImageSets leave out are passed over; where there are no lists, an image without labels is good.
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
from uadjax.system.progress import Track

_VOID = 255  # Neither defect nor background, in a mask of class numbers...
_VOID_COLOR = (224, 224, 192)  # ... and in one of colors.
_NO_CLASS = ('background', '_background_', '__ignore__', 'ignored', 'void')


class _Files(NamedTuple):
  """What is known of a source.

  Attributes:
    images: those that labels may name.
    masks: by path without suffix.
    boxes: likewise.
    names: of classes, by number in masks.
    colors: names of classes by color, where masks are colored; else empty.
    held_out: images that lists keep from training, by path without suffix.
    listed: whether there are lists.
  """

  images: samples.Gallery
  masks: Mapping[str, Path]
  boxes: Mapping[str, Path]
  names: Mapping[int, str]
  colors: Mapping[tuple[int, ...], str]
  held_out: frozenset[str]
  listed: bool


def read(source: Path, track: Track) -> samples.Found:
  """Read the images of a VOC folder, or of the only one in a folder such as VOCdevkit."""
  root = _root(source)
  folder = root / 'JPEGImages' if (root / 'JPEGImages').is_dir() else root
  train, held_out = _lists(root)
  images = samples.gallery(folder)
  annotations = root / 'Annotations' if (root / 'Annotations').is_dir() else folder
  masks = [root / name for name in ('SegmentationClassPNG', 'SegmentationClass')]
  files = _Files(
    images,
    {k: v for folder in masks for k, v in _by_stem(folder, '.png').items()},
    _by_stem(annotations, '.xml'),
    _names(root / 'class_names.txt'),
    _colors(root / 'labelmap.txt'),
    held_out,
    bool(train or held_out),
  )
  if not files.masks and not files.boxes:
    # Else whatever is defective would be learned from.
    told = f'No VOC annotations in {root}: neither Annotations/*.xml nor SegmentationClass/*.png'
    return samples.Found([], [f'{told}; name the tool that made its labels, or their folder.'])
  labeled = files.masks.keys() | files.boxes.keys()
  drawn = set(files.masks.values())
  pictures = [path for path in images if path not in drawn]
  every = {samples.without_suffix(images.relative(path)) for path in pictures}
  # A label whose image is missing may be that of a defect under another name.
  wanted = sorted(train | held_out if files.listed else every | labeled)
  jobs = [functools.partial(_sample, stem, files) for stem in wanted]
  found, problems = samples.collect(jobs, track, 'Reading labels')
  left = len(every - train - held_out) if files.listed else 0
  notes = [f'{left} images that no list of ImageSets names were passed over.'] if left else []
  if bare := len(set(wanted) - labeled):
    notes.append(f'{bare} images without an XML file or a mask were taken for good.')
  return samples.Found(found, problems, notes)


def _root(source: Path) -> Path:
  known = ('JPEGImages', 'Annotations', 'SegmentationClass')
  inner = [p for p in sorted(source.glob('*')) if any((p / name).is_dir() for name in known)]
  return inner[0] if len(inner) == 1 else source


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
  found = samples.below(folder, suffix) if folder.is_dir() else []
  return {samples.without_suffix(path.relative_to(folder).as_posix()): path for path in found}


def _lists(root: Path) -> tuple[frozenset[str], frozenset[str]]:
  """Names of images to learn from and of those held out, of segmentation or else of detection."""
  for task in ('Segmentation', 'Main'):
    folder = root / 'ImageSets' / task
    sets = {
      name: map(samples.posix, _lines(folder / f'{name}.txt'))
      for name in ('train', 'trainval', 'default', 'val', 'test')
    }
    held_out = {*sets['val'], *sets['test']}
    train = {*sets['train'], *sets['trainval'], *sets['default']}
    if train or held_out:
      return frozenset(train - held_out), frozenset(held_out)
  return frozenset(), frozenset()


def _lines(path: Path) -> list[str]:
  if not path.is_file():
    return []
  lines = path.read_text('utf-8-sig', errors='replace').splitlines()
  return [line.strip() for line in lines if line.strip()]


def _names(path: Path) -> dict[int, str]:
  """Read labelme's class_names.txt: the number of a line is the value in masks."""
  return dict(enumerate(_lines(path)))


def _colors(path: Path) -> dict[tuple[int, ...], str]:
  """Read CVAT's labelmap.txt: `name:red,green,blue:parts:actions`."""
  colors: dict[tuple[int, ...], str] = {}
  for line in _lines(path):
    name, color, *_ = (*line.split(':'), '')
    parts = color.split(',')
    if len(parts) == 3 and all(part.strip().isdecimal() for part in parts):
      colors[tuple(map(int, parts))] = name
  return colors


def _sample(stem: str, files: _Files) -> samples.Sample:
  found = files.images.stem(stem)
  if len(found) != 1:
    many = ', '.join(path.name for path in found)
    raise DataError(
      f'{stem}: {f"{many} share its labels; rename all but one" if found else "no such image"}.'
    )
  image, name = found[0], files.images.relative(found[0])
  held_out = stem in files.held_out
  if stem in files.masks:
    return samples.drawn(name, image, _classes(name, image, files.masks[stem], files), held_out)
  if stem in files.boxes:
    return samples.drawn(name, image, _boxes(name, image, files.boxes[stem]), held_out)
  if files.masks and files.listed:
    raise DataError(f'{name}: listed, but without a mask; one without defects is black all over.')
  return samples.good(name, image, held_out)


def _classes(name: str, image: Path, path: Path, files: _Files) -> list[samples.Shape]:
  values = _values(path, colored=bool(files.colors))
  samples.fits(image, f'{name}: its mask', *values.shape[:2])
  if values.ndim == 2:
    named = {int(v): files.names.get(int(v), f'class_{v}') for v in np.unique(values)}
    return [
      samples.Shape(label, values == value)
      for value, label in named.items()
      if value not in (0, _VOID) and label not in _NO_CLASS
    ]
  shapes = []
  for color in map(tuple, np.unique(values.reshape(-1, 3), axis=0).tolist()):
    label = files.colors.get(color, 'void' if color in ((0, 0, 0), _VOID_COLOR) else None)
    if label is None and files.colors:
      raise DataError(f'{name}: labelmap.txt does not name the color {color} of its mask.')
    if label not in _NO_CLASS:
      shapes.append(samples.Shape(label or 'defect', (values == color).all(-1)))
  return shapes


def _values(path: Path, colored: bool) -> Int[np.ndarray, 'h w'] | Int[np.ndarray, 'h w 3']:
  """The raw mask: numbers of classes, or colors."""
  image_io.check(path)
  with Image.open(path, formats=['PNG']) as mask:
    numbered = mask.mode in ('P', 'L') and not colored
    values = np.asarray(mask if numbered else mask.convert('RGB')).astype(np.int32)
    if mask.mode == 'L' and numbered and set(np.unique(values)) <= {0, _VOID} and values.any():
      raise DataError(
        f'{path.name}: a mask of 0 and 255 alone, and in VOC 255 is void; write defects as 1.'
      )
  return values


def _boxes(name: str, image: Path, path: Path) -> list[samples.Shape]:
  try:
    tree = ElementTree.parse(path).getroot()
  except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
    raise DataError(f'{path.name}: no XML: {error}.') from None
  sizes = [_number(tree.findtext(f'size/{key}')) for key in ('height', 'width')]
  height, width = samples.fits(image, name, *sizes)
  shapes: list[samples.Shape] = []
  problems: list[str] = []
  for number, thing in enumerate(tree.iter('object'), 1):
    label = (thing.findtext('name') or '').strip()
    edges = [_number(thing.findtext(f'bndbox/{key}')) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    if not label or None in edges:
      problems.append(f'{path.name}: object {number} has no name or no bounding box of numbers.')
      continue
    corners = outlines.points(np.reshape(np.array(edges, float), (2, 2)).tolist())
    # VOC counts pixels from one.
    shapes.append(samples.Shape(label, outlines.rectangle(corners - 1, height, width), box=True))
  if problems:
    raise DataError('\n'.join(problems))
  return shapes


def _number(text: str | None) -> float | None:
  try:
    return float(text or '')
  except ValueError:
    return None
