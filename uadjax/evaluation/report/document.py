"""The page as text: template, style, scripts and data in one file that asks nothing of a network.

Whatever a file or a defect is called, it comes as data and is shown as text. The browser is told to
run nothing but the scripts of this package, by their hash.
"""

import base64
from collections.abc import Mapping, Sequence
import hashlib
import html
from importlib import resources
import json
import string
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from uadjax.evaluation.report import gallery

MOST_BYTES = 20_000_000  # So that it can be sent by mail.

# The one in `web` is the service's page's, too.
_SCRIPTS = (
  'evaluation/report/state.js',
  'evaluation/report/charts.js',
  'web/contour.js',
  'evaluation/report/pictures.js',
  'evaluation/report/gallery.js',
  'evaluation/report/page.js',
)


class Page(NamedTuple):
  """A page, and the number of its pictures: as many as fit."""

  text: str
  shown: int


def page(told: Mapping[str, Any], shots: Sequence[gallery.Shot]) -> Page:
  """Write the page around what it is to say; see `content.of`."""
  folder = resources.files('uadjax.evaluation.report')
  style = (folder / 'page.css').read_text('utf-8')
  script = '\n'.join(
    resources.files('uadjax').joinpath(name).read_text('utf-8') for name in _SCRIPTS
  )
  colors = matplotlib.colormaps['plasma'](np.arange(256), bytes=True)[:, :3]
  parts = {
    'policy': _policy(style, script),
    'title': html.escape(told['title']),
    'style': style,
    'script': script,
    'colors': colors.tobytes().hex(),
    'report': _embedded(told),
  }
  pictures = [_embedded(_picture(shot)) for shot in shots]
  room = MOST_BYTES - sum(len(part.encode()) for part in parts.values()) - 20_000
  shown = int(np.searchsorted(np.cumsum([len(p) + 1 for p in pictures]), room, 'right'))
  parts['pictures'] = f'[{",".join(pictures[:shown])}]'
  template = string.Template((folder / 'page.html').read_text('utf-8'))
  return Page(template.substitute(parts), shown)


def _policy(style: str, script: str) -> str:
  """What the browser may do: show what is here."""
  return (
    f"default-src 'none'; img-src data: blob:; style-src {_hash(style)}; "
    f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
  )


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _embedded(value: Any) -> str:
  """JSON that ends no script element, in ASCII: nothing in it means anything to HTML."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _picture(shot: gallery.Shot) -> dict[str, Any]:
  return {
    'image': shot.place,
    'width': shot.width,
    'height': shot.height,
    'scale': shot.scale,
    'seen': shot.seen,
    'photo': _uri('webp', shot.photo),
    'heat': _uri('png', shot.heat),
    'truth': shot.truth and _uri('png', shot.truth),
  }


def _uri(kind: str, data: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
