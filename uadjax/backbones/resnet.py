"""ResNet and Wide-ResNet with the tensors of torchvision (He et al. 2015, arXiv 1512.03385).

Bottlenecks have their stride on the 3x3 convolution (v1.5). Modules have torchvision's names, with
an underscore where a list is indexed: `layer1_0/conv1/kernel` is `layer1.0.conv1.weight`.

Axes: b batch, h height, w width, c channels.
"""

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
    """Return the feature maps of the requested stages, by name.

    In training, BatchNorm normalizes by batch statistics and updates its running statistics.
    """
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
  """Residual block, basic or bottleneck.

  Attributes:
    channels: output channels of a basic block; a bottleneck has four times as many.
    stride: stride of the first 3x3 convolution.
    bottleneck_channels: channels inside a bottleneck; None for a basic block.
    axis_name: mesh axis over which training batches are sharded; None when not sharded.
  """

  channels: int
  stride: int
  bottleneck_channels: int | None
  axis_name: str | None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool) -> Float[Array, 'b _h _w _c']:
    """Add the output of the convolutions to x, which is projected first if shapes differ."""
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
