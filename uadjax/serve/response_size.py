"""Upper bounds on the sizes of responses, known before an image is decoded.

Otherwise a request of a few kilobytes, with an image of one color, could make a response of
gigabytes. Only what grows with the pixels is counted.
"""

from collections.abc import Iterable

from uadjax.serve.errors import RequestError
from uadjax.serve.requests import RequestOptions

Size = tuple[int, int]  # Height and width.

# Largest numbers of bytes per pixel. Images of noise come close to those of image files.
_MAP_BYTES = 17.0  # The longest float32 is -0.000012345679, with a comma.
_LABEL_MAP_BYTES = 4.0  # 255 with a comma.
_HEATMAP_BYTES = 1.4  # A gray PNG in base64.
_JPEG_PICTURE_BYTES = 3.0  # A JPEG, which shows the image twice, in base64.
_PNG_PICTURE_BYTES = 8.1  # The same picture as a PNG.
_LINE_BYTES = 64.0  # Per row and column: filter bytes of a PNG, and margins of a picture.
_FILE_BYTES = 1 << 16  # Per image file: its header, and the text in a picture.
# With a longer side, a picture may be too large for JPEG: it shows the image twice, with margins.
_MAX_JPEG_SIDE = 30_000


def check_maps(sizes: Iterable[Size], max_bytes: int) -> None:
  """Check the maps of an inference request.

  Raises:
    RequestError: they may have more than `max_bytes` bytes.
  """
  num_bytes = _MAP_BYTES * sum(height * width for height, width in sizes)
  _check(num_bytes, max_bytes, "fewer or smaller images, or request outputs without 'map'")


def check_verdict(size: Size, options: RequestOptions, max_bytes: int) -> None:
  """Check the verdict on an image, with what the options request.

  Raises:
    RequestError: it may have more than `max_bytes` bytes.
  """
  num_pixels = size[0] * size[1]
  file_bytes = _LINE_BYTES * sum(size) + _FILE_BYTES
  picture_bytes = _JPEG_PICTURE_BYTES if max(size) <= _MAX_JPEG_SIDE else _PNG_PICTURE_BYTES
  num_bytes = {
    'labelMap': _LABEL_MAP_BYTES * num_pixels * (options.labelMap is not False),
    'visualize': (picture_bytes * num_pixels + file_bytes) * bool(options.visualize),
    'heatmap': (_HEATMAP_BYTES * num_pixels + file_bytes) * bool(options.heatmap),
  }
  way_out = ', '.join(f'{name}=false' for name, count in num_bytes.items() if count)
  _check(sum(num_bytes.values()), max_bytes, f'a smaller image, or {way_out}')


def _check(num_bytes: float, max_bytes: int, way_out: str) -> None:
  if num_bytes > max_bytes:
    raise RequestError(
      413, f'The response could have {num_bytes:.0f} bytes, but the limit is {max_bytes}. Send '
      f'{way_out}; or ask the operator to raise max_answer_bytes.'
    )  # fmt: skip
