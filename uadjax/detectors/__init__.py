"""Detectors by name. The table below is the only place where a name becomes code."""

from collections.abc import Mapping
from typing import Any

from uadjax.backbones import resnet
from uadjax.detectors import stfpm
from uadjax.types import Detector, Spec, UnknownName

_MAKERS = {'stfpm': stfpm.make}
_TITLES = {'stfpm': 'STFPM'}


def build(options: Mapping[str, Any], backbone: resnet.ResNet, spec: Spec) -> Detector:
  """Make the detector that `options['name']` names.

  `layers` is the backbone's business; every other option is an argument of the maker.
  """
  arguments = {k: v for k, v in options.items() if k not in ('name', 'layers')}
  return _MAKERS[_known(options['name'])](backbone, spec, **arguments)


def title(name: str) -> str:
  """The name as papers and people write it."""
  return _TITLES[_known(name)]


def _known(name: str) -> str:
  if name not in _MAKERS:
    raise UnknownName(f'Unknown detector {name!r}; choose from {sorted(_MAKERS)}.')
  return name
