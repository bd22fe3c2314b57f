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
from uadjax.detectors.base import Detector, RunContext
from uadjax.errors import ConfigError, UnknownName


class _Entry(NamedTuple):
  title: str
  make: Callable[..., Detector]
  learns_in_one_pass: bool  # Whether every image is seen once; the detector has a `one_pass` then.


_DETECTORS = {
  'padim': _Entry('PaDiM', padim.make, learns_in_one_pass=True),
  'patchcore': _Entry('PatchCore', patchcore.make, learns_in_one_pass=True),
  'stfpm': _Entry('STFPM', stfpm.make, learns_in_one_pass=False),
}

TITLES = tuple(entry.title for entry in _DETECTORS.values())


def build(
  options: Mapping[str, Any], backbone: backbones.Backbone, context: RunContext
) -> Detector:
  """Make the detector that `options['name']` names.

  `layers` is the backbone's business; every other option is an argument of the maker.

  Raises:
    UnknownName: for a name or option that there is not.
    ConfigError: for a value of another type than the option's default.
  """
  maker = _find_entry(options['name']).make
  arguments = {k: v for k, v in options.items() if k not in ('name', 'layers')}
  parameters = inspect.signature(maker).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
  for key, value in arguments.items():
    if key not in defaults:
      closest_names = difflib.get_close_matches(key, defaults, 1, cutoff=0)
      raise UnknownName(
        f"Unknown option 'detector.{key}'; did you mean 'detector.{closest_names[0]}'?"
      )
    accepted_types = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
    if not isinstance(value, accepted_types):
      raise ConfigError(f'detector.{key} must be like {defaults[key]!r}, got {value!r}.')
  return maker(backbone, context, **arguments)


def title(name: str) -> str:
  """The name as papers and people write it."""
  return _find_entry(name).title


def learns_in_one_pass(name: str) -> bool:
  """Whether the detector sees every image once, and needs none held out."""
  return _find_entry(name).learns_in_one_pass


def _find_entry(name: str) -> _Entry:
  if name not in _DETECTORS:
    raise UnknownName(f'Unknown detector {name!r}; choose from {sorted(_DETECTORS)}.')
  return _DETECTORS[name]
