"""Table of the images that a one-pass detector learns from, over all runs that extend each other.

The table assigns images to folds. It also chooses the images that are scored for calibration, and
those that are stored for later runs.

Folds are of images, ids of their tiles. An image that is not tiled counts as one tile. The tiles of
the augmented copies of an image count as tiles of the image.

Letters: n images, t tiles of all images, m scored images, k values of a fingerprint, l other
numbers of images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np

from uadjax.data import near_duplicates, records as record_types
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.model.incremental_state import LearnedImages


class ImageTable(NamedTuple):
  """Images of a run, after those of the runs that it extends.

  Attributes:
    records: record of each image; None for images of earlier runs that are not stored. The path of
      a stored image of an earlier run is its name in the image cache.
    num_tiles: number of tiles of each image, those of its augmented copies included.
    tile_ids: unique id of each tile, image by image; its fold is id % num_folds.
    groups: position of the first near-duplicate of each image; its own if it is the first.
    fingerprints: fingerprint of each image, by which near-duplicates are recognized.
    export_keys: number that exports of one image share; 0 for other images.
    num_previous: number of images of earlier runs.
    num_folds: number of folds of the detector.
    scored_rows: positions of the images to score for calibration, in order.
  """

  records: tuple[Record | None, ...]
  num_tiles: Int[np.ndarray, ' n']
  tile_ids: Int[np.ndarray, ' t']
  groups: Int[np.ndarray, ' n']
  fingerprints: Float[np.ndarray, 'n k']
  export_keys: Int[np.ndarray, ' n']
  num_previous: int
  num_folds: int
  scored_rows: Int[np.ndarray, ' m']

  @property
  def new_tile_ids(self) -> Int[np.ndarray, ' _t']:
    """Ids of the tiles of the images of this run."""
    return self.tile_ids[self.num_tiles[: self.num_previous].sum() :]

  @property
  def folds(self) -> Int[np.ndarray, ' n']:
    """Fold of each image, which is that of all of its tiles."""
    return _first_ids(self.tile_ids, self.num_tiles) % self.num_folds

  @property
  def scored_folds(self) -> Int[np.ndarray, ' m']:
    """Folds of the images to score."""
    return self.folds[self.scored_rows]

  def records_at(self, rows: Int[np.ndarray, ' _l']) -> list[Record]:
    """Return the records at some positions, whose images must be available."""
    return [record for i in rows.tolist() if (record := self.records[i])]


def build(
  previous: LearnedImages,
  records: Sequence[Record],
  num_folds: int,
  max_scored: int,
  cache: ImageCache,
) -> ImageTable:
  """Build the table of a run.

  Args:
    previous: images of the run that is extended; those that are stored are added to the cache.
    records: images to learn from.
    num_folds: number of folds of the detector.
    max_scored: maximum number of images to score for calibration.
    cache: reads the images, or has them in memory.
  """
  num_previous = len(previous.num_tiles)
  old_records: list[Record | None] = [None] * num_previous
  for row, pixels in zip(previous.stored_rows.tolist(), previous.split_pixels(), strict=True):
    path = Path(f'<image {row} of an earlier run>')
    cache.pin(path, pixels)
    old_records[row] = Record(path)
  fingerprints = np.stack([cache.properties(record.path).fingerprint for record in records])
  export_keys = np.array([near_duplicates.export_key(r.path) for r in records], np.int64)
  groups = record_types.group_duplicates(records)
  if num_previous:
    fingerprints = np.concatenate([previous.fingerprints, fingerprints])
    export_keys = np.concatenate([previous.export_keys, export_keys])
    groups = np.concatenate([previous.groups, num_previous + groups])
    groups = near_duplicates.join_groups(groups, fingerprints, export_keys, num_previous)
  all_records = (*old_records, *records)
  new_num_tiles = [cache.num_tiles_to_learn(record.path) for record in records]
  num_tiles = np.concatenate([previous.num_tiles, np.array(new_num_tiles, np.int64)])
  tile_ids = assign_tile_ids(groups, num_tiles, num_folds, previous.tile_ids)
  folds = _first_ids(tile_ids, num_tiles) % num_folds
  scored_rows = choose_scored(all_records, folds, groups, num_folds, max_scored)
  return ImageTable(
    all_records, num_tiles, tile_ids, groups, fingerprints, export_keys, num_previous, num_folds,
    scored_rows,
  )  # fmt: skip


def _first_ids(
  tile_ids: Int[np.ndarray, ' t'], num_tiles: Int[np.ndarray, ' n']
) -> Int[np.ndarray, ' n']:
  """Return the id of the first tile of each image."""
  return tile_ids[np.cumsum(num_tiles) - num_tiles]


def exclude_learned(
  records: Sequence[Record], previous: LearnedImages, cache: ImageCache
) -> tuple[Record, ...]:
  """Return the records that are not near-duplicates of images of earlier runs."""
  if not records or not len(previous.num_tiles):
    return tuple(records)
  table = build(previous, records, 1, 1, cache)
  is_new = table.groups[table.num_previous :] >= table.num_previous
  return tuple(record for record, new in zip(records, is_new.tolist(), strict=True) if new)


def assign_tile_ids(
  groups: Int[np.ndarray, ' n'],
  num_tiles: Int[np.ndarray, ' n'],
  num_folds: int,
  previous_ids: Int[np.ndarray, ' _t'],
) -> Int[np.ndarray, ' t']:
  """Return a unique id for each tile of each image; its fold is id % num_folds.

  Near-duplicates and all of their tiles are in the same fold, so that no image is scored by a model
  that has learned from one of them. Without near-duplicates and tiles, the ids are consecutive.

  Args:
    groups: position of the first near-duplicate of each image.
    num_tiles: number of tiles of each image.
    num_folds: number of folds.
    previous_ids: ids of the tiles of the first images, which earlier runs have assigned.
  """
  num_previous = int(np.searchsorted(np.cumsum(num_tiles), len(previous_ids), side='right'))
  first_id = int(previous_ids.max(initial=-1)) + 1
  previous_folds = _first_ids(previous_ids, num_tiles[:num_previous]) % num_folds
  new_ids: list[int] = []
  new_groups = groups[num_previous:]
  new_firsts = np.unique(new_groups[new_groups >= num_previous])
  folds = (first_id + np.searchsorted(new_firsts, new_groups)) % num_folds
  is_old = new_groups < num_previous
  folds[is_old] = previous_folds[new_groups[is_old]]
  # The ids of a fold start at first_id + (fold - first_id) % num_folds, in steps of num_folds.
  next_ids = (first_id + (np.arange(num_folds) - first_id) % num_folds).tolist()
  for fold, count in zip(folds.tolist(), num_tiles[num_previous:].tolist(), strict=True):
    end = next_ids[fold] + count * num_folds
    new_ids += range(next_ids[fold], end, num_folds)
    next_ids[fold] = end
  return np.concatenate([previous_ids, np.array(new_ids, np.int32)])


def choose_scored(
  records: Sequence[Record | None],
  folds: Int[np.ndarray, ' n'],
  groups: Int[np.ndarray, ' n'],
  num_folds: int,
  max_scored: int,
) -> Int[np.ndarray, ' m']:
  """Choose images to score for calibration, one of each group of near-duplicates.

  A group counts as one observation. The images come from as few folds as have `max_scored`, because
  each fold costs PatchCore a selection.

  Args:
    records: record of each image; None if its pixels are not available.
    folds: fold of each image.
    groups: position of the first near-duplicate of each image.
    num_folds: number of folds. With a single fold, a group is skipped unless the pixels of all its
      images are available, because these are removed from the model that scores the group.
    max_scored: maximum number of images; if fewer can be scored, all of them are chosen.

  Returns:
    Positions of the images, in order.
  """
  available = np.flatnonzero([record is not None for record in records])
  _, first_available = np.unique(groups[available], return_index=True)
  rows = np.sort(available[first_available])
  # A new image may join groups of earlier runs that are in different folds. Such a group is not
  # scored, because each held-out model lacks only one fold, and has learned from the others.
  is_excluded = np.isin(groups, groups[folds != folds[groups]])
  if num_folds == 1:
    is_excluded = np.isin(groups, np.delete(groups, available))
  rows = rows[~is_excluded[rows]]
  max_scored = min(max_scored, len(rows))
  folds = folds[rows]
  num_images_up_to_fold = np.cumsum(np.bincount(folds, minlength=num_folds))
  rows = rows[folds <= np.searchsorted(num_images_up_to_fold, max_scored)]
  # Evenly spaced, because neighbors in a folder may be similar.
  return rows[np.linspace(0, len(rows) - 1, max_scored).round().astype(np.int64)]


def rows_to_store(table: ImageTable) -> Int[np.ndarray, ' l']:
  """Return the positions of the images to store, so that later runs can score those of this run.

  With a single fold, these are whole groups of near-duplicates, because a model that scores one of
  them must not have learned from the others.
  """
  if table.num_folds > 1:
    return table.scored_rows
  return np.flatnonzero(np.isin(table.groups, table.groups[table.scored_rows]))


def to_learned_images(table: ImageTable, cache: ImageCache) -> LearnedImages:
  """Return the images of the table as `state/` stores them for later runs."""
  rows = rows_to_store(table)
  images = [cache.load(record.path) for record in table.records_at(rows)]
  sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
  pixels = np.concatenate([np.zeros(0, np.uint8), *(image.ravel() for image in images)])
  return LearnedImages(
    table.num_tiles, table.tile_ids, table.groups, table.fingerprints, table.export_keys, rows,
    sizes, pixels,
  )  # fmt: skip
