"""Pretrained backbones by name: feature extractors whose stages detectors compare.

Modules of this package define the networks, and `weights` reads the files that hold their weights.
The table `_BACKBONES` is the only place that maps a name to a network.
"""

from collections.abc import Callable, Mapping
import functools

from jax import numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from uadjax.backbones import compact, resnet
from uadjax.errors import UnknownName

Backbone = resnet.ResNet | compact.Compact


_BACKBONES: Mapping[str, Callable[..., Backbone]] = {
  'compact': compact.Compact,
  'resnet18': functools.partial(resnet.ResNet, depths=(2, 2, 2, 2)),
  'resnet34': functools.partial(resnet.ResNet, depths=(3, 4, 6, 3)),
  'resnet50': functools.partial(resnet.ResNet, depths=(3, 4, 6, 3), bottleneck=True),
  'resnet101': functools.partial(resnet.ResNet, depths=(3, 4, 23, 3), bottleneck=True),
  'wide_resnet50_2': functools.partial(
    resnet.ResNet, depths=(3, 4, 6, 3), bottleneck=True, width=128
  ),
}

# All published weights were trained with these statistics of ImageNet, for RGB on [0, 1].
_IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)


def build(name: str, stages: tuple[str, ...]) -> Backbone:
  """Return the module of a backbone, cut after the last of `stages`.

  Raises:
    UnknownName: the table has no backbone `name`, or the backbone lacks one of `stages`.
  """
  if name not in _BACKBONES:
    message = f'Unknown backbone {name!r}; choose from {sorted(_BACKBONES)}.'
    raise UnknownName(message, key='backbone.name', value=name, allowed=sorted(_BACKBONES))
  module = _BACKBONES[name](arch=name, stages=tuple(stages))
  if not stages or not set(stages) <= set(module.available_stages):
    choices = list(module.available_stages)
    raise UnknownName(f'Stages {list(stages)} are not valid for {name}; choose from {choices}.')
  return module


def normalize(images: UInt8[Array, 'b h w 3']) -> Float[Array, 'b h w 3']:
  """Return images normalized by ImageNet's mean and standard deviation, as backbones expect.

  Part of the computation graph, so that serving cannot omit it.
  """
  # Constants of whole rows, because runtimes are slow to broadcast along an axis as short as that
  # of the colors. Without fusion this takes two passes over the pixels instead of three.
  shape = (1, 1, images.shape[2], 3)
  mean, deviation = (np.broadcast_to(255 * x, shape) for x in (_IMAGENET_MEAN, _IMAGENET_STD))
  return (images.astype(jnp.float32) - mean) * (1 / deviation)
