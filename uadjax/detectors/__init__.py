"""Anomaly detectors by name; each is a `base.Detector`, a NamedTuple of pure functions.

Every detector is one module or package in this folder, named after its paper. The table
`_DETECTORS` is the only place where a name becomes code.
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
  learns_in_one_pass: (
    bool  # True for detectors that see every image once and have a `leave_one_out`.
  )


_DETECTORS = {
  'padim': _Entry('PaDiM', padim.make, learns_in_one_pass=True),
  'patchcore': _Entry('PatchCore', patchcore.make, learns_in_one_pass=True),
  'stfpm': _Entry('STFPM', stfpm.make, learns_in_one_pass=False),
}

TITLES = tuple(entry.title for entry in _DETECTORS.values())


def build(
  options: Mapping[str, Any], backbone: backbones.Backbone, context: RunContext
) -> Detector:
  """Build the detector named by `options['name']`.

  Args:
    options: section `detector` of a configuration. Beside `name` and `layers`, which selects the
      stages of the backbone and is not used here, each option is a keyword argument of the
      detector's `make`.
    backbone: network whose stages are the features.
    context: image size, number of images and shards of the run.

  Raises:
    UnknownName: the detector or an option does not exist.
    ConfigError: the type of a value differs from that of the option's default.
  """
  make = _find_entry(options['name']).make
  arguments = {k: v for k, v in options.items() if k not in ('name', 'layers')}
  parameters = inspect.signature(make).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}
  for key, value in arguments.items():
    if key not in defaults:
      closest_names = difflib.get_close_matches(key, defaults, 1, cutoff=0)
      raise UnknownName(
        f"Unknown option 'detector.{key}'; did you mean 'detector.{closest_names[0]}'?",
        key=f'detector.{key}',
        value=value,
        allowed=tuple(defaults),
      )
    accepted_types = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
    if not isinstance(value, accepted_types):
      raise ConfigError(
        f'detector.{key} must have the type of its default, {defaults[key]!r}; got {value!r}.',
        key=f'detector.{key}',
        value=value,
      )
  return make(backbone, context, **arguments)


def title(name: str) -> str:
  """Return the name of a detector as its paper writes it: PatchCore for patchcore."""
  return _find_entry(name).title


def learns_in_one_pass(name: str) -> bool:
  """Return whether a detector sees every training image once, and needs no validation images."""
  return _find_entry(name).learns_in_one_pass


def _find_entry(name: str) -> _Entry:
  if name not in _DETECTORS:
    raise UnknownName(
      f'Unknown detector {name!r}; choose from {sorted(_DETECTORS)}.',
      key='detector.name',
      value=name,
      allowed=sorted(_DETECTORS),
    )
  return _DETECTORS[name]
