"""Table of the images that a one-pass detector learns from, over all runs that extend each other.

The table assigns images to folds. It also chooses the images that are scored for calibration, and
those that are stored for later runs.

Letters: n images, m scored images, k values of a fingerprint, l other numbers of images.
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
    image_ids: unique id of each image; its fold is id % num_folds.
    groups: position of the first near-duplicate of each image; its own if it is the first.
    fingerprints: fingerprint of each image, by which near-duplicates are recognized.
    export_keys: number that exports of one image share; 0 for other images.
    num_previous: number of images of earlier runs.
    num_folds: number of folds of the detector.
    scored_rows: positions of the images to score for calibration, in order.
  """

  records: tuple[Record | None, ...]
  image_ids: Int[np.ndarray, ' n']
  groups: Int[np.ndarray, ' n']
  fingerprints: Float[np.ndarray, 'n k']
  export_keys: Int[np.ndarray, ' n']
  num_previous: int
  num_folds: int
  scored_rows: Int[np.ndarray, ' m']

  @property
  def new_image_ids(self) -> Int[np.ndarray, ' _l']:
    """Ids of the images of this run."""
    return self.image_ids[self.num_previous :]

  @property
  def scored_folds(self) -> Int[np.ndarray, ' m']:
    """Folds of the images to score."""
    return self.image_ids[self.scored_rows] % self.num_folds

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
  num_previous = len(previous.image_ids)
  old_records: list[Record | None] = [None] * num_previous
  for row, pixels in zip(previous.stored_rows.tolist(), previous.pixels, strict=True):
    path = Path(f'<image {previous.image_ids[row]} of an earlier run>')
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
  image_ids = assign_image_ids(groups, num_folds, previous.image_ids)
  scored_rows = choose_scored(all_records, image_ids, groups, num_folds, max_scored)
  return ImageTable(
    all_records, image_ids, groups, fingerprints, export_keys, num_previous, num_folds, scored_rows
  )


def exclude_learned(
  records: Sequence[Record], previous: LearnedImages, cache: ImageCache
) -> tuple[Record, ...]:
  """Return the records that are not near-duplicates of images of earlier runs."""
  if not records or not len(previous.image_ids):
    return tuple(records)
  table = build(previous, records, 1, 1, cache)
  is_new = table.groups[table.num_previous :] >= table.num_previous
  return tuple(record for record, new in zip(records, is_new.tolist(), strict=True) if new)


def assign_image_ids(
  groups: Int[np.ndarray, ' n'], num_folds: int, previous_ids: Int[np.ndarray, ' _m']
) -> Int[np.ndarray, ' n']:
  """Return a unique id for each image; its fold is id % num_folds.

  Near-duplicates are in the same fold, so that no image is scored by a model that has learned from
  one of them. Without near-duplicates, the ids are consecutive.

  Args:
    groups: position of the first near-duplicate of each image.
    num_folds: number of folds.
    previous_ids: ids of the first images, which earlier runs have assigned.
  """
  num_previous = len(previous_ids)
  first_id = int(previous_ids.max(initial=-1)) + 1
  image_ids = np.concatenate([previous_ids, np.zeros(len(groups) - num_previous, np.int32)])
  new_groups = groups[num_previous:]
  new_firsts = np.unique(new_groups[new_groups >= num_previous])
  folds = (first_id + np.searchsorted(new_firsts, new_groups)) % num_folds
  is_old = new_groups < num_previous
  folds[is_old] = previous_ids[new_groups[is_old]] % num_folds
  # The ids of a fold start at first_id + (fold - first_id) % num_folds, in steps of num_folds.
  next_ids = first_id + (np.arange(num_folds) - first_id) % num_folds
  for i, fold in enumerate(folds, start=num_previous):
    image_ids[i], next_ids[fold] = next_ids[fold], next_ids[fold] + num_folds
  return image_ids


def choose_scored(
  records: Sequence[Record | None],
  image_ids: Int[np.ndarray, ' n'],
  groups: Int[np.ndarray, ' n'],
  num_folds: int,
  max_scored: int,
) -> Int[np.ndarray, ' m']:
  """Choose images to score for calibration, one of each group of near-duplicates.

  A group counts as one observation. The images come from as few folds as have `max_scored`, because
  each fold costs PatchCore a selection.

  Args:
    records: record of each image; None if its pixels are not available.
    image_ids: id of each image.
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
  folds = image_ids % num_folds
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
  pixels = np.stack([cache.load(record.path) for record in table.records_at(rows)])
  return LearnedImages(
    table.image_ids, table.groups, table.fingerprints, table.export_keys, rows, pixels
  )
