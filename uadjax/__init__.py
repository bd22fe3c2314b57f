"""Finds defects in images without ever having seen one.

Public names resolve at first use (PEP 562), so that `import uadjax` costs nothing: it imports
neither jax nor TensorFlow.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_PUBLIC: dict[str, str] = {}  # Name -> module that defines it.

__all__ = ['__version__']  # pyright knows no others until there are any.


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
