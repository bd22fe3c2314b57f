"""Winograd's algorithm for 3x3 convolutions of ONNX graphs, in products with constant matrices.

On x86 no runtime has it. A tile of 4x4 outputs takes 36 instead of 144 multiplications per pair of
channels: its 6x6 inputs are transformed, multiplied by the transformed kernel and transformed back.
The transforms are linear maps of rows and of columns, so each is a matrix for all tiles of an axis.

Lavin and Gray 2015, 'Fast Algorithms for Convolutional Neural Networks', arXiv 1509.09308,
F(4x4, 3x3) of section 4.1. Instead of at the points 0, ±1 and ±2, polynomials are evaluated at 0,
±√½ and ±√2, which reduces the largest rounding error to a quarter.

Letters: p points of all tiles of an axis, c input channels, o output channels.
"""

import math
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import onnx_ir
from onnx_ir import tape as tapes

_TILE = 4  # Outputs of a tile along an axis.
_TILE_INPUTS = 6
# On smaller maps, the time goes into reading the transformed kernels.
_MIN_PIXELS = 256
_MAX_CHANNELS = 256
# A value of a map takes 7.5 multiplications per pixel of an axis to transform it and back, and
# saves 6.75 per channel. The transforms read and write more memory, so they must be much cheaper.
_MIN_CHANNELS_PER_PIXEL = 4


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return the matrices of F(4, 3) that transform inputs, kernels and products: [6 6 | 3], [4 6].

  The last row or column belongs to the point at infinity.
  """
  points = np.array([0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2)])
  others = [np.delete(points, i) for i in range(len(points))]
  # Coefficients of the polynomials that are zero at all other points, the constant one first.
  inputs = np.array([*(np.append(np.poly(x)[::-1], 0) for x in others), np.poly(points)[::-1]])
  scales = [np.prod(point - x) for point, x in zip(points, others, strict=True)]
  kernels = np.vander(points, 3, increasing=True) / np.array(scales)[:, None]
  products = np.vander(points, _TILE, increasing=True)
  return (
    inputs,
    np.vstack([kernels, np.eye(3)[-1]]),
    np.vstack([products, np.eye(_TILE)[-1]]).T,
  )


_INPUTS, _KERNELS, _PRODUCTS = _transforms()


def input_matrix(size: int) -> Float[np.ndarray, 'p {size}']:
  """Return the matrix that transforms an axis, padded with zeros: rows by point, then by tile."""
  num_tiles = -(-size // _TILE)
  matrix = np.zeros((_TILE_INPUTS, num_tiles, num_tiles * _TILE + 2))
  for tile in range(num_tiles):
    start = tile * _TILE
    matrix[:, tile, start : start + _TILE_INPUTS] = _INPUTS
  return matrix[:, :, 1 : size + 1].reshape(-1, size).astype(np.float32)


def output_matrix(size: int) -> Float[np.ndarray, '{size} p']:
  """Return the matrix that transforms products, by point and tile, to the outputs of an axis."""
  num_tiles = -(-size // _TILE)
  matrix = np.einsum('ip,tu->tipu', _PRODUCTS, np.eye(num_tiles))
  return matrix.reshape(num_tiles * _TILE, -1)[:size].astype(np.float32)


class _Convolution(NamedTuple):
  """3x3 convolution with stride 1 and a padding of 1.

  Attributes:
    x: input [b c height width].
    kernel: weights [o c 3 3].
    bias: one value per output channel, if any.
    height: height of input and output.
    width: width of input and output.
  """

  x: onnx_ir.Value
  kernel: np.ndarray
  bias: onnx_ir.Value | None
  height: int
  width: int


def replace_convolutions(model: onnx_ir.Model) -> None:
  """Replace the convolutions that become faster, in place."""
  for node in [*model.graph]:
    convolution = _parse(node)
    if convolution is None or not _becomes_faster(convolution):
      continue
    tape = tapes.Tape()
    output = _convolve(tape, convolution, node.outputs[0].name or '')
    for array in tape.initializers:
      model.graph.register_initializer(array)
    onnx_ir.convenience.replace_nodes_and_values(
      model.graph, node, [node], tape.nodes, node.outputs, [output]
    )


def _parse(node: onnx_ir.Node) -> _Convolution | None:
  """Return the convolution of a node; None for other operations and other convolutions."""
  if node.op_type != 'Conv':
    return None
  (x, weights, *bias), shape, attributes = node.inputs, node.outputs[0].shape, node.attributes
  kernel = None if weights is None else weights.const_value
  if x is None or kernel is None or shape is None or kernel.shape.numpy()[2:] != (3, 3):
    return None
  _, _, height, width = shape
  if not isinstance(height, int) or not isinstance(width, int):
    return None
  steps = *attributes.get_ints('strides', ()), *attributes.get_ints('dilations', ())
  padding, groups = attributes.get_ints('pads', ()), attributes.get_int('group', 1)
  if any(step != 1 for step in steps) or tuple(padding) != (1, 1, 1, 1) or groups != 1:
    return None
  return _Convolution(x, kernel.numpy(), bias[0] if bias else None, height, width)


def _becomes_faster(convolution: _Convolution) -> bool:
  channels, size = convolution.kernel.shape[:2], (convolution.height, convolution.width)
  return (
    math.prod(size) >= _MIN_PIXELS
    and max(channels) <= _MAX_CHANNELS
    and min(channels) >= _MIN_CHANNELS_PER_PIXEL * max(size)
  )


def _convolve(tape: tapes.Tape, convolution: _Convolution, name: str) -> onnx_ir.Value:
  """Record the operations of a convolution on a tape, and return their result.

  Args:
    tape: tape for operations and arrays.
    convolution: what to compute.
    name: beginning of the arrays' names.
  """
  x, kernel, bias, height, width = convolution
  o, c = kernel.shape[:2]
  rows, columns = input_matrix(height), input_matrix(width)
  points, t, u = _TILE_INPUTS, len(rows) // _TILE_INPUTS, len(columns) // _TILE_INPUTS

  def constant(array: np.ndarray) -> onnx_ir.Value:
    return tape.initializer(onnx_ir.tensor(array, name=f'{name}_{len(tape.initializers)}'))

  def reshape(x: onnx_ir.Value, *shape: int) -> onnx_ir.Value:
    return tape.op('Reshape', [x, constant(np.array(shape))])

  def transpose(x: onnx_ir.Value, *axes: int) -> onnx_ir.Value:
    return tape.op('Transpose', [x], {'perm': axes})

  def multiply(a: np.ndarray, b: onnx_ir.Value) -> onnx_ir.Value:
    return tape.op('MatMul', [constant(a), b])

  # Runtimes compute this product once, when they open the file, which stays small.
  kernel_matrix = np.kron(_KERNELS, _KERNELS).astype(np.float32)
  kernels = multiply(kernel_matrix, constant(kernel.transpose(2, 3, 1, 0).reshape(9, c * o)))
  x = multiply(rows, reshape(transpose(x, 0, 2, 3, 1), -1, height, width * c))
  x = multiply(columns, reshape(x, -1, width, c))
  # The points become the first axes, and one product takes all images and tiles of a point.
  x = transpose(reshape(x, -1, points, t, points, u * c), 1, 3, 0, 2, 4)
  x = tape.op('MatMul', [reshape(x, points**2, -1, c), reshape(kernels, points**2, c, o)])
  x = transpose(reshape(x, points, points, -1, t, u * o), 2, 0, 3, 1, 4)
  x = multiply(output_matrix(height), reshape(x, -1, points * t, points * u * o))
  x = multiply(output_matrix(width), reshape(x, -1, points * u, o))
  x = reshape(x, -1, height, width, o)
  return transpose(x if bias is None else tape.op('Add', [x, bias]), 0, 3, 1, 2)
