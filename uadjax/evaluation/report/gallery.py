"""Pictures of a report: which images are shown, and how they fit into it.

A picture is a photo, its map and its mask, each as small as serves: the browser lays them over one
another, so that opacity and threshold can be moved.

Letters: n images, h w map at whatever size.
"""

from collections.abc import Iterable, Sequence
from concurrent import futures
import io
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import image_io, transforms
from uadjax.data.records import Record
from uadjax.evaluation import pixel_scores
from uadjax.model import calibration
from uadjax.system import progress

MOST_BYTES = 13_000_000  # Of all pictures; in base64 they are a third larger.

_PHOTO, _HEAT = 512, 192  # Pixels along the longer side.
_ENCODINGS = ((_PHOTO, 82), (_PHOTO, 65), (_PHOTO, 45), (384, 45), (256, 45), (192, 30))
_THREADS = 2  # Decoding and encoding let go of the GIL.


class Scale(NamedTuple):
  """Map values at the levels 0, between 127 and 128, and 255: one scale for all pictures."""

  low: float
  threshold: float
  high: float


class Shot(NamedTuple):
  """A picture.

  Attributes:
    place: of the image among all that were evaluated.
    width: of the photo in pixels.
    height: likewise.
    scale: of the map's levels.
    seen: left, top, right, bottom of what the network saw, as shares of width and height.
    photo: WebP.
    heat: levels of the map as a gray PNG.
    truth: defective pixels as a black-and-white PNG; None where there are none, or none is known.
    coarse: whether the photo was encoded more coarsely than usual, to fit.
  """

  place: int
  width: int
  height: int
  scale: Scale
  seen: tuple[float, float, float, float]
  photo: bytes
  heat: bytes
  truth: bytes | None
  coarse: bool


def choose(
  records: Sequence[Record],
  scores: Float[np.ndarray, ' n'],
  limits: calibration.Thresholds,
  number: int,
) -> list[int]:
  """Choose so many images, the most telling first.

  First come false alarms and misses in turn, each farthest from the threshold first; then all kinds
  of images in turn, each spread over its scores.
  """
  good = np.array([not record.is_anomalous for record in records], bool)
  called = ~(scores <= limits.image_threshold)  # So is what is no number.
  order = np.argsort(scores, kind='stable')
  rising = order.tolist()
  alarms = [i for i in reversed(rising) if good[i] and called[i]]
  misses = [i for i in rising if not good[i] and not called[i]]
  wrong = _in_turn([alarms, misses])
  kinds: dict[str, list[int]] = {}
  for i in rising:
    if good[i] != called[i]:  # Called good or defective, as it is.
      kinds.setdefault(records[i].defect, []).append(i)
  right = _in_turn([_spread(kinds[name]) for name in sorted(kinds)])
  return (wrong + right)[:number]


def _in_turn(groups: Iterable[Sequence[int]]) -> list[int]:
  """The first of each group, then the second of each, and so on."""
  placed = [(place, number, i) for number, g in enumerate(groups) for place, i in enumerate(g)]
  return [i for _, _, i in sorted(placed)]


def _spread(items: Sequence[int]) -> list[int]:
  """Bring items into an order, each beginning of which is spread evenly over all of them."""
  bits = max(len(items) - 1, 1).bit_length()
  return [items[rank] for rank in sorted(range(len(items)), key=lambda r: f'{r:0{bits}b}'[::-1])]


def shots(
  records: Sequence[Record],
  maps: Sequence[Float[np.ndarray, 'h w']] | Float[np.ndarray, 'n h w'],
  chosen: Sequence[int],
  ops: transforms.Ops,
  threshold: float,
  mask_threshold: int = 0,
) -> list[Shot]:
  """Make pictures of chosen images, in threads.

  Args:
    records: all images.
    maps: of all of them, at network size; may lie in a file.
    chosen: which to show.
    ops: how originals became network images.
    threshold: of the maps.
    mask_threshold: mask values above it are defects.
  """
  scale = scale_of([maps[i] for i in chosen], threshold)
  budget = MOST_BYTES // max(len(chosen), 1)

  def one(i: int) -> Shot:
    return shot(i, records[i], maps[i], ops, scale, mask_threshold, budget)

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(progress.show_progress(pool.map(one, chosen), len(chosen), 'Pictures'))


