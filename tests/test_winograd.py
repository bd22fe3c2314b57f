"""Winograd's algorithm computes the convolutions that it replaces."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
import onnx_ir
import onnxruntime
import pytest

from uadjax.export import onnx as onnx_files, winograd

CHANNELS = 128


def _convolution(height, width, bias=True, channels=CHANNELS, **attributes):
  """Return a model of one convolution, whose kernel has outputs of about one."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(channels, channels, 3, 3)) / np.sqrt(9 * channels)
  arrays = {'kernel': kernel, 'bias': rng.normal(size=channels)}
  names = ['image', 'kernel', 'bias'][: 3 if bias else 2]
  attributes = {'pads': [1] * 4, **attributes}
  node = helper.make_node('Conv', names, ['map'], **attributes)
  graph = helper.make_graph(
    [node],
    'convolution',
    [helper.make_tensor_value_info('image', 1, ['B', channels, height, width])],
    [helper.make_tensor_value_info('map', 1, None)],
    [numpy_helper.from_array(arrays[name].astype(np.float32), name) for name in names[1:]],
  )
  opset = helper.make_opsetid('', 18)
  model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
  return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))


def _run(model, x):
  data = onnx_ir.to_proto(model).SerializeToString()
  session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
  return session.run(None, {'image': x})[0]


def _directly(model, x):
  """Return the sum of nine products, in double precision."""
  arrays = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
  kernel = arrays['kernel'].astype(np.float64)
  height, width = x.shape[2:]
  padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
  total = np.zeros(())
  for i in range(3):
    for j in range(3):
      window = padded[:, :, i : i + height, j : j + width]
      total = total + np.einsum('oc,bchw->bohw', kernel[:, :, i, j], window)
  return total + arrays['bias'][:, None, None] if 'bias' in arrays else total


@pytest.mark.parametrize('size', [(16, 16), (20, 17), (19, 30)])
def test_outputs_are_those_of_a_convolution_at_any_batch(size):
  model = _convolution(*size, bias=size != (16, 16))
  expected = {}
  for batch in (1, 3):
    x = np.random.default_rng(batch).normal(size=(batch, CHANNELS, *size)).astype(np.float32)
    expected[batch] = x, _directly(model, x)
  winograd.replace_convolutions(model)
  onnx_files.remove_unused(model)
  assert 'Conv' not in {node.op_type for node in model.graph}
  for x, y in expected.values():
    # Outputs are about one. The points 0, ±1 and ±2 would have errors of up to 4e-5.
    np.testing.assert_allclose(_run(model, x), y, rtol=0, atol=1.5e-5)


def test_transforms_are_exact_in_one_dimension():
  rng = np.random.default_rng(0)
  for size in (4, 7, 16):
    x, kernel = rng.normal(size=size), rng.normal(size=3)
    values = winograd.input_matrix(size) @ x
    weights = np.repeat(winograd._KERNELS @ kernel, len(values) // 6)
    y = winograd.output_matrix(size) @ (weights * values)
    np.testing.assert_allclose(y, np.correlate(np.pad(x, 1), kernel), atol=1e-5)


def test_only_convolutions_that_become_faster_are_replaced():
  others = {
    'stride': {'strides': [2, 2]},
    'dilation': {'dilations': [2, 2], 'pads': [2] * 4},
    'padding': {'pads': [0, 1, 1, 1]},
    'few channels': {'channels': 32},
  }
  for name, options in others.items():
    model = _convolution(16, 16, **options)
    winograd.replace_convolutions(model)
    assert [node.op_type for node in model.graph] == ['Conv'], name
  for size in ((8, 8), (64, 16)):
    model = _convolution(*size)
    winograd.replace_convolutions(model)
    assert [node.op_type for node in model.graph] == ['Conv'], size
