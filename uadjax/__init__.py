"""Image anomaly detection in JAX: finds defects after training on defect-free images only.

Public names are imported at first use (PEP 562), so that `import uadjax` is fast: it imports
neither jax nor TensorFlow.
"""

import importlib
from typing import Any, TYPE_CHECKING

__version__ = '0.1.0'

if TYPE_CHECKING:
  from uadjax.detectors.base import Detector
  from uadjax.errors import UserError
  from uadjax.experiment.fit_model import fit_model
  from uadjax.inference.pipelines import create_model, create_pipeline
  from uadjax.inference.result import Result
  from uadjax.model.model_dir import Model

_PUBLIC = {  # Module of each public name.
  'Detector': 'uadjax.detectors.base',
  'Model': 'uadjax.model.model_dir',
  'Result': 'uadjax.inference.result',
  'UserError': 'uadjax.errors',
  'create_model': 'uadjax.inference.pipelines',
  'create_pipeline': 'uadjax.inference.pipelines',
  'fit_model': 'uadjax.experiment.fit_model',
}

__all__ = [
  'Detector',
  'Model',
  'Result',
  'UserError',
  '__version__',
  'create_model',
  'create_pipeline',
  'fit_model',
]


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted(__all__)
