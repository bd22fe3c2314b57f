"""Embeddings of training images in host memory, so that calibration need not compute them again."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxtyping import Array, Float
import numpy as np

from uadjax.data.records import Record
from uadjax.types import Batch


class EmbeddingStore:
  """Embeddings of chosen images by the path of their file, as many as fit."""

  def __init__(self, paths: Iterable[Path], max_bytes: int):
    """Create an empty store for `max_bytes` of embeddings of the images `paths`."""
    self._paths, self._free_bytes = set(paths), max_bytes
    self._embeddings: dict[Path, Float[np.ndarray, 'h w d']] = {}
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
    """Copy the embeddings of the last batch; call it after the last `add`."""
    if self._pending is None:
      return
    paths, embeddings = self._pending
    self._pending = None
    for path, embedding in zip(paths, np.asarray(embeddings), strict=False):
      if path in self._paths and embedding.nbytes <= self._free_bytes:
        self._embeddings[path] = embedding.copy()
        self._free_bytes -= embedding.nbytes

  def add_views(self, paths: Sequence[Path], embeddings: Float[np.ndarray, 'n h w d']) -> None:
    """Store the embeddings of chosen images that lie in host memory already.

    If all of the array fits, the store holds views of it instead of copies.

    Args:
      paths: files of the images.
      embeddings: their embeddings.
    """
    is_copied = embeddings.nbytes > self._free_bytes
    for path, embedding in zip(paths, embeddings, strict=True):
      if path in self._paths and embedding.nbytes <= self._free_bytes:
        self._embeddings[path] = embedding.copy() if is_copied else embedding
        self._free_bytes -= embedding.nbytes

  def get(self, records: Sequence[Record]) -> Float[np.ndarray, 'n h w d'] | None:
    """Return the embeddings of images; None if one of them is missing, or without images."""
    embeddings = [self._embeddings.get(record.path) for record in records]
    if not embeddings or any(embedding is None for embedding in embeddings):
      return None
    return np.stack([x for x in embeddings if x is not None])

  def add_to_batch(self, batch: Batch, records: Sequence[Record]) -> Batch:
    """Return a batch with the embeddings of its images, or unchanged unless all are stored.

    Args:
      batch: batch whose `index` is a position in `records`; -1 for padding, which comes last.
      records: the images.
    """
    embeddings = self.get([records[i] for i in batch.index if i >= 0])
    if embeddings is None:
      return batch
    num_padding = len(batch.index) - len(embeddings)
    features = np.pad(embeddings, [(0, num_padding), (0, 0), (0, 0), (0, 0)])
    return batch._replace(features=features)
