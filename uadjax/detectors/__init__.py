"""Anomaly detectors by name; each is a `base.Detector`, a NamedTuple of pure functions.

Every detector is one module or package in this folder, named after its paper. The table
`_DETECTORS` is the only place where a name becomes code.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from uadjax import backbones
from uadjax.detectors import padim, patchcore_by_layer, settings as options, stfpm, subspace
from uadjax.detectors.base import Detector, RunContext
from uadjax.errors import UnknownName


class _Entry(NamedTuple):
  title: str
  make: Callable[..., Detector]
  settings: Callable[..., options.DetectorSettings]
  learns_in_one_pass: bool  # Whether it sees every image once, and has a `leave_one_out`.
  selects_coreset: bool = False  # Whether it has an `incremental.select`.


_DETECTORS = {
  'padim': _Entry('PaDiM', padim.make, options.PadimSettings, True),
  'patchcore': _Entry('PatchCore', patchcore_by_layer.make, options.PatchcoreSettings, True, True),
  'stfpm': _Entry('STFPM', stfpm.make, options.StfpmSettings, False),
  'subspace': _Entry('SubspaceAD', subspace.make, options.SubspaceSettings, True),
}

TITLES = tuple(entry.title for entry in _DETECTORS.values())


def build(
  settings: options.DetectorSettings, backbone: backbones.Backbone, context: RunContext
) -> Detector:
  """Build the detector named by `settings.name`.

  Args:
    settings: section `detector` of a run, which the detector's `make` takes; its `layers` selected
      the stages of `backbone`.
    backbone: network whose stages are the features.
    context: image size, number of images and shards of the run.
  """
  return _find_entry(settings.name).make(backbone, context, settings)


def settings_types() -> Mapping[str, Callable[..., options.DetectorSettings]]:
  """Return the dataclass of the section `detector` for each detector."""
  return {name: entry.settings for name, entry in _DETECTORS.items()}


def title(name: str) -> str:
  """Return the name of a detector as its paper writes it: PatchCore for patchcore."""
  return _find_entry(name).title


def find(text: str) -> str:
  """Return the name of the detector with this name or title, in any case; '' if there is none."""
  text = text.lower()
  names = (k for k, entry in _DETECTORS.items() if text in (k, entry.title.lower()))
  return next(names, '')


def learns_in_one_pass(name: str) -> bool:
  """Return whether a detector sees every training image once, and needs no validation images."""
  return _find_entry(name).learns_in_one_pass


def selects_coreset(name: str) -> bool:
  """Return whether a detector selects a coreset after it has seen all images."""
  return _find_entry(name).selects_coreset


def _find_entry(name: str) -> _Entry:
  if name not in _DETECTORS:
    names = sorted(_DETECTORS)
    message = f'Unknown detector {name!r}; choose from {names}.'
    raise UnknownName(message, key='detector.name', value=name, allowed=names)
  return _DETECTORS[name]