def shot(
  place: int,
  record: Record,
  map: Float[np.ndarray, 'h w'],
  ops: transforms.Ops,
  scale: Scale,
  mask_threshold: int,
  budget: int,
) -> Shot:
  """Make a picture of about so many bytes at most."""
  image = image_io.decode(record.path)
  size = image.shape[0], image.shape[1]
  heat, seen = ops.restore(map, *_within(size, _HEAT))
  truth = pixel_scores.read(record, size, mask_threshold)
  levels = _encoded(Image.fromarray(levels_of(heat, scale)), 'PNG', optimize=True)
  mask = None if truth is None or not truth.any() else _mask(truth)
  left = budget - len(levels) - len(mask or b'')
  photo, (height, width), coarse = _photo(image, left)
  return Shot(place, width, height, scale, _box(seen), photo, levels, mask, coarse)


def scale_of(maps: Sequence[Float[np.ndarray, 'h w']], threshold: float) -> Scale:
  """Let the levels reach from the least to the largest value of all."""
  finite = [values for values in (map[np.isfinite(map)] for map in maps) if values.size]
  low = min((float(values.min()) for values in finite), default=0.0)
  high = max((float(values.max()) for values in finite), default=1.0)
  middle = min(max(threshold, low), high) if math.isinf(threshold) else threshold
  gap = max(1e-6 * max(abs(low), abs(middle), abs(high)), float(np.finfo(np.float32).tiny))
  return Scale(min(low, middle - gap), middle, max(high, middle + gap))


def levels_of(map: Float[np.ndarray, 'h w'], scale: Scale) -> UInt8[np.ndarray, 'h w']:
  """Quantize a map: half of the levels for what is not marked, whose structure tells much too."""
  low, middle, high = scale
  below = np.clip((map - low) / (middle - low), 0, 1)
  above = np.clip((map - middle) / (high - middle), 0, 1)
  return np.where(map > middle, 128 + np.floor(127 * above), np.floor(127 * below)).astype(np.uint8)


def _photo(image: UInt8[np.ndarray, 'h w 3'], budget: int) -> tuple[bytes, tuple[int, int], bool]:
  """The first encoding that fits, its height and width, and whether it is not the usual one."""
  photo, size, coarse = b'', (0, 0), False
  for side, quality in _ENCODINGS:
    size = height, width = _within((image.shape[0], image.shape[1]), side)
    small = Image.fromarray(image)
    small = small.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    photo = _encoded(small, 'WEBP', quality=quality)
    coarse = (side, quality) != _ENCODINGS[0]
    if len(photo) <= budget:
      break
  return photo, size, coarse


def _mask(truth: Bool[np.ndarray, 'h w']) -> bytes:
  """Shrink a mask so that no defect vanishes, be it one pixel."""
  height, width = _within((truth.shape[0], truth.shape[1]), _PHOTO)
  gray = Image.fromarray(truth.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
  return _encoded(Image.fromarray(np.asarray(gray) > 0), 'PNG', optimize=True)


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
  """The largest size of that shape whose longer side is not longer than this, and none grows."""
  factor = min(1.0, side / max(size))
  return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _box(seen: Bool[np.ndarray, 'h w']) -> tuple[float, float, float, float]:
  """Left, top, right, bottom of a rectangle, as shares."""
  rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
  if not len(rows):
    return 0.0, 0.0, 0.0, 0.0
  height, width = seen.shape
  return (
    float(columns[0] / width),
    float(rows[0] / height),
    float((columns[-1] + 1) / width),
    float((rows[-1] + 1) / height),
  )
