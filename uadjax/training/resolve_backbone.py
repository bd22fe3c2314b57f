"""Which backbone `backbone.weights` means: settled before a run begins, and saved with it."""

from pathlib import Path
from typing import Any

import yaml

from uadjax import backbones
from uadjax.backbones import weights
from uadjax.model import model_dir
from uadjax.system import logging
from uadjax.types import Config


def resolve_backbone(config: Config, workdir: Path) -> Config:
  """The configuration without 'auto' and 'embedded' in doubt; says so where that costs something.

  A run that goes on, or extends another, has the backbone of before: a network that is there by
  now must not change it.
  """
  resolved_config = config.copy_and_resolve_references().unlock()
  backbone, layers = resolved_config.backbone, tuple(resolved_config.detector.layers)
  if backbone.weights == 'auto' and (
    previous_backbone := _previous_backbone(resolved_config, workdir)
  ):
    backbone.update(previous_backbone)
    return resolved_config
  backbones.build(backbone.name, layers)  # Unknown names are told before anything is fetched.
  choice = weights.choose(backbone.name, backbone.weights, layers)
  if choice.fallback_reason:
    logging.LOG.warning(
      'Embedded weights are used, for those of ImageNet could not be had: PatchCore loses '
      'about 0.01 of image AUROC (experiments/README.md). %s', choice.fallback_reason,
    )  # fmt: skip
  backbone.update({'name': choice.name, 'weights': choice.weights})
  return resolved_config


def _previous_backbone(config: Config, workdir: Path) -> dict[str, Any]:
  """Name and weights of the run that is extended or gone on with; what is wrong is told later."""
  if config.fit.extend:
    backbone = model_dir.read_info(config.fit.extend).config.backbone
    return {'name': backbone.name, 'weights': backbone.weights}
  config_path = workdir / 'config.yaml'
  if config.fit.resume and config_path.is_file():
    try:
      backbone = yaml.safe_load(config_path.read_text())['backbone']
      return {'name': backbone['name'], 'weights': backbone['weights']}
    except (yaml.YAMLError, TypeError, KeyError):
      return {}
  return {}
