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
    """Join the maps of all tiles, without jumps where one tile changes to the next.

    Where tiles overlap, a pixel is the mean of their values, weighted along each axis by the
    distance of the pixel to the edge of the tile. So the tile in which it lies most central counts
    most. Near its edges a tile sees less of the image, and its values differ from its neighbor's.

    Args:
      maps: map of each tile, of which one is in memory at a time.
    """
    if self.num_tiles == 1:
      (single_map,) = maps
      return single_map
    joined = np.zeros(self.size, np.float32)
    row_weights = _tile_weights(self.tops, self.tile_size[0], self.size[0])
    column_weights = _tile_weights(self.lefts, self.tile_size[1], self.size[1])
    pairs = itertools.product(row_weights, column_weights)
    for number, ((rows, columns), tile_map) in enumerate(zip(pairs, maps, strict=True)):
      joined[self.window(number)] += rows[:, None] * columns * tile_map
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


def _tile_weights(starts: tuple[int, ...], size: int, n: int) -> list[Float[np.ndarray, ' _size']]:
  """Return the weights of the pixels of each tile along an axis of n pixels.

  They are proportional to the distance to the nearer edge of the tile. Edges that are those of the
  image do not count, as no other tile sees more there. For each pixel of the axis, the weights of
  all tiles sum to 1.
  """
  pixels, total, distances = np.arange(size) + 0.5, np.zeros(n), []
  for start in starts:
    to_start = pixels if start else np.full(size, np.inf)
    to_end = size - pixels if start + size < n else np.full(size, np.inf)
    distances.append(np.minimum(np.minimum(to_start, to_end), size))
    total[start : start + size] += distances[-1]
  return [
    (distance / total[start : start + size]).astype(np.float32)
    for start, distance in zip(starts, distances, strict=True)
  ]
