"""The verdict on one image: a mapping that prints, draws and saves itself.

What is large, the map and the mask at original size, is made when it is asked for: a list of a
hundred thousand results holds their maps at network size only.

Letters: h w the original, height width the network image.
"""

from collections.abc import Iterator, Mapping
import functools
import math
from pathlib import Path, PurePath
from typing import Any

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

from uadjax.data import inputs, transforms
from uadjax.errors import ConfigError, DataError
from uadjax.model import calibration
from uadjax.numerics import regions as region_ops
from uadjax.system import files
from uadjax.visualization import result_image

MASK_FORMATS = ('rle', 'nested', 'none')  # How JSON holds a mask.
UNREADABLE = 'unreadable'  # Where images are counted by label, those that have none.
_IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


class Result(Mapping[str, Any]):
  """The verdict on one image.

  As a mapping it has `input_path`, `score`, `label` ('OK', 'review' or 'NG'), `threshold`, `pred`,
  `anomaly_map` and `regions`, which are attributes too; of an image that could not be read
  `input_path` and `error`.
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
  ):
    """Hold what the network said.

    Args:
      source: where the image came from.
      stem: what names begin with that the result is saved under in a directory.
      ops: bring the map back to the original size.
      limits: thresholds.
      size: height and width of the original.
      score: of the image.
      map: at network size.
    """
    self.input_path = source.name
    self.score = score
    self.label = calibration.label(score, thresholds)
    self.thresholds = thresholds
    self.size = size
    self.error = ''
    self._source, self._stem, self._ops, self._network_map = source, stem, ops, anomaly_map

  @classmethod
  def unreadable(
    cls, source: inputs.Source, stem: str, thresholds: calibration.Thresholds, error: str
  ) -> 'Result':
    """The result of an image that could not be read, and why.

    Its score is NaN, its label empty, its map and mask have no pixels.
    """
    empty_map = np.zeros((0, 0), np.float32)
    result = cls(source, stem, transforms.Ops(()), thresholds, (0, 0), math.nan, empty_map)
    result.error, result.label = error, ''
    result.restored = transforms.RestoredMap(empty_map, np.zeros((0, 0), bool))
    return result

  @property
  def image_threshold(self) -> float:
    """An image whose score exceeds it is NG."""
    return self.thresholds.image_threshold

  @functools.cached_property
  def restored(self) -> transforms.RestoredMap:
    """The map at original size, and which pixels the network saw."""
    return self._ops.restore(self._network_map, *self.size)

  @property
  def anomaly_map(self) -> Float[np.ndarray, 'h w']:
    """Raw map values at original size; the map's minimum where the network saw nothing."""
    return self.restored.anomaly_map

  @property
  def visible(self) -> Bool[np.ndarray, 'h w']:
    """The pixels that the network saw: all but those outside a crop."""
    return self.restored.visible

  @functools.cached_property
  def predicted_mask(self) -> Bool[np.ndarray, 'h w']:
    """The pixels that exceed the pixel threshold."""
    return self.visible & (self.anomaly_map > self.thresholds.pixel_threshold)

  @property
  def pred(self) -> UInt8[np.ndarray, 'h w']:
    """The mask: 255 where marked, else 0."""
    return self.predicted_mask * np.uint8(255)

  @functools.cached_property
  def regions(self) -> list[region_ops.Region]:
    """What is marked, by its peak from the largest on."""
    regions = region_ops.find_regions(self.predicted_mask, self.anomaly_map)
    return sorted(regions, key=lambda region: (-region.peak, region.box))

  @property
  def peak_position(self) -> tuple[int, int]:
    """Where the map is largest, x and y, counted from 0."""
    y, x = divmod(int(self.anomaly_map.argmax()), self.size[1])
    return x, y

  def __getitem__(self, key: str) -> Any:
    if key not in self._keys():
      raise KeyError(key)
    return getattr(self, key)

  def __iter__(self) -> Iterator[str]:
    return iter(self._keys())

  def __len__(self) -> int:
    return len(self._keys())

  # Of a mapping they would compare all pixels.
  __eq__ = object.__eq__
  __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

  def __repr__(self) -> str:
    return f'Result({self.str})'

  def _keys(self) -> tuple[str, ...]:
    if self.error:
      return 'input_path', 'error'
    return 'input_path', 'score', 'label', 'image_threshold', 'pred', 'anomaly_map', 'regions'

  def summary(self) -> dict[str, Any]:
    """The verdict without its pixels, as JSON can hold it."""
    if self.error:
      return {'input_path': self.input_path, 'error': self.error}
    return {
      'input_path': self.input_path,
      'score': self.score,
      'label': self.label,
      'image_threshold': self.image_threshold,
      'review_threshold': self.thresholds.review_threshold,
      'pixel_threshold': self.thresholds.pixel_threshold,
      'size': list(self.size),
      'marked_pixels': int(self.predicted_mask.sum()),
      'regions': [region._asdict() for region in self.regions],
    }

  def _printed_fields(self) -> dict[str, Any]:
    return self.summary() if self.error else {**self.summary(), 'pred': '...'}

  def to_json(self, masks: str = 'rle') -> dict[str, Any]:
    """The verdict as JSON can hold it.

    Args:
      masks: `pred` as 'rle', run lengths as COCO has them (down the columns, beginning with zeros);
        'nested', rows of 0 and 255; or 'none'.
    """
    if masks not in MASK_FORMATS:
      raise ConfigError(f'masks={masks!r} is no way to write a mask; choose from {MASK_FORMATS}.')
    fields = self.summary()
    if masks != 'none' and not self.error:
      fields['pred'] = (
        region_ops.encode_run_lengths(self.predicted_mask) if masks == 'rle' else self.pred.tolist()
      )
    return fields

  @property
  def json(self) -> dict[str, Any]:
    """The verdict as JSON can hold it, the mask as run lengths; what `save_to_json` writes."""
    return self.to_json()

  @property
  def img(self) -> dict[str, Image.Image]:
    """The picture, under 'res'; none of an image that could not be read."""
    return {} if self.error else {'res': self.picture()}

  def print(
    self,
    json_format: bool = True,
    indent: int = 4,
    ensure_ascii: bool = False,
    format_json: bool | None = None,
  ) -> None:
    """Print the verdict, its mask as '...'.

    Args:
      json_format: as indented JSON rather than in one line.
      indent: spaces.
      ensure_ascii: escape all other letters.
      format_json: another name of `json_format`; the original systems use both.
    """
    if json_format if format_json is None else format_json:
      print(files.to_json(self._printed_fields(), indent, ensure_ascii))
    else:
      print(self.str)

  @property
  def headline(self) -> str:
    """The verdict in one line, for people."""
    threshold_text = f'NG above {self.image_threshold:.3g}'
    if self.thresholds.review_threshold < self.image_threshold:
      threshold_text += f', review above {self.thresholds.review_threshold:.3g}'
    name = PurePath(self.input_path).name
    return f'{name}   {self.label}   score {self.score:.3g}   ({threshold_text})'

  def picture(self) -> Image.Image:
    """Draw the original beside its overlay, at original resolution.

    Raises:
      DataError: the image could not be read, or cannot any more.
    """
    if self.error:
      raise DataError(self.error)
    verdict = result_image.Verdict(
      PurePath(self.input_path).name,
      self.label,
      self.score,
      self.thresholds.image_threshold,
      self.thresholds.review_threshold,
      self.thresholds.pixel_threshold,
    )
    visible_map = np.where(
      self.visible, self.anomaly_map, np.float32('nan')
    )  # Dimmed where not seen.
    return result_image.draw_result(
      inputs.read(self._source), visible_map, self.predicted_mask, self.peak_position, verdict
    )

  def save_to_img(self, save_path: str | Path) -> Path | None:
    """Save the picture; an image that could not be read has none.

    Args:
      save_path: an image file, or a directory for `<stem>_res<suffix>` to be saved in, in the same
        folder below it as the image has below the directory that it was found in.
    """
    if self.error:
      return None
    suffix = PurePath(self.input_path).suffix.lower()
    path = self._output_path(save_path, suffix if suffix in _IMAGE_SUFFIXES else '.png')
    if path.suffix.lower() not in _IMAGE_SUFFIXES:
      raise ConfigError(
        f'A picture cannot be saved as {str(path)!r}; choose a suffix from {_IMAGE_SUFFIXES}, or a '
        'directory (with a / at its end if it is not there yet).'
      )
    with files.atomic_write(path) as file:
      self.picture().save(file, Image.registered_extensions()[path.suffix.lower()], **_SAVE_OPTIONS)
    return path

  def save_to_json(
    self,
    save_path: str | Path,
    indent: int = 4,
    ensure_ascii: bool = False,
    masks: str = 'rle',
  ) -> Path:
    """Save the verdict as JSON; the arguments are those of `save_to_img`, `print` and `to_json`."""
    path, fields = self._output_path(save_path, '.json'), self.to_json(masks)
    files.write_text(path, files.to_json(fields, indent, ensure_ascii) + '\n')
    return path

  def save_all(self, save_path: str | Path) -> list[Path]:
    """Save the picture and the JSON file in a directory."""
    folder = f'{save_path}/'  # Also where it is not there yet and has a suffix.
    saved_paths = self.save_to_img(folder), self.save_to_json(folder)
    return [path for path in saved_paths if path]

  def _output_path(self, save_path: str | Path, suffix: str) -> Path:
    path = Path(save_path)
    is_folder = path.is_dir() or not path.suffix or f'{save_path}'.endswith('/')
    path = path / self._source.subfolder / f'{self._stem}_res{suffix}' if is_folder else path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path

  # The last of the class: annotations below it would take it for the type.
  @property
  def str(self) -> str:
    """The verdict in one line, as `print` has it."""
    return repr(self._printed_fields())


# Of PNG four times as fast as the default, and a fifth larger; of JPEG and WebP.
_SAVE_OPTIONS = {'compress_level': 1, 'quality': 95}
