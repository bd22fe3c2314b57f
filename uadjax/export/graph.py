"""Graphs for export: functions from uint8 images to anomaly maps and scores, arrays included."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, UInt8

import uadjax
from uadjax.data import transforms
from uadjax.detectors.base import RunContext
from uadjax.export import resize_in_graph, runtimes
from uadjax.model import model_dir

Outputs = tuple[ArrayLike, ArrayLike]  # Anomaly maps [b H W] and image scores [b].


class Graph(NamedTuple):
  """Function to be exported.

  Attributes:
    call: images [b height width 3] -> anomaly maps [b height width] and image scores [b].
    height: height of the images, in pixels.
    width: width of the images, in pixels.
    batch: fixed batch size; None for any size.
    metadata: JSON-compatible information for readers of the file.
  """

  call: Callable[[UInt8[Array, 'b H W 3']], Outputs]
  height: int
  width: int
  batch: int | None
  metadata: runtimes.Metadata

  @property
  def input_shape(self) -> tuple[int | None, int, int, int]:
    """Shape of the input images, its first entry None when the batch size is free."""
    return self.batch, self.height, self.width, 3


def from_model(
  model: model_dir.Model, batch: int | None, camera_size: tuple[int, int] | None
) -> Graph:
  """Build the graph of a model.

  Args:
    model: opened model directory.
    batch: fixed batch size; None for any size.
    camera_size: height and width of the camera's images, which the graph then resizes to network
      resolution, and its maps back; None for a graph that takes images at network resolution.
  """
  ops, fitted = model.ops, model.fitted
  # Build the detector again, because jitted functions of the model may hold other traces.
  _, detector = model_dir.build_detector(model.config, RunContext(ops.height, ops.width))
  score_fn = functools.partial(detector.score, fitted)
  if detector.export_score_fn is not None:
    score_fn = detector.export_score_fn(fitted)
  height, width = camera_size or (ops.height, ops.width)

  def call(images: UInt8[Array, 'b H W 3']) -> Outputs:
    if not camera_size:
      anomaly_maps, image_scores = score_fn(images)
      return anomaly_maps, image_scores
    frame = ops.frame(height, width)
    images = resize_in_graph.resize_images(images, frame, ops.height, ops.width)
    anomaly_maps, image_scores = score_fn(images)
    return resize_in_graph.restore_maps(jnp.asarray(anomaly_maps), ops, height, width), image_scores

  return Graph(call, height, width, batch, _metadata(model, height, width, bool(camera_size)))


def _metadata(
  model: model_dir.Model, height: int, width: int, has_resize: bool
) -> runtimes.Metadata:
  how = 'ops by Pillow, bilinear with antialiasing; see uadjax.data.image_io'
  return {
    'model_name': model.name,
    'uadjax': uadjax.__version__,
    'thresholds': model.thresholds._asdict(),
    'preprocessing': {
      'channels': 'RGB',
      'height': height,
      'width': width,
      'ops': str(model.ops),
      'ops_in_graph': has_resize,
      'how': 'none: pass the pixels of the camera' if has_resize else how,
    },
    'weights': model.weights._asdict(),
    'arrays_sha256': model.arrays_sha256,
  }


def array_bytes(model: model_dir.Model) -> int:
  """Return the total size in bytes of a model's arrays, all of which a graph contains."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.fitted))


def input_ops(ops: transforms.Ops, camera_size: tuple[int, int] | None) -> transforms.Ops:
  """Return the operations from an image to the input of a graph.

  They are those of the model, unless the graph resizes images of `camera_size` (height and width)
  itself.
  """
  return transforms.parse('resize({}, {})'.format(*camera_size)) if camera_size else ops


def first_line(error: Exception) -> str:
  """Return the first line of an error's message, or the error's class without a message."""
  return str(error).strip().partition('\n')[0] or type(error).__name__
