"""Rendering of a report: template, style, scripts and data in one self-contained HTML file.

Names of files and defects are embedded as data and shown as text. A content security policy with
hashes lets the browser run only the scripts of this package.
"""

import base64
from collections.abc import Mapping, Sequence
import hashlib
import html
from importlib import resources
import json
import string

import numpy as np

from uadjax.evaluation.report import gallery

MAX_BYTES = 20_000_000  # A report must be small enough for an e-mail.

# The web page of the service also uses the files in `web`.
_STYLES = 'web/base.css', 'evaluation/report/style.css'
_SCRIPTS = (
  *(
    f'web/{name}.js'
    for name in ('elements', 'heatmap', 'contour', 'thresholds', 'parts', 'commands')
  ),
  *(
    f'evaluation/report/{name}.js'
    for name in ('state', 'parts', 'charts', 'pictures', 'gallery', 'main')
  ),
)


def render(report: Mapping[str, object], pictures: Sequence[gallery.Picture]) -> tuple[str, int]:
  """Render a report as HTML, and return it with the number of pictures that fit into it.

  Args:
    report: data of the report; see `content.build`.
    pictures: pictures, the most important first.
  """
  style, script = _read(*_STYLES), _read(*_SCRIPTS)
  substitutions = {
    'policy': _content_security_policy(style, script),
    'title': html.escape(str(report['title'])),
    'style': style,
    'script': script,
    'report': _to_script_json(report),
  }
  picture_texts = [_to_script_json(_picture_dict(picture)) for picture in pictures]
  remaining_bytes = MAX_BYTES - sum(len(text.encode()) for text in substitutions.values()) - 20_000
  ends = np.cumsum([len(text) + 1 for text in picture_texts])
  num_pictures = int(np.searchsorted(ends, remaining_bytes, 'right'))
  substitutions['pictures'] = f'[{",".join(picture_texts[:num_pictures])}]'
  template = string.Template(_read('evaluation/report/template.html'))
  return template.substitute(substitutions), num_pictures


def _read(*names: str) -> str:
  """Return the joined texts of files in the package."""
  return '\n'.join((resources.files('uadjax') / name).read_text('utf-8') for name in names)


def _content_security_policy(style: str, script: str) -> str:
  """Return a policy that allows only inline images, this style and this script."""
  return (
    f"default-src 'none'; img-src data: blob:; style-src {_csp_hash(style)}; "
    f"script-src {_csp_hash(script)}; base-uri 'none'; form-action 'none'"
  )


def _csp_hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _to_script_json(value: object) -> str:
  """Encode a value as ASCII JSON without characters that HTML interprets, such as </script>."""
  text = json.dumps(value, separators=(',', ':'), allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _picture_dict(picture: gallery.Picture) -> dict[str, object]:
  return {
    **picture._asdict(),
    'photo': _data_uri('webp', picture.photo),
    'heatmap': _data_uri('png', picture.heatmap),
    'truth': picture.truth and _data_uri('png', picture.truth),
    'region': picture.region and _data_uri('png', picture.region),
  }


def _data_uri(image_type: str, data: bytes) -> str:
  return f'data:image/{image_type};base64,{base64.b64encode(data).decode()}'
