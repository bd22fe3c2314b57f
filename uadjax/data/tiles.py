"""Tiles of scaled images: cutting images, and joining the anomaly maps of their tiles.

Tiles of one size cover an image in rows and columns that overlap. The last row and the last column
are shifted inwards, so that they end with the image.

Letters: h w scaled image, t tiles of an image, c channels.
"""

from collections.abc import Iterable
import itertools
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np


class Tile(NamedTuple):
  """One tile of an image or of an augmented copy of it.

  Attributes:
    path: file of the image, or its name in an `ImageCache`.
    number: position among the tiles of the image.
    copy: 0 for a tile of the image itself, else the number of its augmented copy.
  """

  path: Path
  number: int = 0
  copy: int = 0


class TileGrid(NamedTuple):
  """Tiles of an image, row by row.

  Attributes:
    size: height and width of the image.
    tile_size: height and width of each tile.
    tops: upper edges of the rows of tiles, ascending.
    lefts: left edges of the columns of tiles, ascending.
  """

  size: tuple[int, int]
  tile_size: tuple[int, int]
  tops: tuple[int, ...]
  lefts: tuple[int, ...]

  @classmethod
  def build(cls, h: int, w: int, tile_height: int, tile_width: int, overlap: int) -> 'TileGrid':
    """Cover an h x w image, which is at least as large as a tile, with as few tiles as possible.

    Args:
      h: height of the image.
      w: width of the image.
      tile_height: height of a tile.
      tile_width: width of a tile.
      overlap: least number of pixels that neighboring tiles share along one axis.
    """
    assert tile_height <= h, 'smaller images are enlarged before'
    assert tile_width <= w
    tops = _tile_starts(h, tile_height, overlap)
    lefts = _tile_starts(w, tile_width, overlap)
    return cls((h, w), (tile_height, tile_width), tops, lefts)

  @property
  def num_tiles(self) -> int:
    """Number of tiles."""
    return len(self.tops) * len(self.lefts)

  def cut(self, image: UInt8[np.ndarray, 'h w c']) -> list[UInt8[np.ndarray, '_h _w c']]:
    """Return views of an image, one for each tile."""
    return [image[self.window(i)] for i in range(self.num_tiles)]

  def join(self, maps: Iterable[Float[np.ndarray, '_h _w']]) -> Float[np.ndarray, 'h w']:
    """Join the maps of all tiles; each pixel comes from the tile in which it lies most central.

    Along each axis, this is the tile whose center is nearest.

    Args:
      maps: map of each tile, of which one is in memory at a time.
    """
    if self.num_tiles == 1:
      (single_map,) = maps
      return single_map
    joined = np.empty(self.size, np.float32)
    height, width = self.tile_size
    row_ends = _nearest_ends(self.tops, height, self.size[0])
    column_ends = _nearest_ends(self.lefts, width, self.size[1])
    rows = list(zip(self.tops, itertools.pairwise((0, *row_ends)), strict=True))
    columns = list(zip(self.lefts, itertools.pairwise((0, *column_ends)), strict=True))
    pairs = itertools.product(rows, columns)
    for ((top, (first_y, end_y)), (left, (first_x, end_x))), tile_map in zip(
      pairs, maps, strict=True
    ):
      part = tile_map[first_y - top : end_y - top, first_x - left : end_x - left]
      joined[first_y:end_y, first_x:end_x] = part
    return joined

  def window(self, number: int) -> tuple[slice, slice]:
    """Return the rows and columns of a tile, by its position in the grid."""
    row, column = divmod(number, len(self.lefts))
    (height, width), top, left = self.tile_size, self.tops[row], self.lefts[column]
    return slice(top, top + height), slice(left, left + width)


def _tile_starts(n: int, size: int, overlap: int) -> tuple[int, ...]:
  """Return the first pixels of the tiles along an axis of n pixels."""
  step = size - overlap
  num_tiles = 1 + -(-(n - size) // step)
  return tuple(min(i * step, n - size) for i in range(num_tiles))


def _nearest_ends(starts: tuple[int, ...], size: int, n: int) -> tuple[int, ...]:
  """Return the ends of the pixels of an axis that are nearest to the center of each tile.

  A pixel in the middle between two centers belongs to the first.
  """
  # The middle between two centers is in the middle of the pixels that both tiles share.
  return (*((a + b + size + 1) // 2 for a, b in itertools.pairwise(starts)), n)
