"""Sizes of vision transformers: those of published ones, and their form as text.

The text is a setting, and part of a model's manifest, because a file of weights may be of any size.
"""

from collections.abc import Iterator
from typing import NamedTuple

from uadjax.errors import refuse, Setting

NAME = 'vit'  # The backbone whose architecture is read off the file of its weights.
KEY = 'backbone.architecture'
_HEAD_CHANNELS = 64
_MAX_SIZE = 1 << 16
_BOOLS = {'true': True, 'false': False}


class Architecture(NamedTuple):
  """Sizes of a vision transformer.

  Attributes:
    patch: side of a patch in pixels.
    width: number of channels of a token.
    depth: number of blocks.
    heads: number of attention heads.
    hidden: number of channels inside an MLP.
    registers: number of register tokens.
    gated: whether MLPs are SwiGLU, else they have a GELU.
    positions: side of the square grid of learned position embeddings; 0 for rotary positions.
    offset: constant added to the size of a patch grid when learned positions are interpolated:
      0.1 in the programs of DINO and of DINOv2 without registers.
    antialias: whether that interpolation smooths where it shrinks.
  """

  patch: int
  width: int
  depth: int
  heads: int
  hidden: int
  registers: int = 0
  gated: bool = False
  positions: int = 0
  offset: float = 0.0
  antialias: bool = False

  def __str__(self) -> str:
    """Return the text that `parse` reads: patch=14,width=384 and so on."""
    return ','.join(f'{name}={value}' for name, value in self._asdict().items()).lower()


# Width, depth, heads and hidden channels.
_SMALL, _BASE = (384, 12, 6, 1536), (768, 12, 12, 3072)
_LARGE, _GIANT = (1024, 24, 16, 4096), (1536, 40, 24, 4096)


def _published() -> Iterator[tuple[str, Architecture]]:
  """Yield names and sizes as in the programs of the papers' authors, with their interpolation."""
  for letter, sizes in (('s', _SMALL), ('b', _BASE)):
    for patch, positions in ((16, 14), (8, 28)):
      yield f'dino_vit{letter}{patch}', Architecture(patch, *sizes, positions=positions, offset=0.1)
  for letter, sizes in (('s', _SMALL), ('b', _BASE), ('l', _LARGE), ('g', _GIANT)):
    plain = Architecture(14, *sizes, gated=letter == 'g', positions=37, offset=0.1)
    yield f'dinov2_vit{letter}14', plain
    yield f'dinov2_vit{letter}14_reg', plain._replace(registers=4, offset=0.0, antialias=True)
  for suffix, sizes in (('s16', _SMALL), ('s16plus', _SMALL), ('b16', _BASE), ('l16', _LARGE)):
    yield f'dinov3_vit{suffix}', Architecture(16, *sizes, registers=4, gated=suffix == 's16plus')


PUBLISHED = dict(_published())


def default_heads(width: int) -> int:
  """Return the number of heads of all published networks; 0 if `width` is of none."""
  return 0 if width % _HEAD_CHANNELS else width // _HEAD_CHANNELS


def parse(text: str) -> dict[str, int | float | bool]:
  """Return the sizes in a text such as 'heads=3,offset=0.1', which may lack some.

  Raises:
    ConfigError: it has an unknown name or a value of another type.
  """
  values: dict[str, int | float | bool] = {}
  for item in filter(None, text.split(',')):
    name, _, value = item.strip().partition('=')
    kind = Architecture.__annotations__.get(name, str)
    try:
      number = _BOOLS[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
      number = None
    if isinstance(number, int | float) and 0 <= number < _MAX_SIZE:
      values[name] = number
    else:
      names = ', '.join(Architecture._fields)
      message = f'{item!r} is not part of an architecture, which has numbers for {names}.'
      refuse(KEY, text, message, 'An example is ', 'heads=6,offset=0.1.', allowed=names)
  return values


def from_text(text: str) -> Architecture:
  """Return the architecture in a text that lacks no size without a default.

  Raises:
    ConfigError: the text is invalid or incomplete, or sizes contradict each other.
  """
  values = parse(text)
  missing = [
    name for name in Architecture._fields
    if name not in values and name not in Architecture._field_defaults
  ]  # fmt: skip
  if missing:
    message = f'The architecture of {NAME} lacks {", ".join(missing)}.'
    hint = 'It is read off the weights if ', Setting('backbone.weights'), ' is a file.'
    refuse(KEY, text, message, *hint)
  result = Architecture(**values)  # pyright: ignore[reportArgumentType]
  require_valid(result)
  return result


def require_valid(sizes: Architecture) -> None:
  """Check that heads divide the width, evenly enough for rotary positions, and nothing is 0.

  Raises:
    ConfigError: they do not.
  """
  divisor = sizes.heads * (1 if sizes.positions else 4)
  positive = min(sizes.patch, sizes.width, sizes.depth, sizes.heads, sizes.hidden)
  if positive < 1 or sizes.width % divisor:
    message = f'The width of a vision transformer, {sizes.width}, is not cut evenly into heads, of '
    message += f'which there are {sizes.heads}.' if sizes.heads else 'unknown number.'
    refuse(KEY, str(sizes), message, 'Set ', Setting(KEY, 'heads=N'), '.')
