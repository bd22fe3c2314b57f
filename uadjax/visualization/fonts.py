"""Fonts and names: every file name can be drawn, with a box for what no font has."""

import functools

DEFAULT_FAMILY = 'DejaVu Sans'  # Part of matplotlib: Latin, Greek, Cyrillic, Arabic and more.
# Fonts for Chinese, Japanese and Korean that operating systems include.
_CJK_FAMILIES = (
  *('Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans SC', 'Source Han Sans SC'),
  *('WenQuanYi Zen Hei', 'Microsoft YaHei', 'SimHei', 'PingFang SC', 'Arial Unicode MS'),
)


@functools.cache
def font_files() -> dict[str, str]:
  """Return the path of each available font by its family, the default first."""
  # Takes long to import, and commands that draw nothing import this module, too.
  from matplotlib import font_manager

  installed = set(font_manager.get_font_names())
  families = [DEFAULT_FAMILY, *(name for name in _CJK_FAMILIES if name in installed)]
  return {name: font_manager.findfont(name) for name in families}


def printable(text: str, *families: str) -> str:
  """Replace each character that no font of these families, by default of all, has by a box."""
  fonts = [font_files()[name] for name in families or font_files()]
  letters = frozenset().union(*map(_supported_letters, fonts))
  return ''.join(letter if ord(letter) in letters else '□' for letter in text)


def best_family(text: str) -> str:
  """Return the font family that has the most characters of a text."""
  return min(font_files(), key=lambda family: printable(text, family).count('□'))


@functools.cache
def _supported_letters(path: str) -> frozenset[int]:
  from matplotlib import font_manager

  return frozenset(font_manager.get_font(path).get_charmap())


def shorten_middle(name: str, max_letters: int) -> str:
  """Shorten a long name in the middle, because names of defects often differ at the end."""
  half = max(0, max_letters - 1) // 2
  return name if len(name) <= max_letters else f'{name[:half]}…{name[len(name) - half :]}'
