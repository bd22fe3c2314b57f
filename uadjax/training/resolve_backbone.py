"""Resolution of `backbone.weights`, such as 'auto', to a definite backbone before a run."""

import dataclasses
from pathlib import Path

import yaml

from uadjax import backbones
from uadjax.backbones import weights
from uadjax.backbones.settings import BackboneSettings
from uadjax.model import model_dir
from uadjax.system import logging
from uadjax.training.settings import Settings


def resolve_backbone(config: Settings, workdir: Path) -> Settings:
  """Return the configuration with definite `backbone.name`, `weights` and `architecture`.

  A run that is resumed or that extends another keeps the backbone of that run, even if ImageNet
  weights have become available since. Warns, once per process, when they are unavailable.
  """
  backbone, layers = config.backbone, config.detector.layers
  if backbone.weights == 'auto' and (previous := _previous_backbone(config, workdir)):
    return dataclasses.replace(config, backbone=previous)
  config = resolve_architecture(config)
  backbone = config.backbone
  # Rejects unknown names before anything is downloaded.
  backbones.build(backbone.name, layers, backbone.architecture, backbone.dtype)
  choice = weights.choose(backbone.name, backbone.weights, layers)
  if choice.fallback_reason:
    logging.LOG.debug('%s', choice.fallback_reason)
    logging.warn_once(
      'fallback weights',
      'ImageNet weights are unavailable; using the built-in backbone, which is about as accurate.\n'
      'To use them, run `uadjax weights %s` where there is a network.', backbone.name,
    )  # fmt: skip
  backbone = dataclasses.replace(backbone, name=choice.name, weights=choice.weights)
  return dataclasses.replace(config, backbone=backbone)


def resolve_architecture(config: Settings) -> Settings:
  """Return the configuration with a `backbone.architecture` that the weights complete."""
  backbone = config.backbone
  architecture = weights.complete_architecture(
    backbone.name, backbone.weights, backbone.architecture
  )
  return dataclasses.replace(
    config, backbone=dataclasses.replace(backbone, architecture=architecture)
  )


def _previous_backbone(config: Settings, workdir: Path) -> BackboneSettings | None:
  """Return the backbone of the run to extend or to resume.

  If the configuration of that run is unreadable, the result is None; `workdir` reports the error.
  """
  if config.fit.extend:
    return model_dir.read_info(config.fit.extend).config.backbone
  config_path = workdir / 'config.yaml'
  if config.fit.resume and config_path.is_file():
    try:
      backbone = yaml.safe_load(config_path.read_text())['backbone']
      return BackboneSettings(**backbone)
    except (yaml.YAMLError, TypeError, KeyError):
      return None
  return None
