"""Near-duplicates: images that show the same moment, saved, encoded or exported more than once.

A model that has learned from one of them has seen the other, so only one of them is evidence of how
the model scores an unseen image. Two images are near-duplicates if their names say that they are
exports of one image, or if their fingerprints differ little: in gray values, and relative to the
median distance of one of them to all images. Images of different, aligned good parts differ more,
in position, light and noise.

Letters: n images, k values of a fingerprint.
"""

from collections.abc import Sequence
import hashlib
import os
from pathlib import Path
import re

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

_SIZE = 32  # Height and width of a fingerprint: JPEG artifacts and noise vanish in the averages.
# Largest root mean square difference of near-duplicates, in gray values. On real sets, copies
# in JPEG quality 75 differ by at most 0.3, and images of different parts by at least 1.0
# (tests/test_near_duplicates.py). It protects parts that look alike in a set of several kinds.
_MAX_DISTANCE = 0.6
# The same, relative to the median distance of the image to all. It protects images with little
# contrast.
_MAX_RELATIVE_DISTANCE = 0.08
_MAX_SAMPLE = 2000  # Images on which the median is estimated.
_ROUNDING = 1e-12  # Rounding error of a squared distance, relative to the squared norm.
_CHUNK = 256  # Images whose distances to all others are in memory at once.

# Roboflow names the augmented exports of `part.jpg` `part_jpg.rf.<32 hexadecimal digits>.jpg`.
_EXPORT_NAME = re.compile(r'(.+)\.rf\.[0-9a-zA-Z]{20,}$')


def fingerprint(image: UInt8[np.ndarray, 'h w 3']) -> Float[np.ndarray, ' k']:
  """Return the gray values of an image, averaged over a coarse grid, minus their mean."""
  gray = Image.fromarray(image).convert('L').convert('F')
  values = np.asarray(gray.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR))
  return (values - values.mean()).ravel()


def group(
  fingerprints: Float[np.ndarray, 'n k'], paths: Sequence[Path | str]
) -> Int[np.ndarray, ' n']:
  """Return the group of each image: the position of the first of its near-duplicates.

  Near-duplicates of near-duplicates are in the same group, so that a slow video is one group.

  Args:
    fingerprints: fingerprint of each image.
    paths: file of each image; exports of one image under several names are one group, too.
  """
  export_keys = np.array([export_key(path) for path in paths], np.int64)
  links = np.concatenate([_similar_pairs(fingerprints), _same_export_pairs(export_keys)], axis=1)
  return _connect(links, len(fingerprints))


def join_groups(
  groups: Int[np.ndarray, ' n'],
  fingerprints: Float[np.ndarray, 'n k'],
  export_keys: Int[np.ndarray, ' n'],
  num_in_first_set: int,
) -> Int[np.ndarray, ' n']:
  """Join the groups of two sets of images wherever images of both sets are near-duplicates.

  Images within a set are not compared again. Near-duplicates of near-duplicates are in one group.

  Args:
    groups: group of each image within its set: the position of its first near-duplicate, counted
      over both sets.
    fingerprints: fingerprint of each image of both sets.
    export_keys: value of `export_key` of each image.
    num_in_first_set: number of images of the first set, which come before those of the second.

  Returns:
    The group of each image: the position of the first of its near-duplicates in both sets.
  """
  pairs = _similar_pairs(fingerprints)
  is_in_first_set = pairs < num_in_first_set
  between_sets = pairs[:, is_in_first_set[0] != is_in_first_set[1]]
  within_sets = np.stack([np.arange(len(groups)), groups])
  links = [within_sets, between_sets, _same_export_pairs(export_keys)]
  return _connect(np.concatenate(links, axis=1), len(groups))


def _connect(links: Int[np.ndarray, '2 p'], n: int) -> Int[np.ndarray, ' n']:
  """Return for each of n images the position of the first image that links connect it to."""
  from scipy import sparse  # Imported here, because predicting never needs it.
  from scipy.sparse import csgraph

  graph = sparse.coo_matrix((np.ones(links.shape[1], bool), links), (n, n))
  components = csgraph.connected_components(graph, directed=False)[1]
  _, first_members, component_index = np.unique(components, return_index=True, return_inverse=True)
  return first_members[component_index]


def _similar_pairs(fingerprints: Float[np.ndarray, 'n k']) -> Int[np.ndarray, '2 p']:
  """Return the positions of pairs of images with similar fingerprints."""
  n, k = fingerprints.shape
  x = fingerprints.astype(np.float64)
  x -= x.mean(axis=0)
  squared_norms = np.einsum('nk,nk->n', x, x)
  sample = np.linspace(0, n - 1, min(n, _MAX_SAMPLE)).round().astype(int)
  pairs = [np.zeros((2, 0), np.int64)]
  for start in range(0, n, _CHUNK):
    rows = slice(start, start + _CHUNK)
    squared_distances = squared_norms[rows, None] + squared_norms - 2 * x[rows] @ x.T
    # Rounding can make squared distances slightly negative.
    distances = np.sqrt(np.maximum(squared_distances[:, sample], 0))
    limits = (_MAX_RELATIVE_DISTANCE * np.median(distances, axis=1)) ** 2
    limits = np.minimum(limits, k * _MAX_DISTANCE**2)
    limits = np.maximum(limits, _ROUNDING * squared_norms[rows])
    first, second = np.nonzero(squared_distances <= limits[:, None])
    first += start
    pairs.append(np.stack([first, second])[:, first != second])
  return np.concatenate(pairs, axis=1)


def export_key(path: Path | str) -> int:
  """Return a number that the exports of one image share, by their names; 0 for other files."""
  match = _EXPORT_NAME.match(Path(path).stem)
  if not match:
    return 0
  return int.from_bytes(hashlib.blake2b(os.fsencode(match[1]), digest_size=7).digest())


def _same_export_pairs(export_keys: Int[np.ndarray, ' n']) -> Int[np.ndarray, '2 p']:
  """Return the positions of exports of one image, each with the first of them."""
  first_by_key: dict[int, int] = {}
  exports = [(i, key) for i, key in enumerate(export_keys.tolist()) if key]
  pairs = [(first_by_key.setdefault(key, i), i) for i, key in exports]
  return np.array(pairs, np.int64).reshape(-1, 2).T
