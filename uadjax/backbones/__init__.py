"""Pretrained backbones by name: feature extractors whose stages detectors compare.

Modules of this package define the networks, and `weights` reads the files that hold their weights.
The table `_BACKBONES` is the only place that maps a name to a network.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from uadjax.backbones import architecture as architectures, compact, resnet, vit
from uadjax.errors import refuse, Setting, UnknownName

ConvNet = resnet.ResNet | compact.Compact
Backbone = ConvNet | vit.VisionTransformer


_BACKBONES: Mapping[str, Callable[..., Backbone]] = {
  'compact': compact.Compact,
  'resnet18': functools.partial(resnet.ResNet, depths=(2, 2, 2, 2)),
  'resnet34': functools.partial(resnet.ResNet, depths=(3, 4, 6, 3)),
  'resnet50': functools.partial(resnet.ResNet, depths=(3, 4, 6, 3), bottleneck=True),
  'resnet101': functools.partial(resnet.ResNet, depths=(3, 4, 23, 3), bottleneck=True),
  'wide_resnet50_2': functools.partial(
    resnet.ResNet, depths=(3, 4, 6, 3), bottleneck=True, width=128
  ),
  **{
    name: functools.partial(vit.VisionTransformer, config=sizes)
    for name, sizes in architectures.PUBLISHED.items()
  },
  architectures.NAME: vit.VisionTransformer,
}
NAMES = tuple(_BACKBONES)

# All published weights were trained with these statistics of ImageNet, for RGB on [0, 1].
_IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)


def build(
  name: str, stages: tuple[str, ...], architecture: str = '', dtype: str = 'float32'
) -> Backbone:
  """Return the module of a backbone, cut after the last of `stages`.

  Args:
    name: name in the table.
    stages: stages to return.
    architecture: sizes of the backbone `vit`, see `architecture.from_text`.
    dtype: type of the factors of a vision transformer's matrix products.

  Raises:
    UnknownName: the table has no backbone `name`, or the backbone lacks one of `stages`.
    ConfigError: the backbone has no `architecture` or `dtype` to set, or that of `vit` is invalid.
  """
  if name not in _BACKBONES:
    message = f'Unknown backbone {name!r}; choose from {sorted(_BACKBONES)}.'
    raise UnknownName(message, key='backbone.name', value=name, allowed=sorted(_BACKBONES))
  module = _BACKBONES[name](
    arch=name, stages=tuple(stages), **_transformer_options(name, architecture, dtype)
  )
  if not stages or not set(stages) <= set(module.available_stages):
    choices = list(module.available_stages)
    raise UnknownName(f'Stages {list(stages)} are not valid for {name}; choose from {choices}.')
  return module


def _transformer_options(name: str, architecture: str, dtype: str) -> dict[str, Any]:
  """Return the options of a vision transformer that settings determine; none for others."""
  is_transformer = name in architectures.PUBLISHED or name == architectures.NAME
  if dtype != 'float32' and not is_transformer:
    message = f'backbone.dtype applies to vision transformers, not to {name}, which is float32.'
    refuse('backbone.dtype', dtype, message, 'Omit ', Setting('backbone.dtype'), '.')
  options: dict[str, Any] = {'dtype': dtype} if is_transformer else {}
  if name == architectures.NAME:
    return {**options, 'config': architectures.from_text(architecture)}
  if architecture:
    message = f'{architectures.KEY} applies to the backbone {architectures.NAME}, not to {name}.'
    refuse(architectures.KEY, architecture, message, 'Omit ', Setting(architectures.KEY), '.')
  return options


def normalize(images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b h w 3']:
  """Return images normalized by ImageNet's mean and standard deviation, as backbones expect.

  Part of the computation graph, so that serving cannot omit it.
  """
  # Constants of whole rows, because runtimes are slow to broadcast along an axis as short as that
  # of the colors. Without fusion this takes two passes over the pixels instead of three.
  shape = (1, 1, images.shape[2], 3)
  mean, deviation = (np.broadcast_to(255 * x, shape) for x in (_IMAGENET_MEAN, _IMAGENET_STD))
  return (images.astype(jnp.float32) - mean) * (1 / deviation)
