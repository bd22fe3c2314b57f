"""Result of one image: a mapping with methods to print, draw and save it.

Maps and masks at original resolution are computed when needed, so that a list of many results holds
only their maps at network resolution.

Letters: h w the original image, height width the network image.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import functools
import math
from pathlib import Path, PurePath
from typing import Any

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import inputs, transforms
from uadjax.data.image_statistics import ImageWarning
from uadjax.data.pixel_range import FULL_RANGE, PixelRange
from uadjax.errors import ConfigError, DataError
from uadjax.model import calibration
from uadjax.numerics import regions as region_ops
from uadjax.system import files
from uadjax.visualization import heatmap, picture_file, sheet

MASK_FORMATS = ('rle', 'nested', 'none')  # Ways to write a mask in JSON.
UNREADABLE = 'unreadable'  # Label of unreadable images in counts by label.


class Result(Mapping[str, Any]):
  """Verdict on one image, with its score, anomaly map and anomalous regions.

  As a mapping it has the keys `input_path`, `score`, `label` ('OK', 'review' or 'NG'), `warnings`,
  `image_threshold`, `pred`, `anomaly_map`, `peak`, `at` and `regions`, which are attributes, too.
  The result of an unreadable image has the keys `input_path` and `error`.

  Attributes:
    warnings: reasons why the image is for review even if its score is OK, each with a `code` and a
      `message`.
    picture_scale: size of the image in the last picture, relative to the original; less than 1 if
      the picture would have had more than 64 megapixels.
  """

  def __init__(
    self,
    source: inputs.Source,
    stem: str,
    ops: transforms.Ops,
    thresholds: calibration.Thresholds,
    size: tuple[int, int],
    score: float,
    anomaly_map: Float[np.ndarray, 'height width'],
    warnings: Sequence[ImageWarning] = (),
    pixel_range: PixelRange = FULL_RANGE,
  ):
    """Create the result of a scored image.

    Args:
      source: origin of the image.
      stem: start of the names of files that the result is saved as in a directory.
      ops: preprocessing, which also restores the map to original resolution.
      thresholds: thresholds that decide on the label and the mask.
      size: height and width of the original image.
      score: anomaly score of the image.
      anomaly_map: anomaly map at network resolution.
      warnings: warnings about the image.
      pixel_range: values of black and white in images of more than 8 bits.
    """
    self.input_path = source.name
    self.score = score
    self.label = calibration.label(score, thresholds, bool(warnings))
    self.warnings = [warning._asdict() for warning in warnings]
    self.thresholds = thresholds
    self.size = size
    self.error = ''
    self.picture_scale = 1.0
    self._pixel_range = pixel_range
    self._source, self._stem, self._ops, self.network_map = source, stem, ops, anomaly_map

  @classmethod
  def unreadable(
    cls, source: inputs.Source, stem: str, thresholds: calibration.Thresholds, error: str
  ) -> 'Result':
    """Create the result of an unreadable image.

    Its score is NaN, its label is empty, and its map and mask have no pixels.

    Args:
      source: origin of the image.
      stem: start of the names of files that the result is saved as in a directory.
      thresholds: thresholds of the model.
      error: why the image is unreadable.
    """
    empty_map = np.zeros((0, 0), np.float32)
    result = cls(source, stem, transforms.Ops(()), thresholds, (0, 0), math.nan, empty_map)
    result.error, result.label = error, ''
    result.restored = transforms.RestoredMap(empty_map, np.zeros((0, 0), bool))
    return result

  @property
  def image_threshold(self) -> float:
    """Score above which an image is NG."""
    return self.thresholds.image_threshold

  @property
  def warning_codes(self) -> str:
    """Codes of the warnings, separated by spaces; empty if there is none."""
    return ' '.join(warning['code'] for warning in self.warnings)

  @functools.cached_property
  def restored(self) -> transforms.RestoredMap:
    """Anomaly map at original resolution, and the mask of the pixels that the network saw."""
    return self._ops.restore(self.network_map, *self.size)

  def read_image(self) -> UInt8[np.ndarray, 'h w 3']:
    """Return the original, which is decoded from its file unless its pixels were passed or kept.

    Raises:
      DataError: the image can no longer be read.
    """
    return inputs.read(self._source, pixel_range=self._pixel_range)

  @property
  def anomaly_map(self) -> Float[np.ndarray, 'h w']:
    """Raw map values at original resolution; the map's minimum outside of the visible pixels."""
    return self.restored.anomaly_map

  @property
  def visible(self) -> Bool[np.ndarray, 'h w']:
    """Mask of the pixels that were scored: those inside of a crop and the region of interest."""
    return self.restored.visible

  @property
  def region_of_interest(self) -> Bool[np.ndarray, 'h w'] | None:
    """Mask of the pixels that the model inspects; None for all."""
    region = self._ops.region
    return None if region is None else region.resized(*self.size)

  @functools.cached_property
  def predicted_mask(self) -> Bool[np.ndarray, 'h w']:
    """Mask of the pixels whose map value exceeds the pixel threshold."""
    return self.visible & (self.anomaly_map > self.thresholds.pixel_threshold)

  @property
  def pred(self) -> UInt8[np.ndarray, 'h w']:
    """Predicted mask: 255 for anomalous pixels, else 0."""
    return self.predicted_mask * np.uint8(255)

  @functools.cached_property
  def _location(self) -> tuple[float, tuple[int, int]]:
    return region_ops.find_peak(self.anomaly_map, self.visible)

  @property
  def peak(self) -> float:
    """Largest visible value of the anomaly map; NaN for an unreadable image."""
    return self._location[0]

  @property
  def at(self) -> tuple[int, int]:
    """Return x and y of the peak, in pixels of the original image."""
    return self._location[1]

  @property
  def regions_pixel_threshold(self) -> float:
    """Anomaly-map value that the pixels of `regions` exceed; at most the pixel threshold."""
    return calibration.region_threshold(self.label, self.peak, self.thresholds)

  @functools.cached_property
  def region_mask(self) -> Bool[np.ndarray, 'h w']:
    """Mask of the pixels of `regions`, which is empty for no image that is NG or for review."""
    if self.regions_pixel_threshold == self.thresholds.pixel_threshold:
      return self.predicted_mask
    return self.visible & (self.anomaly_map > self.regions_pixel_threshold)

  @functools.cached_property
  def regions(self) -> list[region_ops.Region]:
    """Connected regions to look at, the highest peak first.

    They are those of `region_mask`, which has at least the pixels of the predicted mask.
    """
    regions = region_ops.find_regions(self.region_mask, self.anomaly_map)
    return sorted(regions, key=lambda r: (-r.peak, r.box))

  def __getitem__(self, key: str) -> Any:
    if key not in self._keys():
      raise KeyError(key)
    return getattr(self, key)

  def __iter__(self) -> Iterator[str]:
    return iter(self._keys())

  def __len__(self) -> int:
    return len(self._keys())

  # Mapping's own methods would compare all pixels.
  __eq__ = object.__eq__
  __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

  def __repr__(self) -> str:
    return f'Result({self.str})'

  def _keys(self) -> tuple[str, ...]:
    if self.error:
      return 'input_path', 'error'
    return (
      'input_path', 'score', 'label', 'warnings',
      'image_threshold', 'pred', 'anomaly_map', 'peak', 'at', 'regions',
    )  # fmt: skip

  def summary(self) -> dict[str, Any]:
    """Return the verdict without map and mask, as JSON-compatible values."""
    if self.error:
      return {'input_path': self.input_path, 'error': self.error}
    return {
      'input_path': self.input_path,
      'score': self.score,
      'label': self.label,
      'warnings': self.warnings,
      **calibration.by_name(self.thresholds),
      'size': list(self.size),
      'marked_pixels': int(self.predicted_mask.sum()),
      'peak': self.peak,
      'at': list(self.at),
      'regions_pixel_threshold': self.regions_pixel_threshold,
      'regions': [region._asdict() for region in self.regions],
      **({'picture_scale': self.picture_scale} if self.picture_scale < 1 else {}),
    }

  def _printed_fields(self) -> dict[str, object]:
    return self.summary() if self.error else {**self.summary(), 'pred': '...'}

  def to_json(self, masks: str = 'rle') -> dict[str, Any]:
    """Return the verdict as JSON-compatible values.

    Args:
      masks: format of `pred`: 'rle' for run lengths as in COCO (down the columns, beginning with
        zeros), 'nested' for rows of 0 and 255, 'none' to omit it.

    Raises:
      ConfigError: unknown format.
    """
    if masks not in MASK_FORMATS:
      raise ConfigError(f'Unknown mask format masks={masks!r}; choose from {MASK_FORMATS}.')
    if self.error or masks == 'none':
      return self.summary()
    mask = self.predicted_mask
    pred = region_ops.encode_run_lengths(mask) if masks == 'rle' else self.pred.tolist()
    return {**self.summary(), 'pred': pred}

  @property
  def json(self) -> dict[str, Any]:
    """Verdict as JSON-compatible values, the mask as run lengths, as `save_to_json` writes it."""
    return self.to_json()

  @property
  def img(self) -> dict[str, Image.Image]:
    """Picture of the result under the key 'res'; empty for an unreadable image."""
    return {} if self.error else {'res': self.picture()}

  def print(
    self,
    json_format: bool = True,
    indent: int = 4,
    ensure_ascii: bool = False,
    format_json: bool | None = None,
  ) -> None:
    """Print the verdict without map and mask.

    Args:
      json_format: whether to print indented JSON rather than one line.
      indent: number of spaces per level of JSON.
      ensure_ascii: whether to escape characters that are not ASCII.
      format_json: alias of `json_format`, since PaddleX uses both.
    """
    if json_format if format_json is None else format_json:
      print(files.to_json(self._printed_fields(), indent, ensure_ascii))
    else:
      print(self.str)

  @property
  def headline(self) -> str:
    """One-line verdict for display, with the caption."""
    return f'{PurePath(self.input_path).name}   {self.label}   {self.caption}'

  @property
  def caption(self) -> str:
    """Score, thresholds, codes of warnings and, for review, where to look, for display."""
    text = f'score {self.score:.3g}'
    if not self.thresholds.is_uncalibrated:
      text += f', NG (not good) above {self.image_threshold:.3g}'
    if (
      not self.thresholds.is_uncalibrated
      and self.thresholds.review_threshold < self.image_threshold
    ):
      text += f', to review above {self.thresholds.review_threshold:.3g}'
    if self.warnings:
      text += f', warnings: {self.warning_codes}'
    if self.label == 'review':
      text += f', look at x {self.at[0]}, y {self.at[1]}'
    return text

  def picture(self) -> Image.Image:
    """Draw the image next to its heatmap overlay, at original resolution unless that is too large.

    It sets `picture_scale`.

    Raises:
      DataError: the image was unreadable, or can no longer be read.
    """
    if self.error:
      raise DataError(self.error)
    image = self.read_image()
    region = self.region_of_interest
    overlay = sheet.Tile(image, self.anomaly_map, self.visible, self.region_mask, region)
    tiles = {'image': sheet.Tile(image), 'anomaly map': overlay}
    share = 100 * self.predicted_mask.mean()
    caption = f'{self.caption}, {share:.2g} % of the pixels marked'
    name = PurePath(self.input_path).name
    picture = sheet.draw_sheet(tiles, name, caption, self.label, self.color_scale)
    self.picture_scale = sheet.scale_of(picture)
    return picture

  @property
  def color_scale(self) -> heatmap.ColorScale:
    """Color scale of the model."""
    return heatmap.color_scale(self.thresholds.pixel_threshold, self.thresholds.image_threshold)

  def save_to_img(self, save_path: str | Path) -> Path | None:
    """Save the picture and return its path; an unreadable image has none.

    Args:
      save_path: image file, or directory in which `<stem>_res<suffix>` is saved, in the subfolder
        that the image has in the directory that was predicted. The suffix becomes .png if the
        picture is too large for the format: more than 65,500 pixels a side for JPEG, 16,383 or 32
        megapixels for WebP.

    Raises:
      ConfigError: the suffix of `save_path` is not that of an image format.
      DataError: the image can no longer be read.
      UserError: the picture cannot be written.
    """
    if self.error:
      return None
    suffix = PurePath(self.input_path).suffix.lower()
    path = self._output_path(save_path, suffix if suffix in picture_file.SUFFIXES else '.png')
    if path.suffix.lower() not in picture_file.SUFFIXES:
      raise ConfigError(
        f'Cannot save a picture as {str(path)!r}; choose a suffix from {picture_file.SUFFIXES}, or '
        'a directory (with a trailing / if it does not exist yet).'
      )
    with files.new_output(path):
      return picture_file.save(self.picture(), path)

  def save_to_json(
    self, save_path: str | Path, indent: int = 4, ensure_ascii: bool = False, masks: str = 'rle'
  ) -> Path:
    """Save the verdict as JSON and return its path.

    Args:
      save_path: JSON file, or directory in which `<stem>_res.json` is saved.
      indent: number of spaces per level.
      ensure_ascii: whether to escape characters that are not ASCII.
      masks: format of the mask: 'rle', 'nested' or 'none'.

    Raises:
      ConfigError: unknown format.
      UserError: the file cannot be written.
    """
    path, fields = self._output_path(save_path, '.json'), self.to_json(masks)
    with files.new_output(path):
      files.write_text(path, files.to_json(fields, indent, ensure_ascii) + '\n')
    return path

  def save_all(self, save_path: str | Path) -> list[Path]:
    """Save the picture and the JSON file in a directory, and return their paths."""
    folder = f'{save_path}/'  # With the slash, a missing folder whose name has a suffix works, too.
    saved_paths = self.save_to_img(folder), self.save_to_json(folder)
    return [path for path in saved_paths if path]

  def _output_path(self, save_path: str | Path, suffix: str) -> Path:
    path = Path(save_path)
    is_folder = not path.suffix or f'{save_path}'.endswith('/')
    with contextlib.suppress(OSError):  # Writing reports the error.
      is_folder = is_folder or path.is_dir()
    return path / self._source.subfolder / f'{self._stem}_res{suffix}' if is_folder else path

  # Must be last in the class: in annotations below it, `str` would mean this property.
  @property
  def str(self) -> str:
    """Verdict in one line, as `print` writes it."""
    return repr(self._printed_fields())
