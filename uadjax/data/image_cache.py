"""Scaled images in memory, so that a run decodes each file once if all of them fit."""

from collections.abc import Iterable
import contextlib
import itertools
from pathlib import Path
import threading
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax.data import (
  augment,
  image_io,
  inputs,
  near_duplicates,
  region_of_interest,
  transforms,
)
from uadjax.data.image_io import DecodedImage
from uadjax.data.image_statistics import ImageStatistics
from uadjax.data.inputs import LoadedImage
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.data.tiles import Tile, TileGrid


class ImageProperties(NamedTuple):
  """Properties of a scaled image; see `image_statistics` and `near_duplicates`."""

  statistics: ImageStatistics
  fingerprint: Float[np.ndarray, ' k']
  size: tuple[int, int]


# Bytes of pixels for a job that needs each image once or twice, such as an evaluation.
SMALL_CACHE_BYTES = 1 << 28
# The threads of a pipeline are mostly at the tiles of one image, or of two.
_MAX_RECENT = 2


class ImageCache:
  """Scaled images by the path of their file, as many as fit.

  Other images are decoded whenever they are loaded; of those that are tiled, the last few stay in
  memory, since their tiles are mostly loaded one after another. The properties of all images are
  kept. Several threads may use a cache at the same time.

  Attributes:
    ops: operations from an original to its scaled image and tiles.
    pixel_range: values of black and white in images of more than 8 bits.
    augmentation: ops that make augmented copies of the images.
    images: the images in memory.
  """

  def __init__(
    self,
    ops: transforms.Ops,
    max_bytes: int,
    pixel_range: PixelRange = FULL_RANGE,
    augmentation: augment.Augmentation = augment.NONE,
  ):
    """Create an empty cache for `max_bytes` of pixels."""
    self.ops, self.pixel_range, self.augmentation = ops, pixel_range, augmentation
    self.images: dict[Path, LoadedImage] = {}
    self._properties: dict[Path, ImageProperties] = {}
    self._free_bytes = max_bytes
    # By path and number of the copy; those that were used last are at the end.
    self._recent: dict[tuple[Path, int], UInt8[np.ndarray, 'h w 3']] = {}
    # Threads that ask for tiles of one image wait for the first to decode it.
    self._decoding = threading.RLock() if ops.is_tiled else contextlib.nullcontext()

  def add(self, path: Path, image: DecodedImage) -> None:
    """Add the image of a file that has been decoded to its original size."""
    source = inputs.Source(str(path), path)
    self._add(path, inputs.resize(source, source, image, self.ops))

  def load(self, path: Path) -> UInt8[np.ndarray, 'height width 3']:
    """Return a scaled image, from memory or from its file.

    Raises:
      DataError: the image cannot be read.
    """
    if loaded_image := self.images.get(path):
      return loaded_image.require_pixels()
    with self._decoding:
      if (pixels := self._recall(path, 0)) is not None:
        return pixels
      source = inputs.Source(str(path), path)
      loaded_image = inputs.load(source, self.ops, pixel_range=self.pixel_range)
      pixels = loaded_image.require_pixels()
      self._add(path, loaded_image)
      self._remember(path, 0, pixels)
    return pixels

  def load_tile(self, tile: Tile) -> UInt8[np.ndarray, 'h w 3']:
    """Return one tile of an image.

    Raises:
      DataError: the image cannot be read.
    """
    image = self._load_copy(tile.path, tile.copy) if tile.copy else self.load(tile.path)
    return image[self.ops.tile_grid(image.shape[:2]).window(tile.number)]

  def tile_grid(self, path: Path) -> TileGrid:
    """Return the tiles of an image, of which at most the header is read.

    Raises:
      DataError: the header cannot be read.
    """
    if not self.ops.is_tiled:
      return self.ops.tile_grid((self.ops.height, self.ops.width))
    if path in self._properties:
      return self.ops.tile_grid(self._properties[path].size)
    if loaded_image := self.images.get(path):
      return self.ops.tile_grid(loaded_image.require_pixels().shape[:2])
    return self.ops.tile_grid(self.ops.scaled_size(*image_io.image_size(path)))

  def list_tiles(self, paths: Iterable[Path], with_copies: bool = False) -> list[Tile]:
    """Return the tiles of images in order.

    Args:
      paths: the images.
      with_copies: whether the tiles of the augmented copies of an image follow its own.

    Raises:
      DataError: the header of an image cannot be read.
    """
    copies = range(1 + self.augmentation.num_copies if with_copies else 1)
    return [
      Tile(path, number, copy)
      for path in paths
      for copy, number in itertools.product(copies, range(self.tile_grid(path).num_tiles))
    ]

  def num_tiles_to_learn(self, path: Path) -> int:
    """Return the number of tiles of an image and of its augmented copies.

    Raises:
      DataError: the header cannot be read.
    """
    return (1 + self.augmentation.num_copies) * self.tile_grid(path).num_tiles

  def inspected_pixels(self, path: Path) -> Bool[np.ndarray, 'height width'] | None:
    """Return which pixels of a scaled image that is tiled are inspected; None for all.

    Raises:
      DataError: the header cannot be read.
    """
    if not self.ops.has_blanks:
      return None
    if loaded_image := self.images.get(path):
      return ~region_of_interest.find_outside(loaded_image.require_pixels())
    return self.ops.inspected_pixels(*image_io.image_size(path))

  def inspected_share(self, path: Path) -> float:
    """Return the share of the pixels of all tiles of an image that is inspected.

    Raises:
      DataError: the header cannot be read.
    """
    inspected = self.inspected_pixels(path)
    if inspected is None:
      return 1.0
    grid = self.tile_grid(path)
    shares = [inspected[grid.window(i)].mean() for i in range(grid.num_tiles)]
    return float(np.mean(shares))

  def properties(self, path: Path) -> ImageProperties:
    """Return the properties of an image; read its file unless that was done before.

    Raises:
      DataError: the image cannot be read.
    """
    if path not in self._properties:
      self.load(path)
    return self._properties[path]

  def pin(self, path: Path, pixels: UInt8[np.ndarray, 'height width 3']) -> None:
    """Add a scaled image that has no file, under a name that is unique.

    It stays in memory whatever the limit, and has no properties.
    """
    source = inputs.Source(str(path), pixels)
    self.images[path] = LoadedImage(source, source, pixels.shape[:2], pixels)

  def _load_copy(self, path: Path, number: int) -> UInt8[np.ndarray, 'height width 3']:
    """Return an augmented copy of an image, whose tiles are mostly loaded one after another."""
    with self._decoding:
      pixels = self._recall(path, number)
      if pixels is None:
        pixels = self.augmentation.make_copy(self.load(path), number)
        self._remember(path, number, pixels)
    return pixels

  def _recall(self, path: Path, copy: int) -> UInt8[np.ndarray, 'height width 3'] | None:
    pixels = self._recent.pop((path, copy), None)
    if pixels is not None:
      self._recent[path, copy] = pixels
    return pixels

  def _remember(self, path: Path, copy: int, pixels: UInt8[np.ndarray, 'height width 3']) -> None:
    if self.ops.is_tiled:
      self._recent[path, copy] = pixels
      # The image that copies are made of is another one.
      if len(self._recent) > _MAX_RECENT + (self.augmentation.num_copies > 0):
        del self._recent[next(iter(self._recent))]

  def _add(self, path: Path, loaded_image: LoadedImage) -> None:
    pixels = loaded_image.require_pixels()
    if path not in self._properties:
      fingerprint, size = near_duplicates.fingerprint(pixels), (pixels.shape[0], pixels.shape[1])
      self._properties[path] = ImageProperties(loaded_image.require_statistics(), fingerprint, size)
    # The image comes last: `properties` assumes that a file in memory has its properties.
    if pixels.nbytes <= self._free_bytes:
      self.images[path] = loaded_image
      self._free_bytes -= pixels.nbytes
