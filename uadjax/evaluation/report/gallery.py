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

MAX_BYTES = 13_000_000  # Of all pictures; in base64 they are a third larger.

_PHOTO_SIDE, _HEATMAP_SIDE = 512, 192  # Pixels along the longer side.
_ENCODINGS = (
  (_PHOTO_SIDE, 82),
  (_PHOTO_SIDE, 65),
  (_PHOTO_SIDE, 45),
  (384, 45),
  (256, 45),
  (192, 30),
)
_NUM_THREADS = 2  # Decoding and encoding let go of the GIL.


class Scale(NamedTuple):
  """Map values at the levels 0, between 127 and 128, and 255: one scale for all pictures."""

  low: float
  threshold: float
  high: float


class Picture(NamedTuple):
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

  image_index: int
  width: int
  height: int
  scale: Scale
  visible_box: tuple[float, float, float, float]
  photo: bytes
  heatmap: bytes
  truth: bytes | None
  is_coarse: bool


def choose(
  records: Sequence[Record],
  scores: Float[np.ndarray, ' n'],
  thresholds: calibration.Thresholds,
  num_images: int,
) -> list[int]:
  """Choose so many images, the most telling first.

  First come false alarms and misses in turn, each farthest from the threshold first; then all kinds
  of images in turn, each spread over its scores.
  """
  is_good = np.array([not record.is_anomalous for record in records], bool)
  is_ng = ~(scores <= thresholds.image_threshold)  # So is what is no number.
  order = np.argsort(scores, kind='stable')
  indices_by_score = order.tolist()
  false_alarms = [i for i in reversed(indices_by_score) if is_good[i] and is_ng[i]]
  misses = [i for i in indices_by_score if not is_good[i] and not is_ng[i]]
  misclassified = _interleave([false_alarms, misses])
  correct_by_defect: dict[str, list[int]] = {}
  for i in indices_by_score:
    if is_good[i] != is_ng[i]:  # Called good or defective, as it is.
      correct_by_defect.setdefault(records[i].defect, []).append(i)
  correct = _interleave(
    [_order_evenly(correct_by_defect[name]) for name in sorted(correct_by_defect)]
  )
  return (misclassified + correct)[:num_images]


def _interleave(groups: Iterable[Sequence[int]]) -> list[int]:
  """The first of each group, then the second of each, and so on."""
  entries = [
    (position, group_index, i)
    for group_index, group in enumerate(groups)
    for position, i in enumerate(group)
  ]
  return [i for _, _, i in sorted(entries)]


def _order_evenly(items: Sequence[int]) -> list[int]:
  """Bring items into an order, each beginning of which is spread evenly over all of them."""
  num_bits = max(len(items) - 1, 1).bit_length()
  return [
    items[index] for index in sorted(range(len(items)), key=lambda r: f'{r:0{num_bits}b}'[::-1])
  ]


def make_pictures(
  records: Sequence[Record],
  anomaly_maps: Sequence[Float[np.ndarray, 'h w']] | Float[np.ndarray, 'n h w'],
  indices: Sequence[int],
  ops: transforms.Ops,
  pixel_threshold: float,
  mask_threshold: int = 0,
) -> list[Picture]:
  """Make pictures of chosen images, in threads.

  Args:
    records: all images.
    maps: of all of them, at network size; may lie in a file.
    chosen: which to show.
    ops: how originals became network images.
    threshold: of the maps.
    mask_threshold: mask values above it are defects.
  """
  scale = shared_scale([anomaly_maps[i] for i in indices], pixel_threshold)
  max_bytes = MAX_BYTES // max(len(indices), 1)

  def picture_at(i: int) -> Picture:
    return make_picture(i, records[i], anomaly_maps[i], ops, scale, mask_threshold, max_bytes)

  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    return list(progress.show_progress(pool.map(picture_at, indices), len(indices), 'Pictures'))


