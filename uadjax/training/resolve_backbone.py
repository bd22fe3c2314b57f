"""Which backbone `backbone.weights` means: settled before a run begins, and saved with it."""

from pathlib import Path
from typing import Any

import yaml

from uadjax import backbones
from uadjax.backbones import weights
from uadjax.model import model_dir
from uadjax.system import logging
from uadjax.types import Config


def settle(config: Config, workdir: Path) -> Config:
  """The configuration without 'auto' and 'embedded' in doubt; says so where that costs something.

  A run that goes on, or extends another, has the backbone of before: a network that is there by
  now must not change it.
  """
  own = config.copy_and_resolve_references().unlock()
  backbone, layers = own.backbone, tuple(own.detector.layers)
  if backbone.weights == 'auto' and (before := _before(own, workdir)):
    backbone.update(before)
    return own
  backbones.build(backbone.name, layers)  # Unknown names are told before anything is fetched.
  chosen = weights.choose(backbone.name, backbone.weights, layers)
  if chosen.fallback_reason:
    logging.LOG.warning(
      'Embedded weights are used, for those of ImageNet could not be had: PatchCore loses '
      'about 0.01 of image AUROC (experiments/README.md). %s', chosen.fallback_reason,
    )  # fmt: skip
  backbone.update({'name': chosen.name, 'weights': chosen.weights})
  return own


def _before(config: Config, workdir: Path) -> dict[str, Any]:
  """Name and weights of the run that is extended or gone on with; what is wrong is told later."""
  if config.fit.extend:
    old = model_dir.about(config.fit.extend).config.backbone
    return {'name': old.name, 'weights': old.weights}
  saved = workdir / 'config.yaml'
  if config.fit.resume and saved.is_file():
    try:
      old = yaml.safe_load(saved.read_text())['backbone']
      return {'name': old['name'], 'weights': old['weights']}
    except (yaml.YAMLError, TypeError, KeyError):
      return {}
  return {}
