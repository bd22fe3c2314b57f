"""Statistics of images, and warnings about an image that differs from all training images.

A score says how anomalous the content of an image is. It says little about an image without
content, such as that of a dead camera, or about one in another light, focus, color mode or size.
Such an image may even score below the threshold. Its statistics reveal it.

Letters: height width of the network image.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
from typing import NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

# Scaling to network size reduces a blur of the original as much as the image: a Gaussian blur of 8
# pixels in an original of 1024 pixels becomes one of 2 pixels at 256. The Laplacian weights the
# finest details most, and blur removes these first. After such a blur of 8 pixels, the sharpness of
# an image with the spectrum of natural scenes (1 / frequency) falls to about 4 % for originals of
# 1024 pixels, 20 % for 2048 and 50 % for 4096.
#
# Rounding to whole gray values adds a variance of 1 / 12 to each pixel, and the squared weights of
# the Laplacian add up to 20. In smooth images, such as blurred ones, little else would be measured.
_LAPLACIAN_OF_ROUNDING = 20 / 12


class ImageStatistics(NamedTuple):
  """Statistics of an image, measured at network size, in gray values from 0 to 255.

  Attributes:
    brightness: mean gray value.
    contrast: standard deviation of the gray values.
    sharpness: standard deviation of the Laplacian of the gray values, without the part that is due
      to rounding, relative to the contrast, so that it does not depend on light and exposure.
    saturation: mean difference of the largest and the smallest channel of a pixel.
    height: height of the original in pixels.
    width: width of the original in pixels.
    further_pages: 1 if the file has further pages, which are not judged, else 0.
  """

  brightness: float
  contrast: float
  sharpness: float
  saturation: float
  height: int
  width: int
  further_pages: int = 0


def measure(
  pixels: UInt8[np.ndarray, 'height width 3'],
  size: tuple[int, int],
  has_further_pages: bool = False,
  inspected: Bool[np.ndarray, 'height width'] | None = None,
) -> ImageStatistics:
  """Measure an image at network size.

  Args:
    pixels: the image.
    size: height and width of the original.
    has_further_pages: whether the file has further pages, which are not judged.
    inspected: True for the pixels that count; None for all.
  """
  gray = np.asarray(Image.fromarray(pixels).convert('F'))  # Luma, not rounded.
  laplacian = _laplacian(gray)
  if inspected is not None:
    laplacian, gray = laplacian[_interior(inspected)], gray[inspected]
    pixels = pixels[inspected]
  contrast = float(gray.std())
  detail = math.sqrt(max(0.0, float(laplacian.var()) - _LAPLACIAN_OF_ROUNDING))
  red, green, blue = np.moveaxis(pixels, -1, 0)
  largest = np.maximum(np.maximum(red, green), blue)
  smallest = np.minimum(np.minimum(red, green), blue)
  return ImageStatistics(
    brightness=float(gray.mean()),
    contrast=contrast,
    sharpness=detail / contrast if contrast else 0.0,
    saturation=float((largest - smallest).mean()),
    height=size[0],
    width=size[1],
    further_pages=int(has_further_pages),
  )


def _laplacian(gray: Float[np.ndarray, 'height width']) -> Float[np.ndarray, 'height width']:
  padded = np.pad(gray, 1, mode='edge')
  vertical = padded[:-2, 1:-1] + padded[2:, 1:-1]
  return vertical + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * gray


def _interior(inspected: Bool[np.ndarray, 'height width']) -> Bool[np.ndarray, 'height width']:
  """Return the pixels whose Laplacian depends on inspected pixels only; all if there is none."""
  padded = np.pad(inspected, 1, mode='edge')
  interior = inspected & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
  return interior if interior.any() else inspected


class StatisticsRange(NamedTuple):
  """Range of the statistics of the training images.

  Attributes:
    minimum: smallest value of each statistic.
    maximum: largest value of each statistic.
  """

  minimum: ImageStatistics
  maximum: ImageStatistics

  @classmethod
  def from_statistics(cls, statistics: Iterable[ImageStatistics]) -> 'StatisticsRange':
    """Return the range of at least one image."""
    columns = list(zip(*statistics, strict=True))
    smallest, largest = (map(function, columns) for function in (min, max))
    return cls(ImageStatistics._make(smallest), ImageStatistics._make(largest))

  def merge(self, other: 'StatisticsRange') -> 'StatisticsRange':
    """Return the range of the images of both ranges."""
    return StatisticsRange.from_statistics([*self, *other])

  def to_dict(self) -> dict[str, list[float | int]]:
    """Return minimum and maximum by name, to be stored as JSON."""
    limits = zip(*self, strict=True)
    return {name: list(pair) for name, pair in zip(self.minimum._fields, limits, strict=True)}

  @classmethod
  def from_dict(cls, limits: Mapping[str, Sequence[float | int]]) -> 'StatisticsRange':
    """Return the range that `to_dict` returned as a mapping.

    Raises:
      KeyError, TypeError, ValueError: the mapping does not describe a range.
    """
    pairs = [limits[name] for name in ImageStatistics._fields]
    minimum, maximum = zip(*pairs, strict=True)
    return cls(ImageStatistics._make(minimum), ImageStatistics._make(maximum))


class ImageWarning(NamedTuple):
  """Reason why an image is for review even if its score is OK.

  Attributes:
    code: 'no_content', 'underexposed', 'overexposed', 'blurred', 'gray_instead_of_color',
      'color_instead_of_gray', 'other_size', 'further_pages' or 'no_thresholds'.
    message: a sentence with the value of the image and the range of the training images.
  """

  code: str
  message: str


# An image gets a warning if a statistic is below LOW / FACTOR · (LOW / HIGH), where LOW and HIGH
# are the limits of the training images. On a logarithmic scale, it is then farther from their range
# than the range is wide. For overexposed images, the statistic is the distance of the brightness
# from white. Assume that the tail of the logarithm is exponential, which is heavier than that of a
# normal distribution. Then a good image is that far from n others with probability 2 / (n + 1)²:
# less than 0.1 % for all statistics together, from 99 images on. The factors protect models of
# fewer images, and of images that are very similar to each other.
_FACTOR = 2.0
_CONTRAST_FACTOR = 4.0  # Underexposed images have little contrast, too, but have content.
_SHARPNESS_FACTOR = 1.5
_SIZE_FACTOR = 1.25

_WHITE = 255
# Gray images have a saturation of 0, or nearly 0 after JPEG. Even a color image of a gray part has
# a few gray values, because of the light and the noise of the sensor.
_MAX_OF_GRAY, _MIN_OF_COLOR = 0.5, 2.0

# Code -> the problem in words, and the statistic that shows it.
_PROBLEMS = {
  'no_content': ('is nearly uniform', 'contrast'),
  'underexposed': ('is too dark', 'brightness'),
  'overexposed': ('is too bright', 'brightness'),
  'blurred': ('is blurred', 'sharpness'),
  'gray_instead_of_color': ('is gray instead of in color', 'saturation'),
  'color_instead_of_gray': ('is in color instead of gray', 'saturation'),
}


def find_warnings(
  statistics: ImageStatistics, training_range: StatisticsRange
) -> list[ImageWarning]:
  """Return the warnings about an image, given the range of the training images."""
  image, (low, high) = statistics, training_range
  if _is_far_below(image.contrast, low.contrast, high.contrast, _CONTRAST_FACTOR):
    codes = ['no_content']  # Other unusual statistics follow from it.
  else:
    is_dark = _is_far_below(image.brightness, low.brightness, high.brightness, _FACTOR)
    is_bright = _is_far_below(
      _WHITE - image.brightness, _WHITE - high.brightness, _WHITE - low.brightness, _FACTOR
    )
    has_colors = not is_dark and not is_bright  # Colors fade in very dark and very bright images.
    is_unusual = {
      'underexposed': is_dark,
      'overexposed': is_bright,
      'blurred': _is_far_below(image.sharpness, low.sharpness, high.sharpness, _SHARPNESS_FACTOR),
      'gray_instead_of_color': has_colors
      and low.saturation >= _MIN_OF_COLOR
      and _is_far_below(image.saturation, low.saturation, high.saturation, _FACTOR),
      'color_instead_of_gray': has_colors
      and high.saturation <= _MAX_OF_GRAY
      and image.saturation >= _MIN_OF_COLOR,
    }
    codes = [code for code, is_present in is_unusual.items() if is_present]
  warnings = []
  for code in codes:
    problem, name = _PROBLEMS[code]
    value, smallest, largest = (getattr(x, name) for x in (image, low, high))
    message = f'The image {problem}: its {name} is {value:.3g}, that of the training images '
    warnings.append(ImageWarning(code, f'{message}is {smallest:.3g} to {largest:.3g}.'))
  if _is_other_length(image.height, low.height, high.height) or _is_other_length(
    image.width, low.width, high.width
  ):
    warnings.append(ImageWarning('other_size', _describe_size(image, low, high)))
  if image.further_pages > high.further_pages:
    message = 'The file has further pages, which are not judged; the training images have none.'
    warnings.append(ImageWarning('further_pages', message))
  return warnings


def _is_far_below(value: float | int, low: float | int, high: float | int, factor: float) -> bool:
  """Return whether a value is below [low, high] by more than a factor and the width of the range.

  The width counts on a logarithmic scale. The result is always False if `low` is 0.
  """
  return value * factor * high < low**2


def _is_other_length(value: int, low: int, high: int) -> bool:
  """Return whether a height or width is far outside its range, or differs from the only value."""
  if low == high:
    return value != low
  return _is_far_below(value, low, high, _SIZE_FACTOR) or _is_far_below(
    1 / value, 1 / high, 1 / low, _SIZE_FACTOR
  )


def _describe_size(image: ImageStatistics, low: ImageStatistics, high: ImageStatistics) -> str:
  heights, widths = (
    f'{smallest}' if smallest == largest else f'{smallest} to {largest}'
    for smallest, largest in ((low.height, high.height), (low.width, high.width))
  )
  return (
    f'The image has another size: it is {image.height} pixels high and {image.width} wide; the '
    f'training images are {heights} high and {widths} wide.'
  )
