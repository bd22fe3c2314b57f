"""How large a bank of patches may become.

It has room for the patches of all images, or for as many as fit into the bytes that a device may
spend on them and on selecting from them. In the end a share of all remains, and no more than half
of what fits.
"""

import math
from typing import NamedTuple

from uadjax.detectors.base import Spec
from uadjax.errors import ConfigError
from uadjax.numerics import coreset
from uadjax.numerics.collectives import Shards
from uadjax.system.progress import Track

SPARE = 4  # So many times the ratio is kept where there will be a selection from what is kept.
_FOLDS = 10


class Plan(NamedTuple):
  """Sizes and settings of a bank.

  Attributes:
    patches: of an image.
    ratio: share of all patches that is kept in the end.
    capacity: rows of a shard until room must be made.
    bounded: whether that can happen.
    final: rows in the end.
    folds: that images are dealt to, to leave them out.
    dim: of the random projection that selections are made in; 0 for none.
    track: (items, number, what is done) -> items, while progress is shown.
    shards: over which devices the rows are split.
  """

  patches: int
  ratio: float
  capacity: int
  bounded: bool
  final: int
  folds: int
  dim: int
  track: Track
  shards: Shards


def plan(d: int, patches: int, spec: Spec, ratio: float, max_bytes: int, dim: int) -> Plan:
  """Size a bank for the images of the spec, after those that an earlier run folded in.

  Raises:
    ConfigError: max_bytes, which every device may use, hold too few images to select from.
  """
  images, seen, parts = spec.images, spec.seen, spec.shards.number
  each = coreset.bytes_per_point(d) + 4 * dim
  most = max_bytes // each
  if most < 4 * patches:
    raise ConfigError(
      f'detector.max_bytes={max_bytes} hold the patches of {most / patches:.1f} images; at least '
      f'{4 * patches * each} are needed, for 4.'
    )
  half = parts * (most // 2)
  before, final = (min(round(ratio * n * patches), half) for n in (seen, seen + images))
  share = math.ceil(max(images, 1) / parts) + spec.spare
  wanted = math.ceil(before / parts) + share * patches
  folds = min(_FOLDS, max(1, seen + images))
  capacity, final = min(wanted, most), max(1, final)
  return Plan(patches, ratio, capacity, wanted > most, final, folds, dim, spec.track, spec.shards)
