"""Images at network size in memory, so that a run decodes each file once if all of them fit."""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np

from uadjax.data import inputs, near_duplicates, transforms
from uadjax.data.image_statistics import ImageStatistics
from uadjax.data.inputs import LoadedImage


class ImageProperties(NamedTuple):
  """Properties of an image at network size; see `image_statistics` and `near_duplicates`."""

  statistics: ImageStatistics
  fingerprint: Float[np.ndarray, ' k']


# Bytes of pixels for a job that needs each image once or twice, such as an evaluation.
SMALL_CACHE_BYTES = 1 << 28


class ImageCache:
  """Images at network size by the path of their file, as many as fit.

  Other images are decoded whenever they are loaded. The properties of all images are kept. Several
  threads may use a cache at the same time.

  Attributes:
    ops: operations that bring an image to network size.
    images: the images in memory.
  """

  def __init__(self, ops: transforms.Ops, max_bytes: int):
    """Create an empty cache for `max_bytes` of pixels."""
    self.ops = ops
    self.images: dict[Path, LoadedImage] = {}
    self._properties: dict[Path, ImageProperties] = {}
    self._max_images = max_bytes // (3 * ops.height * ops.width)

  def add(self, path: Path, image: UInt8[np.ndarray, 'h w 3']) -> None:
    """Add the image of a file that has been decoded to its original size."""
    loaded_image = inputs.load(inputs.Source(str(path), image), self.ops)
    source = inputs.Source(str(path), path)
    self._add(path, loaded_image._replace(source=source, reread_source=source))

  def load(self, path: Path) -> UInt8[np.ndarray, 'height width 3']:
    """Return an image at network size, from memory or from its file.

    Raises:
      DataError: the image cannot be read.
    """
    loaded_image = self.images.get(path)
    if loaded_image is None:
      loaded_image = inputs.load(inputs.Source(str(path), path), self.ops)
      loaded_image.require_pixels()
      self._add(path, loaded_image)
    return loaded_image.require_pixels()

  def properties(self, path: Path) -> ImageProperties:
    """Return the properties of an image; read its file unless that was done before.

    Raises:
      DataError: the image cannot be read.
    """
    if path not in self._properties:
      self.load(path)
    return self._properties[path]

  def pin(self, path: Path, pixels: UInt8[np.ndarray, 'height width 3']) -> None:
    """Add an image at network size that has no file, under a name that is unique.

    It stays in memory whatever the limit, and has no properties.
    """
    source = inputs.Source(str(path), pixels)
    self.images[path] = LoadedImage(source, source, pixels.shape[:2], pixels)

  def _add(self, path: Path, loaded_image: LoadedImage) -> None:
    if path not in self._properties:
      fingerprint = near_duplicates.fingerprint(loaded_image.require_pixels())
      self._properties[path] = ImageProperties(loaded_image.require_statistics(), fingerprint)
    # The image comes last: `properties` assumes that a file in memory has its properties.
    if len(self.images) < self._max_images:
      self.images[path] = loaded_image
