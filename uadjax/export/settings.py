"""Settings of export: the section `export` of a run."""

import dataclasses
import re

from uadjax.config import field
from uadjax.errors import refuse, Setting


def parse_size(text: str) -> tuple[int, int] | None:
  """Parse a size such as '1024x1280' (height x width); the empty string gives None.

  Raises:
    ConfigError: the text is not a size.
  """
  if not text:
    return None
  match = re.fullmatch(r'([1-9]\d*)[xX]([1-9]\d*)', text.strip())
  if not match:
    message = f"{text!r} is not a size. Pass the camera's height and width, such as 1024x1280."
    refuse('export.include_resize', text, message)
  return int(match[1]), int(match[2])


_FORMATS = ('onnx', 'stablehlo', 'savedmodel', 'tflite')


@dataclasses.dataclass(frozen=True)
class ExportSettings:
  """Section `export`."""

  format: str = field('onnx', 'Format of the graph.', choices=_FORMATS)
  output: str = field('', 'File to write; default: model.onnx (or another suffix) in the model.')
  model_dir: str = field('', 'Model directory; empty for the model of the run.')
  batch: int | None = field(None, 'Fixed batch size; by default any.', minimum=1)
  include_resize: str = field(
    '', 'HEIGHTxWIDTH of a camera, whose images the graph resizes itself.', check=parse_size
  )
  images: str = field(
    '', 'Images to verify on (with quantize also a dataset); default: calibration images.'
  )
  quantize: str = field(
    '',
    'int8: smaller and faster; fp16: smaller. ONNX only; not written if inaccurate.',
    choices=('', 'int8', 'fp16'),
  )

  def validate(self) -> None:
    """Raise a ConfigError if graphs of the format cannot be quantized, but should be."""
    if self.quantize and self.format != 'onnx':
      message = (
        f'{self.quantize} requires onnx, the only format whose quantized graphs are checked.'
      )
      hint = 'Use ', Setting('export.format', 'onnx'), ', or omit ', Setting('export.quantize'), '.'
      refuse('export.quantize', self.quantize, message, *hint)
