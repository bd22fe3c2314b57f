"""Embeddings of training images, so that calibration need not compute them again.

An image that is not tiled counts as one tile.
"""

from collections.abc import Iterable, Sequence
import io
from pathlib import Path
import tempfile
from typing import cast
import weakref

from jaxtyping import Array, Float
import numpy as np

from uadjax.data.tiles import Tile
from uadjax.system import files, logging
from uadjax.types import Batch


class EmbeddingStore:
  """Embeddings of chosen tiles, as many as fit.

  They are in an anonymous file, which is deleted with the store, because those of PaDiM would take
  more memory than all other arrays of a run. Only embeddings that lie in memory in any case are not
  copied. What does not fit on the disk is not stored.
  """

  def __init__(self, tiles: Iterable[Tile], max_bytes: int):
    """Create an empty store for `max_bytes` of embeddings of the tiles `tiles`."""
    self._tiles, self._free_bytes = set(tiles), max_bytes
    self._shape: tuple[int, ...] = ()
    self._views: dict[Tile, Float[np.ndarray, 'h w d']] = {}
    self._offsets: dict[Tile, int] = {}  # Positions in the file.
    self._file: io.FileIO | None = None

  def add(self, tiles: Sequence[Tile], embeddings: Float[Array, 'b h w d']) -> None:
    """Store the embeddings of chosen tiles of a batch, while they fit; wait for the devices.

    Args:
      tiles: tiles of the first rows; the other rows are padding.
      embeddings: embeddings of all rows.
    """
    if self._tiles.intersection(tiles) and embeddings.nbytes // len(embeddings) <= self._free_bytes:
      self._write(tiles, np.asarray(embeddings)[: len(tiles)])

  def add_views(self, tiles: Sequence[Tile], embeddings: Float[np.ndarray, 'n h w d']) -> None:
    """Store the embeddings of chosen tiles that lie in host memory already.

    If all of the array fits, the store holds views of it instead of copies.

    Args:
      tiles: the tiles.
      embeddings: their embeddings.
    """
    if embeddings.nbytes > self._free_bytes:
      self._write(tiles, embeddings)
      return
    self._shape = embeddings.shape[1:]
    self._views |= {t: x for t, x in zip(tiles, embeddings, strict=True) if t in self._tiles}
    self._free_bytes -= embeddings.nbytes

  def _write(self, tiles: Sequence[Tile], embeddings: Float[np.ndarray, 'n h w d']) -> None:
    self._shape = embeddings.shape[1:]
    for tile, embedding in zip(tiles, embeddings, strict=True):
      if tile not in self._tiles or embedding.nbytes > self._free_bytes:
        continue
      try:
        self._append(tile, embedding)
      except OSError as error:
        logging.LOG.info('Further embeddings are not stored: %s.', error.strerror or error)
        self._free_bytes = 0

  def _append(self, tile: Tile, embedding: Float[np.ndarray, 'h w d']) -> None:
    """Append an embedding to the file, which exists from the first one on."""
    num_bytes = embedding.nbytes
    if self._file is None:
      total = min(self._free_bytes, num_bytes * len(self._tiles))
      files.announce_size('temporary embeddings', Path(tempfile.gettempdir()), total)
      # Not buffered, so that a full disk is noticed now.
      self._file = cast(io.FileIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
      weakref.finalize(self, self._file.close)
    offset = self._file.seek(num_bytes * len(self._offsets))
    if self._file.write(np.ascontiguousarray(embedding).data) < num_bytes:
      raise OSError('the disk is full')
    self._offsets[tile] = offset
    self._free_bytes -= num_bytes

  def get(self, tiles: Sequence[Tile], num_padding: int = 0) -> Float[np.ndarray, 'n h w d'] | None:
    """Return the embeddings of tiles; None if one of them is missing, or without tiles.

    Args:
      tiles: the tiles.
      num_padding: number of rows of zeros that follow.
    """
    if not tiles or not all(tile in self._views or tile in self._offsets for tile in tiles):
      return None
    embeddings = np.zeros((len(tiles) + num_padding, *self._shape), np.float32)
    for row, tile in zip(embeddings, tiles, strict=False):
      if tile in self._views:
        row[...] = self._views[tile]
      else:
        self._read(row, self._offsets[tile])
    return embeddings

  def _read(self, row: Float[np.ndarray, 'h w d'], offset: int) -> None:
    assert self._file is not None  # It has an offset.
    self._file.seek(offset)
    self._file.readinto(row.data)

  def add_to_batch(self, batch: Batch, tiles: Sequence[Tile]) -> Batch:
    """Return a batch with the embeddings of its tiles, or unchanged unless all are stored.

    Args:
      batch: batch whose `index` is a position in `tiles`; -1 for padding, which comes last.
      tiles: the tiles.
    """
    chosen = [tiles[i] for i in batch.index if i >= 0]
    features = self.get(chosen, len(batch.index) - len(chosen))
    return batch if features is None else batch._replace(features=features)
