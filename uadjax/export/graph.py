"""Graphs for export: functions from uint8 images to anomaly maps and scores, arrays included."""

from collections.abc import Callable
import functools
from typing import NamedTuple

from jax import numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, UInt8

import uadjax
from uadjax.data import region_of_interest, transforms
from uadjax.errors import ExportError, Setting
from uadjax.export import resize_in_graph, runtimes
from uadjax.model import model_dir

Outputs = tuple[ArrayLike, ArrayLike]  # Anomaly maps [b H W] and image scores [b].


class Graph(NamedTuple):
  """Function to be exported.

  Attributes:
    call: images [b height width 3] -> anomaly maps [b height width] and image scores [b].
    input_shape: batch size, height, width and 3; the batch size is None if it is free.
    metadata: JSON-compatible information for readers of the file.
  """

  call: Callable[[UInt8[Array, 'b H W 3']], Outputs]
  input_shape: tuple[int | None, int, int, int]
  metadata: runtimes.Metadata


def from_model(
  model: model_dir.Model, batch: int | None, camera_size: tuple[int, int] | None, quantize: str = ''
) -> Graph:
  """Build the graph of a model.

  Args:
    model: opened model directory.
    batch: fixed batch size; None for any size.
    camera_size: height and width of the camera's images, which the graph then resizes to network
      resolution, and its maps back; None for a graph that takes images at network resolution.
    quantize: how the graph will be quantized, for its metadata; '' for an exact graph.
  """
  ops, fitted = model.ops, model.fitted
  # Build the detector again, because jitted functions of the model may hold other traces.
  _, detector = model_dir.build_detector(model.config, model_dir.scoring_context(ops))
  score_fn = functools.partial(detector.score, fitted)
  if detector.export_score_fn is not None:
    score_fn = detector.export_score_fn(fitted)
  height, width = camera_size or (ops.height, ops.width)

  def call(images: UInt8[Array, 'b H W 3']) -> Outputs:
    if camera_size:
      frame = ops.frame(height, width)
      images = resize_in_graph.resize_images(images, frame, ops.height, ops.width)
    anomaly_maps, image_scores = score_fn(images)
    if camera_size:
      anomaly_maps = resize_in_graph.restore_maps(jnp.asarray(anomaly_maps), ops, height, width)
    return anomaly_maps, image_scores

  by_pillow = 'ops by Pillow, bilinear with antialiasing; see uadjax.data.transforms'
  if ops.is_tiled:
    by_pillow += '; one tile at a time, see uadjax.data.tiles for how to join the maps'
  if ops.has_blanks:
    by_pillow += f'; pixels outside of the region of interest are {region_of_interest.BLANK}'
  metadata = {
    'model_name': model.name,
    'uadjax': uadjax.__version__,
    'thresholds': model.thresholds._asdict(),
    'preprocessing': {
      'channels': 'RGB',
      **model.pixel_range.to_dict(),
      'height': height,
      'width': width,
      'ops': str(ops),
      'ops_in_graph': bool(camera_size),
      'how': 'none: pass the pixels of the camera' if camera_size else by_pillow,
    },
    'weights': model.weights._asdict(),
    'arrays_sha256': model.arrays_sha256,
    **({} if ops.region is None else {'region_sha256': ops.region.sha256}),
    'quantize': quantize,
  }
  return Graph(call, (batch, height, width, 3), metadata)


def input_ops(ops: transforms.Ops, camera_size: tuple[int, int] | None) -> transforms.Ops:
  """Return the operations from an image to the input of a graph.

  They are those of the model, unless the graph resizes images of `camera_size` (height and width)
  itself. The graph contains the region of interest, except that of tiles, which are blank outside.

  Raises:
    ExportError: the graph would have to cut tiles.
    DataError: the region of interest does not fit to the images of the camera.
  """
  if camera_size and ops.is_tiled:
    message = 'A graph scores one tile, so it cannot resize the images of a camera.'
    raise ExportError(message, hint=('Omit ', Setting('export.include_resize'), '.'))
  if not camera_size:
    return ops if ops.is_tiled else ops._replace(region=None)
  ops.require_fit(*camera_size)
  return transforms.parse('resize({}, {})'.format(*camera_size))


def first_line(error: Exception) -> str:
  """Return the first line of an error's message, or the error's class without a message."""
  return str(error).strip().partition('\n')[0] or type(error).__name__
