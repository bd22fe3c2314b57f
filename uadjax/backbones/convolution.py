"""Convolution and max-pooling with custom gradients that are fast on a CPU.

XLA's own gradients suit accelerators. On a CPU, its weight gradient treats the incoming gradient as
an enormous kernel, and its max-pooling gradient scatters element by element. The gradients here
shorten a training step by a third (experiments/README.md). Inference uses the plain operations,
because exporters do not support custom derivatives.

All products are of full float32 precision. By default, accelerators would round their factors to 8
or 11 bits of mantissa, and the scores of a model would depend on the device.

Axes: b batch, h height, w width, c input channels, o output channels, k kernel.
"""

import functools

from flax import linen as nn
import jax
from jax import lax, numpy as jnp
from jaxtyping import Array, Float

FeatureMaps = dict[str, Float[Array, 'b _h _w _c']]  # Of the requested stages, by name.

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
_EXACT = lax.Precision.HIGHEST
_CACHE_BYTES = 512 << 10  # Patches of one product must fit into the L2 cache of a core.

# torchvision initializes kernels by their fan-out, from a normal distribution without truncation.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)  # As torchvision's.


def scale_init(is_zero: bool) -> nn.initializers.Initializer:
  """Return the initializer of BatchNorm's scales: all 0 or all 1."""
  return nn.initializers.zeros if is_zero else nn.initializers.ones


def conv(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c o'], stride: int = 1
) -> Float[Array, 'b _h _w o']:
  """Convolve with a square kernel of odd size and padding of half the kernel size."""
  half = kernel.shape[0] // 2
  padding = ((half, half), (half, half))
  return lax.conv_general_dilated(
    x, kernel, (stride,) * 2, padding, dimension_numbers=_LAYOUT, precision=_EXACT
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_custom_grad(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'k k c o'], stride: int = 1
) -> Float[Array, 'b _h _w o']:
  """Convolve like `conv`, with a custom weight gradient that is used on a CPU only."""
  return conv(x, kernel, stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
  return conv(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
  x, kernel = residuals
  (dx,) = jax.linear_transpose(lambda x: conv(x, kernel, stride), x)(g)

  def default_weight_gradient(x: Array, g: Array) -> Array:
    return jax.linear_transpose(lambda kernel: conv(x, kernel, stride), kernel)(g)[0]

  cpu_weight_gradient = functools.partial(
    _weight_gradient, kernel_size=kernel.shape[0], stride=stride
  )
  return dx, lax.platform_dependent(x, g, cpu=cpu_weight_gradient, default=default_weight_gradient)


conv_custom_grad.defvjp(_forward, _backward)


def _weight_gradient(x: Array, g: Array, kernel_size: int, stride: int) -> Array:
  """Return the kernel gradient: the product of all patches of x with g.

  A few rows of g are processed at a time, so that their patches stay in the cache.
  """
  k, half = kernel_size, kernel_size // 2
  x = jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
  (b, h, w, o), (*_, columns, c) = g.shape, x.shape
  # The more output channels, the more rows, because every product is added to all of the gradient.
  num_positions = max(_CACHE_BYTES // (k * k * c * x.dtype.itemsize), o)
  rows = _largest_divisor(h, num_positions // w)
  images = _largest_divisor(b, num_positions // (h * w))
  chunks_per_image = h // rows

  def add_chunk(index: Array, total: Array) -> Array:
    image, row = index // chunks_per_image * images, index % chunks_per_image * rows
    x_size = (images, (rows - 1) * stride + k, columns, c)
    x_chunk = lax.dynamic_slice(x, (image, row * stride, 0, 0), x_size)
    g_chunk = lax.dynamic_slice(g, (image, row, 0, 0), (images, rows, w, o))
    patches = jnp.concatenate(
      [
        x_chunk[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride]
        for i in range(k)
        for j in range(k)
      ],
      axis=-1,
    )
    return total + jnp.einsum('bhwm,bhwo->mo', patches, g_chunk, precision=_EXACT)

  num_chunks = b // images * chunks_per_image
  total = lax.fori_loop(0, num_chunks, add_chunk, jnp.zeros((k * k * c, o), x.dtype))
  return total.reshape(k, k, c, o)


def _largest_divisor(n: int, limit: int) -> int:
  """Return the largest divisor of n up to `limit`, at least 1."""
  return next(divisor for divisor in range(max(min(n, limit), 1), 0, -1) if n % divisor == 0)


def space_to_depth(x: Float[Array, 'b h w c'], block_size: int) -> Float[Array, 'b _h _w _c']:
  """Move square blocks of pixels into channels, with zero padding at the bottom and right."""
  _, h, w, c = x.shape
  rows, columns = -(-h // block_size), -(-w // block_size)
  x = jnp.pad(x, ((0, 0), (0, rows * block_size - h), (0, columns * block_size - w), (0, 0)))
  x = x.reshape(-1, rows, block_size, columns, block_size, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(-1, rows, columns, block_size * block_size * c)


def max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b _h _w c']:
  """Max-pool 3x3 with stride 2 and zero padding; x must come from a ReLU.

  For such x, zero padding is equivalent to padding by -inf. The padding is a separate operation and
  arguments are passed by keyword, because jax2onnx silently drops the padding of a pool.
  """
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding='VALID')


@jax.custom_vjp
def max_pool_custom_grad(x: Float[Array, 'b h w c']) -> Float[Array, 'b _h _w c']:
  """Max-pool like `max_pool`, with a gradient that needs no scatter and is shared by ties."""
  return max_pool(x)


def _max_of_slices(x: Array) -> Array:
  height, width = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
  x = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
  x = functools.reduce(jnp.maximum, [x[:, i : i + 2 * height : 2] for i in range(3)])
  return functools.reduce(jnp.maximum, [x[:, :, j : j + 2 * width : 2] for j in range(3)])


max_pool_custom_grad.defvjp(
  lambda x: (max_pool(x), x), lambda x, g: jax.vjp(_max_of_slices, x)[1](g)
)


class Conv(nn.Module):
  """Convolution without bias; its only parameter is `kernel` (HWIO)."""

  features: int
  kernel_size: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c'], train: bool) -> Float[Array, 'b _h _w o']:
    """Convolve x; in training, with the weight gradient that is fast on a CPU."""
    shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
    kernel = self.param('kernel', _KERNEL_INIT, shape)
    return (conv_custom_grad if train else conv)(x, kernel, self.stride)
