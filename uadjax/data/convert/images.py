"""Search for the images that label files name.

Labels may come from Windows, which ignores case, from macOS, which decomposes accents, from another
folder, or from a server that renamed what was uploaded.
"""

import collections
from collections.abc import Collection
import functools
import os
from pathlib import Path, PureWindowsPath
import re
import unicodedata
import urllib.parse

from uadjax.data import image_io
from uadjax.data.convert.samples import Remark
from uadjax.data.layouts import scanning
from uadjax.errors import DataError

_BY_NAME = 'Images that are not at the path in their labels were found by name'
_IN_MASK_FOLDER = 'Images in folders of masks were ignored'
_MASK = 'Masks and other pictures of labels were ignored'
_MASK_FOLDERS = 'ground_truth', 'mask', 'masks'
_UPLOAD_PREFIX = re.compile('[0-9a-f]{8}-')  # Label Studio puts it before names of uploaded files.


class ImageIndex:
  """Index of the images below a folder, by names that ignore case and Unicode composition.

  Attributes:
    root: the folder.
    paths: files of the images, sorted.
    remarks: images that were found although their path in the labels is wrong.
  """

  def __init__(self, root: Path, ignored_folders: str | None = None):
    """List the images below a folder, but not in folders whose names begin in a certain way."""
    self.root, self.paths = root, sorted(scanning.find_files(root))
    if ignored_folders:
      self.paths = [
        path
        for path in self.paths
        if not any(f.lower().startswith(ignored_folders) for f in path.relative_to(root).parts[:-1])
      ]
    self.remarks: list[Remark] = []
    self._by_ending: dict[str, list[Path]] = collections.defaultdict(list)
    self._by_stem: dict[str, list[Path]] = collections.defaultdict(list)
    for path in self.paths:
      name = normalize(self.relative_to_root(path))
      components = name.split('/')
      for i in range(len(components)):
        self._by_ending['/'.join(components[i:])].append(path)
      for stem in {strip_suffix(name), strip_suffix(_without_prefix(components[-1]))}:
        self._by_stem[stem].append(path)

  def relative_to_root(self, path: Path) -> str:
    """Return the path of an image relative to the root, with '/'."""
    return path.relative_to(self.root).as_posix()

  def find_by_path(self, path: str) -> Path | None:
    """Return the image at a path relative to the root, preferring the exact spelling."""
    exact_path = self.root / path
    num_parts = len(exact_path.parts)
    matches = [match for match in self._ending_with(path) if len(match.parts) == num_parts]
    if exact_path in matches:
      return exact_path
    return matches[0] if len(matches) == 1 else None

  def find_beside(self, label_name: str) -> Path | None:
    """Return the only image in the folder of a label file that has the same stem."""
    folder, stem = (self.root / label_name).parent, strip_suffix(label_name)
    matches = [path for path in self._by_stem.get(normalize(stem), ()) if path.parent == folder]
    return matches[0] if len(matches) == 1 else None

  def find(self, file_name: str, label_name: str) -> Path | None:
    """Find the image that a label file names.

    The first of these that exists is chosen: the path relative to the label file; images whose path
    ends with that path, or with as much of it as possible; images whose name differs in the suffix
    or in Label Studio's prefix. Among several, the one nearest to the label file is chosen.

    Args:
      file_name: path of the image, as a tool of any operating system writes it.
      label_name: path of the label file relative to the root.

    Raises:
      DataError: several images match equally well.
    """
    paths = [to_posix(name) for name in dict.fromkeys((file_name, urllib.parse.unquote(file_name)))]
    folder = Path(label_name).parent
    for path in paths:
      if match := self.find_by_path(os.path.normpath(folder / path)):
        return match
    parts = [re.sub(r'^([a-zA-Z]:)?(/|\.\./)*', '', path).split('/') for path in paths]
    endings = ['/'.join(p[i:]) for p in parts for i in range(len(p))]
    matches = next(filter(None, map(self._ending_with, endings)), [])
    is_at_path = bool(matches) and matches is self._ending_with(endings[0])
    match = self._nearest(matches or self._differing_in_suffix(endings[-1]), file_name, label_name)
    if match and not is_at_path:
      self.remarks.append(Remark(_BY_NAME, f'{label_name}: {self.relative_to_root(match)}'))
    return match

  def without_labels(self, labeled: Collection[Path | bytes]) -> list[Path]:
    """Return the images that no label is about; they count as good unless they are masks."""
    unlabeled = [path for path in self.paths if path not in labeled]
    masks = {path for path in unlabeled if _is_in_mask_folder(path.relative_to(self.root), path)}
    self.remarks += [Remark(_IN_MASK_FOLDER, self.relative_to_root(path)) for path in sorted(masks)]
    pictures = self._masks_by_name[0].intersection(unlabeled) - masks
    self.remarks += [Remark(_MASK, self.relative_to_root(path)) for path in sorted(pictures)]
    return [path for path in unlabeled if path not in masks | pictures]

  def require_no_defect(self, path: Path) -> None:
    """Raise a DataError if a mask beside an image that has no labels marks a defect."""
    mask = self._masks_by_name[1].get(path)
    if mask and image_io.read_mask(mask).any():
      message = f'{self.relative_to_root(path)}: no label marks a defect, but its mask {mask.name}'
      raise DataError(f'{message} marks a defect; label it, or delete the mask if it is good.')

  @functools.cached_property
  def _masks_by_name(self) -> tuple[set[Path], dict[Path, Path]]:
    """The files that are named like the mask of an image beside them, and the mask per image."""
    paths_by_folder: dict[Path, list[Path]] = collections.defaultdict(list)
    for path in self.paths:
      paths_by_folder[path.parent].append(path)
    pictures, by_image = set[Path](), dict[Path, Path]()
    for paths in paths_by_folder.values():
      folder_pictures, folder_by_image = scanning.masks_by_name(paths)
      pictures |= folder_pictures
      by_image |= folder_by_image
    return pictures, by_image

  def _differing_in_suffix(self, name: str) -> list[Path]:
    """Return images whose names differ from this one in the suffix or in Label Studio's prefix."""
    matches = self._by_stem.get(normalize(strip_suffix(_without_prefix(name))), [])
    # Files that were uploaded separately differ, even if they had the same name.
    return [p for p in matches if len({*_prefix(name), *_prefix(p.name)}) < 2]

  def _ending_with(self, path: str) -> list[Path]:
    return self._by_ending.get(normalize(path), [])

  def _nearest(self, matches: list[Path], file_name: str, label_name: str) -> Path | None:
    label_path = self.root / label_name

    def closeness(path: Path) -> tuple[bool, bool, int]:
      # annotations/instances_train2017.json is about train2017/.
      is_named_like_file = label_path.stem.endswith(f'_{path.parent.name}')
      folders = path.parent.relative_to(self.root).parts
      num_shared = len({*folders} & {*Path(label_name).parent.parts})
      return is_named_like_file, label_path.parent in path.parents, num_shared

    if not matches:
      return None
    nearest, *others = sorted(matches, key=closeness, reverse=True)
    if others and closeness(nearest) == closeness(others[0]):
      names = [self.relative_to_root(path) for path in matches[:5]]
      message = f'{label_name}: {file_name!r} is ambiguous: it matches {names}'
      raise DataError(f'{message}; list images with their folders.')
    return nearest


def _is_in_mask_folder(name: Path, path: Path) -> bool:
  folders = [folder.lower() for folder in name.parts[:-1]]
  # labelme_json_to_dataset writes img.png, label.png and label_viz.png to NAME_json/.
  is_export = path.parent.name.endswith('_json') and path.with_name('label.png').exists()
  return is_export or any(f in _MASK_FOLDERS or f.startswith('segmentation') for f in folders)


def to_posix(path: str) -> str:
  """Normalize a path of Windows or any other system: with '/' and without '.' and 'a/..'."""
  return os.path.normpath(PureWindowsPath(path).as_posix())


def strip_suffix(path: str) -> str:
  """Return a path without the suffix of its last component."""
  return path[: len(path) - len(Path(path).suffix)]


def normalize(path: str) -> str:
  """Return a path in the form in which paths are compared."""
  return unicodedata.normalize('NFC', path).casefold()


def _prefix(file_name: str) -> list[str]:
  """Return the prefix that Label Studio gave to an uploaded file, if there is one."""
  match = _UPLOAD_PREFIX.match(file_name)
  return [match[0]] if match else []


def _without_prefix(file_name: str) -> str:
  return file_name[sum(map(len, _prefix(file_name))) :]
