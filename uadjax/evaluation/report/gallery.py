"""Pictures of a report: selection of images, and encoding within a limit of bytes.

A picture consists of a photo, an anomaly map and a mask, each as small as possible. The browser
overlays them, so that the reader can change opacity and threshold.

Letters: n images, h w image or map of any size.
"""

from collections.abc import Sequence
from concurrent import futures
import io
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import image_io, selection, transforms
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.data.records import Record
from uadjax.evaluation import pixel_scores
from uadjax.model import calibration
from uadjax.system import progress
from uadjax.visualization import heatmap

MAX_BYTES = 13_000_000  # Limit of all pictures together; base64 makes them a third larger.

_HEATMAP_SIDE = 192  # Pixels along the longer side.
# Longer side and quality of photos, from fine to coarse.
_ENCODINGS = (512, 82), (512, 65), (512, 45), (384, 45), (256, 45), (192, 30)
# Effort of the WebP encoder, up to 6: half the time of the default 4, for 4 % more bytes.
_WEBP_METHOD = 2
_NUM_THREADS = 2  # Decoding and encoding release the GIL.


class Picture(NamedTuple):
  """Encoded image with its anomaly map and mask.

  Attributes:
    image_index: index of the image among all evaluated ones.
    width: width of the photo in pixels.
    height: height of the photo in pixels.
    low: map value of level 0.
    high: map value of level 255.
    visible_box: left, top, right and bottom of the part that the network saw, as shares of width
      and height.
    photo: image as WebP.
    heatmap: levels of the anomaly map as a gray PNG.
    truth: defective pixels as a black-and-white PNG; None without any, or without ground truth.
    is_coarse: whether the photo was encoded more coarsely than usual to fit.
    region: visible pixels as a black-and-white PNG; None without a region of interest.
  """

  image_index: int
  width: int
  height: int
  low: float
  high: float
  visible_box: tuple[float, float, float, float]
  photo: bytes
  heatmap: bytes
  truth: bytes | None
  is_coarse: bool
  region: bytes | None = None


def choose(
  records: Sequence[Record],
  scores: Float[np.ndarray, ' n'],
  labels: Sequence[str],
  image_threshold: float,
  num_images: int,
) -> list[int]:
  """Choose up to `num_images` images, the most informative first.

  Images with wrong verdicts come first, in the order of `calibration.worst_first_key`. Then classes
  and defect types alternate, evenly spread over scores.
  """
  keys = [
    calibration.worst_first_key(score, label, image_threshold, record.is_anomalous)
    for record, score, label in zip(records, scores.tolist(), labels, strict=True)
  ]
  is_correct = [key[0] for key in keys]
  wrong = sorted((i for i in range(len(keys)) if not is_correct[i]), key=keys.__getitem__)
  correct: dict[str, list[int]] = {record.defect: [] for record in records}
  for i in np.argsort(scores, kind='stable').tolist():
    if is_correct[i]:
      correct[records[i].defect].append(i)
  evenly = [selection.order_evenly(correct[name]) for name in sorted(correct)]
  return (wrong + selection.interleave(evenly))[:num_images]


def make_pictures(
  records: Sequence[Record],
  anomaly_maps: Sequence[Float[np.ndarray, 'h w']],
  indices: Sequence[int],
  ops: transforms.Ops,
  mask_reading: str = image_io.NONZERO,
  pixel_range: PixelRange = FULL_RANGE,
) -> list[Picture]:
  """Encode pictures of selected images, in threads.

  Args:
    records: records of all images.
    anomaly_maps: maps of all scaled images; may be memory-mapped.
    indices: indices of the images to show.
    ops: preprocessing of the images.
    mask_reading: how masks mark defects, see `image_io.parse_mask_reading`.
    pixel_range: values of black and white in images of more than 8 bits.
  """
  max_bytes = MAX_BYTES // max(len(indices), 1)

  def picture_at(i: int) -> Picture:
    return make_picture(i, records[i], anomaly_maps[i], ops, mask_reading, max_bytes, pixel_range)

  with futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
    return list(progress.show_progress(pool.map(picture_at, indices), len(indices), 'Pictures'))


def make_picture(
  image_index: int,
  record: Record,
  anomaly_map: Float[np.ndarray, 'h w'],
  ops: transforms.Ops,
  mask_reading: str,
  max_bytes: int,
  pixel_range: PixelRange = FULL_RANGE,
) -> Picture:
  """Encode the picture of one image in at most about `max_bytes`."""
  image = image_io.decode(record.path, pixel_range=pixel_range)
  size = image.shape[0], image.shape[1]
  small_map, visible = ops.restore(anomaly_map, *size, _fit_within(size, _HEATMAP_SIDE))
  levels, low, high = heatmap.to_levels(small_map)
  truth = pixel_scores.read_defect_mask(record, size, mask_reading)
  heatmap_png = _encode(Image.fromarray(levels), 'PNG')
  truth_png = None if truth is None or not truth.any() else _encode_mask(truth)
  region_png = None if ops.region is None else _encode(Image.fromarray(visible), 'PNG')
  num_bytes = sum(len(png) for png in (heatmap_png, truth_png, region_png) if png)
  photo, (height, width), is_coarse = _encode_photo(image, max_bytes - num_bytes)
  visible_box = _bounding_box(visible)
  return Picture(
    image_index, width, height, low, high, visible_box, photo, heatmap_png, truth_png, is_coarse,
    region_png,
  )  # fmt: skip


def _encode_photo(
  image: UInt8[np.ndarray, 'h w 3'], max_bytes: int
) -> tuple[bytes, tuple[int, int], bool]:
  """Return a photo in the first encoding that fits, its (height, width), and whether it is coarse.

  If none fits, the last and smallest encoding is used.
  """
  photo, size, is_coarse = b'', (0, 0), False
  for side, quality in _ENCODINGS:
    size = height, width = _fit_within((image.shape[0], image.shape[1]), side)
    resized = Image.fromarray(image)
    resized = resized.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    photo = _encode(resized, 'WEBP', quality=quality, method=_WEBP_METHOD)
    is_coarse = (side, quality) != _ENCODINGS[0]
    if len(photo) <= max_bytes:
      break
  return photo, size, is_coarse


def _encode_mask(truth: Bool[np.ndarray, 'h w']) -> bytes:
  """Encode a downsampled mask, in which even a defect of one pixel remains."""
  height, width = _fit_within((truth.shape[0], truth.shape[1]), _ENCODINGS[0][0])
  gray = Image.fromarray(truth.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
  return _encode(Image.fromarray(np.asarray(gray) > 0), 'PNG')


def _encode(image: Image.Image, image_format: str, **options: int | bool) -> bytes:
  file = io.BytesIO()
  image.save(file, image_format, **options)
  return file.getvalue()


def _fit_within(size: tuple[int, int], side: int) -> tuple[int, int]:
  """Return a size scaled down, if necessary, so that its longer side has at most `side` pixels."""
  factor = min(1.0, side / max(size))
  return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _bounding_box(visible: Bool[np.ndarray, 'h w']) -> tuple[float, float, float, float]:
  """Return left, top, right and bottom of the visible rectangle, as shares of width and height."""
  left, top, right, bottom = Image.fromarray(visible).getbbox() or (0, 0, 0, 0)
  height, width = visible.shape
  return left / width, top / height, right / width, bottom / height
