"""ResNet and Wide-ResNet with the tensors of torchvision (He et al. 2015, arXiv 1512.03385).

Bottlenecks have their stride on the 3x3 convolution (v1.5). Modules have torchvision's names, with
an underscore where a list is indexed: `layer1_0/conv1/kernel` is `layer1.0.conv1.weight`.

Axes: b batch, h height, w width, c channels.
"""

import functools

from flax import linen as nn
from jaxtyping import Array, Float

from uadjax.backbones import convolution

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


class ResNet(nn.Module):
  """Residual network up to the last requested stage.

  Attributes:
    arch: name of the architecture, under which weights are published.
    stages: names of the returned stages. Later stages are not computed and have no parameters.
    depths: number of blocks in each stage.
    bottleneck: whether blocks have 1x1, 3x3 and 1x1 convolutions instead of two 3x3 convolutions.
    width: channels of the 3x3 convolution in bottlenecks of the first stage.
    axis_name: mesh axis over which training batches are sharded, so that BatchNorm uses statistics
      of the whole batch; None when not sharded.
    zero_init_residual: whether new parameters make each block start as its shortcut, as the scales
      of its last BatchNorm are 0 (Goyal et al. 2017, arXiv 1706.02677, section 5.1).
  """

  arch: str
  stages: tuple[str, ...]
  depths: tuple[int, ...]
  bottleneck: bool = False
  width: int = 64
  axis_name: str | None = None
  zero_init_residual: bool = False

  available_stages = STAGES  # All that can be requested.
  min_side, can_train = 32, True  # Sides of the smallest images; whether it may be trained anew.

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 3'], train: bool = False) -> convolution.FeatureMaps:
    """Return the feature maps of the requested stages, by name.

    In training, BatchNorm normalizes by batch statistics and updates its running statistics.
    """
    x = convolution.Conv(64, 7, 2, name='conv1')(x, train)
    x = nn.relu(convolution.BatchNorm(not train, axis_name=self.axis_name, name='bn1')(x))
    x = (convolution.max_pool_custom_grad if train else convolution.max_pool)(x)
    outputs = {}
    for stage_index, (stage, depth) in enumerate(zip(STAGES, self.depths, strict=True)):
      for i in range(depth):
        stride = 2 if stage_index and not i else 1
        width = self.width << stage_index if self.bottleneck else None
        block = Block(
          64 << stage_index,
          stride,
          width,
          self.axis_name,
          self.zero_init_residual,
          name=f'{stage}_{i}',
        )
        x = block(x, train)
      if stage in self.stages:
        outputs[stage] = x
      if len(outputs) == len(set(self.stages)):
        break
    return outputs


class Block(nn.Module):
  """Residual block, basic or bottleneck.

  Attributes:
    channels: output channels of a basic block; a bottleneck has four times as many.
    stride: stride of the first 3x3 convolution.
    bottleneck_channels: channels inside a bottleneck; None for a basic block.
    axis_name: mesh axis over which training batches are sharded; None when not sharded.
    zero_init_residual: whether the scales of the last BatchNorm are initialized to 0.
  """

  channels: int
  stride: int
  bottleneck_channels: int | None
  axis_name: str | None
  zero_init_residual: bool

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool) -> Float[Array, 'b _h _w _c']:
    """Add the output of the convolutions to x, which is projected first if shapes differ."""
    if self.bottleneck_channels is None:
      layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
    else:
      width = self.bottleneck_channels
      layers = [(width, 1, 1), (width, 3, self.stride), (4 * self.channels, 1, 1)]
    batch_norm = functools.partial(
      convolution.BatchNorm, use_running_average=not train, axis_name=self.axis_name
    )
    y = x
    for i, layer in enumerate(layers, 1):
      y = convolution.Conv(*layer, name=f'conv{i}')(y, train)
      is_zero = self.zero_init_residual and i == len(layers)
      y = batch_norm(name=f'bn{i}', scale_init=convolution.scale_init(is_zero))(y)
      y = nn.relu(y) if i < len(layers) else y
    if x.shape != y.shape:
      x = convolution.Conv(y.shape[-1], 1, self.stride, name='downsample_0')(x, train)
      x = batch_norm(name='downsample_1')(x)
    return nn.relu(x + y)
