"""A network of a few kernels, with the interface of the backbones, that compiles in little time."""

from flax import linen as nn
from jaxtyping import Array, Float

from uadjax.backbones import compact, convolution

CHANNELS = {'layer1': 8, 'layer2': 12}  # Of the stages, whose strides are 4 and 8.


class TinyNetwork(compact.Compact):
  """A stage is a convolution and a residual block of one convolution; attributes of `Compact`."""

  stages: tuple[str, ...] = tuple(CHANNELS)
  arch: str = 'tiny'

  available_stages = tuple(CHANNELS)

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w 3'], train: bool = False) -> convolution.FeatureMaps:
    outputs = {}
    for name, channels in CHANNELS.items():
      stride = 4 if name == 'layer1' else 2
      x = nn.relu(convolution.Conv(channels, 3, stride, name=f'{name}_conv1')(x, train))
      y = convolution.Conv(channels, 3, 1, name=f'{name}_conv2')(x, train)
      batch_norm = convolution.BatchNorm(
        not train,
        axis_name=self.axis_name,
        scale_init=convolution.scale_init(self.zero_init_residual),
        name=f'{name}_bn',
      )
      x = nn.relu(x + batch_norm(y))
      if name in self.stages:
        outputs[name] = x
    return {name: outputs[name] for name in self.stages}
