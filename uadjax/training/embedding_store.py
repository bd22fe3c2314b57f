"""Embeddings of training images, so that calibration need not compute them again."""

from collections.abc import Iterable, Sequence
import io
from pathlib import Path
import tempfile
from typing import cast
import weakref

from jaxtyping import Array, Float
import numpy as np

from uadjax.data.records import Record
from uadjax.system import files, logging
from uadjax.types import Batch


class EmbeddingStore:
  """Embeddings of chosen images by the path of their file, as many as fit.

  They are in an anonymous file, which is deleted with the store, because those of PaDiM would take
  more memory than all other arrays of a run. Only embeddings that lie in memory in any case are not
  copied. What does not fit on the disk is not stored.
  """

  def __init__(self, paths: Iterable[Path], max_bytes: int):
    """Create an empty store for `max_bytes` of embeddings of the images `paths`."""
    self._paths, self._free_bytes = set(paths), max_bytes
    self._shape: tuple[int, ...] = ()
    self._views: dict[Path, Float[np.ndarray, 'h w d']] = {}
    self._offsets: dict[Path, int] = {}  # Positions in the file.
    self._file: io.FileIO | None = None
    self._pending: tuple[Sequence[Path], Float[Array, 'b h w d']] | None = None

  def add(self, paths: Sequence[Path], embeddings: Float[Array, 'b h w d']) -> None:
    """Store the embeddings of chosen images of a batch, while they fit.

    They are copied to the host when the next batch is added, because now the devices may still be
    computing them.

    Args:
      paths: files of the first rows; the other rows are padding.
      embeddings: embeddings of all rows.
    """
    self.finish()
    if self._paths.intersection(paths) and embeddings.nbytes // len(embeddings) <= self._free_bytes:
      self._pending = paths, embeddings

  def finish(self) -> None:
    """Store the embeddings of the last batch; call it after the last `add`."""
    if self._pending is None:
      return
    paths, embeddings = self._pending
    self._pending = None
    self._write(paths, np.asarray(embeddings)[: len(paths)])

  def add_views(self, paths: Sequence[Path], embeddings: Float[np.ndarray, 'n h w d']) -> None:
    """Store the embeddings of chosen images that lie in host memory already.

    If all of the array fits, the store holds views of it instead of copies.

    Args:
      paths: files of the images.
      embeddings: their embeddings.
    """
    if embeddings.nbytes > self._free_bytes:
      self._write(paths, embeddings)
      return
    self._shape = embeddings.shape[1:]
    self._views |= {p: x for p, x in zip(paths, embeddings, strict=True) if p in self._paths}
    self._free_bytes -= embeddings.nbytes

  def _write(self, paths: Sequence[Path], embeddings: Float[np.ndarray, 'n h w d']) -> None:
    self._shape = embeddings.shape[1:]
    for path, embedding in zip(paths, embeddings, strict=True):
      if path not in self._paths or embedding.nbytes > self._free_bytes:
        continue
      try:
        self._append(path, embedding)
      except OSError as error:
        logging.LOG.info('Further embeddings are not stored: %s.', error.strerror or error)
        self._free_bytes = 0

  def _append(self, path: Path, embedding: Float[np.ndarray, 'h w d']) -> None:
    """Append an embedding to the file, which exists from the first one on."""
    num_bytes = embedding.nbytes
    if self._file is None:
      total = min(self._free_bytes, num_bytes * len(self._paths))
      files.announce_size('temporary embeddings', Path(tempfile.gettempdir()), total)
      # Not buffered, so that a full disk is noticed now.
      self._file = cast(io.FileIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
      weakref.finalize(self, self._file.close)
    offset = self._file.seek(num_bytes * len(self._offsets))
    if self._file.write(np.ascontiguousarray(embedding).data) < num_bytes:
      raise OSError('the disk is full')
    self._offsets[path] = offset
    self._free_bytes -= num_bytes

  def get(
    self, records: Sequence[Record], num_padding: int = 0
  ) -> Float[np.ndarray, 'n h w d'] | None:
    """Return the embeddings of images; None if one of them is missing, or without images.

    Args:
      records: the images.
      num_padding: number of rows of zeros that follow.
    """
    paths = [record.path for record in records]
    if not paths or not all(path in self._views or path in self._offsets for path in paths):
      return None
    embeddings = np.zeros((len(paths) + num_padding, *self._shape), np.float32)
    for row, path in zip(embeddings, paths, strict=False):
      if path in self._views:
        row[...] = self._views[path]
      else:
        self._read(row, self._offsets[path])
    return embeddings

  def _read(self, row: Float[np.ndarray, 'h w d'], offset: int) -> None:
    assert self._file is not None  # It has an offset.
    self._file.seek(offset)
    self._file.readinto(row.data)

  def add_to_batch(self, batch: Batch, records: Sequence[Record]) -> Batch:
    """Return a batch with the embeddings of its images, or unchanged unless all are stored.

    Args:
      batch: batch whose `index` is a position in `records`; -1 for padding, which comes last.
      records: the images.
    """
    chosen = [records[i] for i in batch.index if i >= 0]
    features = self.get(chosen, len(batch.index) - len(chosen))
    return batch if features is None else batch._replace(features=features)
