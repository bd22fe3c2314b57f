"""ResNet and Wide-ResNet, tensor for tensor torchvision's (He et al. 2015, arXiv 1512.03385).

Bottlenecks have their stride on the 3x3 convolution (v1.5). Modules bear torchvision's names, with
an underscore where a list is indexed: `layer1_0/conv1/kernel` is `layer1.0.conv1.weight`.

Letters: b batch, h w map, c channels.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from uadjax.backbones import convolution

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')


class ResNet(nn.Module):
  """A residual network up to the last stage asked for.

  Attributes:
    arch: its name, under which weights are published.
    stages: the stages returned; nothing after the last of them is computed or has parameters.
    depths: blocks in each stage.
    bottleneck: whether a block is 1x1, 3x3, 1x1 instead of two 3x3.
    width: channels of the 3x3 convolution of a first-stage bottleneck.
    axis: that a batch to train on is split over, for BatchNorm to see all of it.
  """

  arch: str
  stages: tuple[str, ...]
  depths: tuple[int, ...]
  bottleneck: bool = False
  width: int = 64
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w 3'], train: bool = False
  ) -> dict[str, Float[Array, 'b _h _w _c']]:
    """Compute the stages; in training, BatchNorm sees the batch and moves its statistics."""
    x = convolution.Conv(64, 7, 2, name='conv1')(x, train)
    x = nn.relu(_batch_norm('bn1', train, self.axis_name)(x))
    x = (convolution.max_pool_custom_grad if train else convolution.max_pool)(x)
    outputs = {}
    for stage_index, (stage, depth) in enumerate(zip(STAGES, self.depths, strict=True)):
      for i in range(depth):
        x = Block(
          channels=64 << stage_index,
          stride=2 if stage_index and not i else 1,
          bottleneck_channels=self.width << stage_index if self.bottleneck else None,
          axis_name=self.axis_name,
          name=f'{stage}_{i}',
        )(x, train)
      if stage in self.stages:
        outputs[stage] = x
      if len(outputs) == len(set(self.stages)):
        break
    return outputs


class Block(nn.Module):
  """A residual block: basic, or a bottleneck of `inner` channels and four times the output."""

  channels: int
  stride: int
  bottleneck_channels: int | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool) -> Float[Array, 'b _h _w _c']:
    """Add what the convolutions make of x to x, through a projection where shapes differ."""
    if self.bottleneck_channels is None:
      kernel_sizes, strides = (3, 3), (self.stride, 1)
      features = (self.channels, self.channels)
    else:
      kernel_sizes, strides = (1, 3, 1), (1, self.stride, 1)
      features = (self.bottleneck_channels, self.bottleneck_channels, 4 * self.channels)

    y = x
    for i, conv_arguments in enumerate(zip(features, kernel_sizes, strides, strict=True), 1):
      y = convolution.Conv(*conv_arguments, name=f'conv{i}')(y, train)
      y = _batch_norm(f'bn{i}', train, self.axis_name)(y)
      y = nn.relu(y) if i < len(features) else y
    if x.shape != y.shape:
      x = convolution.Conv(features[-1], 1, self.stride, name='downsample_0')(x, train)
      x = _batch_norm('downsample_1', train, self.axis_name)(x)
    return nn.relu(x + y)


def _batch_norm(name: str, train: bool, axis_name: str | None) -> nn.BatchNorm:
  use_running_average = not train
  return nn.BatchNorm(
    use_running_average, axis_name=axis_name, momentum=0.9, epsilon=1e-5, name=name
  )