def make_picture(
  image_index: int,
  record: Record,
  anomaly_map: Float[np.ndarray, 'h w'],
  ops: transforms.Ops,
  scale: Scale,
  mask_threshold: int,
  max_bytes: int,
) -> Picture:
  """Make a picture of about so many bytes at most."""
  image = image_io.decode(record.path)
  size = image.shape[0], image.shape[1]
  heatmap, visible = ops.restore(anomaly_map, *_fit_within(size, _HEATMAP_SIDE))
  truth = pixel_scores.read_defect_mask(record, size, mask_threshold)
  heatmap_png = _encode(Image.fromarray(quantize_map(heatmap, scale)), 'PNG', optimize=True)
  truth_png = None if truth is None or not truth.any() else _encode_mask(truth)
  remaining_bytes = max_bytes - len(heatmap_png) - len(truth_png or b'')
  photo, (height, width), is_coarse = _encode_photo(image, remaining_bytes)
  return Picture(
    image_index,
    width,
    height,
    scale,
    _bounding_box(visible),
    photo,
    heatmap_png,
    truth_png,
    is_coarse,
  )


def shared_scale(anomaly_maps: Sequence[Float[np.ndarray, 'h w']], pixel_threshold: float) -> Scale:
  """Let the levels reach from the least to the largest value of all."""
  finite_values = [
    values
    for values in (anomaly_map[np.isfinite(anomaly_map)] for anomaly_map in anomaly_maps)
    if values.size
  ]
  low = min((float(values.min()) for values in finite_values), default=0.0)
  high = max((float(values.max()) for values in finite_values), default=1.0)
  middle = min(max(pixel_threshold, low), high) if math.isinf(pixel_threshold) else pixel_threshold
  gap = max(1e-6 * max(abs(low), abs(middle), abs(high)), float(np.finfo(np.float32).tiny))
  return Scale(min(low, middle - gap), middle, max(high, middle + gap))


def quantize_map(anomaly_map: Float[np.ndarray, 'h w'], scale: Scale) -> UInt8[np.ndarray, 'h w']:
  """Quantize a map: half of the levels for what is not marked, whose structure tells much too."""
  low, middle, high = scale
  below = np.clip((anomaly_map - low) / (middle - low), 0, 1)
  above = np.clip((anomaly_map - middle) / (high - middle), 0, 1)
  return np.where(anomaly_map > middle, 128 + np.floor(127 * above), np.floor(127 * below)).astype(
    np.uint8
  )


def _encode_photo(
  image: UInt8[np.ndarray, 'h w 3'], max_bytes: int
) -> tuple[bytes, tuple[int, int], bool]:
  """The first encoding that fits, its height and width, and whether it is not the usual one."""
  photo, size, is_coarse = b'', (0, 0), False
  for side, quality in _ENCODINGS:
    size = height, width = _fit_within((image.shape[0], image.shape[1]), side)
    resized = Image.fromarray(image)
    resized = resized.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    photo = _encode(resized, 'WEBP', quality=quality)
    is_coarse = (side, quality) != _ENCODINGS[0]
    if len(photo) <= max_bytes:
      break
  return photo, size, is_coarse


def _encode_mask(truth: Bool[np.ndarray, 'h w']) -> bytes:
  """Shrink a mask so that no defect vanishes, be it one pixel."""
  height, width = _fit_within((truth.shape[0], truth.shape[1]), _PHOTO_SIDE)
  gray = Image.fromarray(truth.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
  return _encode(Image.fromarray(np.asarray(gray) > 0), 'PNG', optimize=True)


def _encode(image: Image.Image, image_format: str, **options: int | bool) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def _fit_within(size: tuple[int, int], side: int) -> tuple[int, int]:
  """The largest size of that shape whose longer side is not longer than this, and none grows."""
  factor = min(1.0, side / max(size))
  return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _bounding_box(visible: Bool[np.ndarray, 'h w']) -> tuple[float, float, float, float]:
  """Left, top, right, bottom of a rectangle, as shares."""
  rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
  if not len(rows):
    return 0.0, 0.0, 0.0, 0.0
  height, width = visible.shape
  return (
    float(columns[0] / width),
    float(rows[0] / height),
    float((columns[-1] + 1) / width),
    float((rows[-1] + 1) / height),
  )
