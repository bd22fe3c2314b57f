"""Detectors by name. The table below is the only place where a name becomes code."""

from collections.abc import Mapping
import difflib
import inspect
from typing import Any

from uadjax.backbones import resnet
from uadjax.detectors import stfpm
from uadjax.types import ConfigError, Detector, Spec, UnknownName

_MAKERS = {'stfpm': ('STFPM', stfpm.make)}  # Name -> title, maker.


def build(options: Mapping[str, Any], backbone: resnet.ResNet, spec: Spec) -> Detector:
  """Make the detector that `options['name']` names.

  `layers` is the backbone's business; every other option is an argument of the maker.

  Raises:
    UnknownName: for a name or option that there is not.
    ConfigError: for a value of another type than the option's default.
  """
  _, maker = _known(options['name'])
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
  return _known(name)[0]


def _known(name: str) -> tuple[str, Any]:
  if name not in _MAKERS:
    raise UnknownName(f'Unknown detector {name!r}; choose from {sorted(_MAKERS)}.')
  return _MAKERS[name]
