"""Anomaly detectors by name: each a NamedTuple of pure functions over arrays, see `base.Detector`.

A detector is one module or package here, named after its paper. The table below is the only place
where a name becomes code.
"""

from collections.abc import Callable, Mapping
import difflib
import inspect
from typing import Any, NamedTuple

from uadjax import backbones
from uadjax.detectors import padim, patchcore, stfpm
from uadjax.detectors.base import Detector, Spec
from uadjax.errors import ConfigError, UnknownName


class _Entry(NamedTuple):
  title: str
  make: Callable[..., Detector]
  once: bool  # Whether every image is seen once; the detector has a `one_pass` then.


_MAKERS = {
  'padim': _Entry('PaDiM', padim.make, once=True),
  'patchcore': _Entry('PatchCore', patchcore.make, once=True),
  'stfpm': _Entry('STFPM', stfpm.make, once=False),
}

TITLES = tuple(entry.title for entry in _MAKERS.values())


def build(options: Mapping[str, Any], backbone: backbones.Backbone, spec: Spec) -> Detector:
  """Make the detector that `options['name']` names.

  `layers` is the backbone's business; every other option is an argument of the maker.

  Raises:
    UnknownName: for a name or option that there is not.
    ConfigError: for a value of another type than the option's default.
  """
  maker = _known(options['name']).make
  arguments = {k: v for k, v in options.items() if k not in ('name', 'layers')}
  parameters = inspect.signature(maker).parameters.values()
  allowed = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
  for key, value in arguments.items():
    if key not in allowed:
      near = difflib.get_close_matches(key, allowed, 1, cutoff=0)
      raise UnknownName(f"Unknown option 'detector.{key}'; did you mean 'detector.{near[0]}'?")
    kinds = (int, float) if isinstance(allowed[key], float) else type(allowed[key])
    if not isinstance(value, kinds):
      raise ConfigError(f'detector.{key} must be like {allowed[key]!r}, got {value!r}.')
  return maker(backbone, spec, **arguments)


def title(name: str) -> str:
  """The name as papers and people write it."""
  return _known(name).title


def learns_once(name: str) -> bool:
  """Whether the detector sees every image once, and needs none held out."""
  return _known(name).once


def _known(name: str) -> _Entry:
  if name not in _MAKERS:
    raise UnknownName(f'Unknown detector {name!r}; choose from {sorted(_MAKERS)}.')
  return _MAKERS[name]
