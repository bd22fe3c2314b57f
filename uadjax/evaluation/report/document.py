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

MAX_BYTES = 20_000_000  # So that it can be sent by mail.

# The one in `web` is the service's page's, too.
_SCRIPTS = (
  'evaluation/report/state.js',
  'evaluation/report/charts.js',
  'web/contour.js',
  'evaluation/report/pictures.js',
  'evaluation/report/gallery.js',
  'evaluation/report/page.js',
)


class RenderedReport(NamedTuple):
  """A page, and the number of its pictures: as many as fit."""

  text: str
  num_pictures: int


def render(report_data: Mapping[str, Any], pictures: Sequence[gallery.Picture]) -> RenderedReport:
  """Write the page around what it is to say; see `content.of`."""
  folder = resources.files('uadjax.evaluation.report')
  style = (folder / 'page.css').read_text('utf-8')
  script = '\n'.join(
    resources.files('uadjax').joinpath(name).read_text('utf-8') for name in _SCRIPTS
  )
  colors = matplotlib.colormaps['plasma'](np.arange(256), bytes=True)[:, :3]
  substitutions = {
    'policy': _content_security_policy(style, script),
    'title': html.escape(report_data['title']),
    'style': style,
    'script': script,
    'colors': colors.tobytes().hex(),
    'report': _to_script_json(report_data),
  }
  picture_texts = [_to_script_json(_picture_dict(picture)) for picture in pictures]
  remaining_bytes = MAX_BYTES - sum(len(text.encode()) for text in substitutions.values()) - 20_000
  num_pictures = int(
    np.searchsorted(np.cumsum([len(p) + 1 for p in picture_texts]), remaining_bytes, 'right')
  )
  substitutions['pictures'] = f'[{",".join(picture_texts[:num_pictures])}]'
  template = string.Template((folder / 'page.html').read_text('utf-8'))
  return RenderedReport(template.substitute(substitutions), num_pictures)


def _content_security_policy(style: str, script: str) -> str:
  """What the browser may do: show what is here."""
  return (
    f"default-src 'none'; img-src data: blob:; style-src {_csp_hash(style)}; "
    f"script-src {_csp_hash(script)}; base-uri 'none'; form-action 'none'"
  )


def _csp_hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _to_script_json(value: Any) -> str:
  """JSON that ends no script element, in ASCII: nothing in it means anything to HTML."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _picture_dict(picture: gallery.Picture) -> dict[str, Any]:
  return {
    'image': picture.image_index,
    'width': picture.width,
    'height': picture.height,
    'scale': picture.scale,
    'seen': picture.visible_box,
    'photo': _data_uri('webp', picture.photo),
    'heat': _data_uri('png', picture.heatmap),
    'truth': picture.truth and _data_uri('png', picture.truth),
  }


def _data_uri(image_type: str, data: bytes) -> str:
  return f'data:image/{image_type};base64,{base64.b64encode(data).decode()}'
