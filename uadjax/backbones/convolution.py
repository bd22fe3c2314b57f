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
_CACHE_BYTES = 8 << 20  # Shifted images of one product must fit into a CPU's cache.

# torchvision initializes kernels by their fan-out, from a normal distribution without truncation.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)  # As torchvision's.


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
  """Return the kernel gradient, all taps from one matrix product.

  The factors are x shifted horizontally and g shifted vertically. A few images are processed at a
  time, so that the shifted copies stay in the cache.
  """
  x, taps = _stride_to_channels(x, g, kernel_size, stride)
  (b, rows, _, c), (_, _, width, o) = x.shape, g.shape
  g = jnp.pad(g, ((0, 0), (taps - 1, taps - 1), (0, 0), (0, 0)))

  def accumulate(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
    x, g = chunk
    shifted_x = jnp.concatenate([x[:, :, j : j + width] for j in range(taps)], axis=-1)
    shifted_g = jnp.concatenate([g[:, i : i + rows] for i in reversed(range(taps))], axis=-1)
    return total + jnp.einsum('bhwm,bhwn->mn', shifted_x, shifted_g, precision=_EXACT), None

  image_bytes = rows * width * taps * c * x.dtype.itemsize
  n = max(n for n in range(1, b + 1) if b % n == 0 and (n == 1 or n * image_bytes <= _CACHE_BYTES))
  chunks = x.reshape(b // n, n, *x.shape[1:]), g.reshape(b // n, n, *g.shape[1:])
  total, _ = lax.scan(accumulate, jnp.zeros((taps * c, taps * o), x.dtype), chunks)
  kernel = total.reshape(taps, c, taps, o).transpose(2, 0, 1, 3)
  if kernel_size == 1 or stride == 1:
    return kernel
  full_kernel = kernel.reshape(taps, taps, stride, stride, c // stride**2, o)
  full_kernel = full_kernel.transpose(0, 2, 1, 3, 4, 5)
  return full_kernel.reshape(taps * stride, taps * stride, -1, o)[:kernel_size, :kernel_size]


def _stride_to_channels(x: Array, g: Array, kernel_size: int, stride: int) -> tuple[Array, int]:
  """Pad x and move blocks of stride x stride pixels into channels.

  Returns:
    Input and kernel size of an equivalent convolution without stride or padding.
  """
  if kernel_size == 1:
    return x[:, ::stride, ::stride], 1
  (_, height, width, _), (b, h, w, _) = x.shape, g.shape
  taps, half = -(-kernel_size // stride), kernel_size // 2
  rows, columns = (h + taps - 1) * stride, (w + taps - 1) * stride
  # Where no stride reaches the last row or column, it is cut off, so the padding is at least zero.
  end_padding = max(rows - half - height, 0), max(columns - half - width, 0)
  x = jnp.pad(x, ((0, 0), (half, end_padding[0]), (half, end_padding[1]), (0, 0)))
  x = x[:, :rows, :columns]
  x = x.reshape(b, h + taps - 1, stride, w + taps - 1, stride, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h + taps - 1, w + taps - 1, -1), taps


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
