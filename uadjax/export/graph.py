"""What is exported: a function from uint8 images to a map and a score, its arrays inside."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, UInt8
import numpy as np

import uadjax
from uadjax.data import transforms
from uadjax.detectors.base import RunContext
from uadjax.export import resize_in_graph
from uadjax.model import model_dir
from uadjax.types import Scores

Outputs = tuple[Any, Any]  # Map [b H W] and score [b].


class Graph(NamedTuple):
  """A function to be written in some format.

  Attributes:
    call: images [b height width 3] -> map [b height width] and score [b].
    height: of its images, in pixels.
    width: likewise.
    batch: how many images it takes at once; None for any number.
    about: what readers of the file should know, as JSON can hold it.
  """

  call: Callable[[UInt8[Array, 'b H W 3']], Outputs]
  height: int
  width: int
  batch: int | None
  metadata: dict[str, Any]

  @property
  def input_shape(self) -> tuple[int | None, int, int, int]:
    """Of its images."""
    return self.batch, self.height, self.width, 3

  def input_spec(self, batch: int = 1) -> jax.ShapeDtypeStruct:
    """What it takes, for tracing; so many images where it takes any number."""
    return jax.ShapeDtypeStruct((self.batch or batch, *self.input_shape[1:]), np.uint8)


def from_model(
  model: model_dir.Model, batch: int | None, camera_size: tuple[int, int] | None
) -> Graph:
  """The function of a model.

  Args:
    model: opened.
    batch: number of images, None for any.
    camera: height and width of the camera's images, which are then resized in the graph, and the
      map back; None to take images at network size.
  """
  ops, fitted = model.ops, model.fitted
  # Made anew: of what was jitted, a trace of some other purpose may be kept.
  _, detector = model_dir.build_detector(model.config, RunContext(ops.height, ops.width))
  if detector.export_score_fn is None:
    score_fn: Callable[[Any], Scores] = lambda images: detector.score(fitted, images)  # noqa: E731
  else:
    score_fn = detector.export_score_fn(fitted)
  height, width = camera_size or (ops.height, ops.width)

  def call(images: UInt8[Array, 'b H W 3']) -> Outputs:
    if camera_size:
      images = resize_in_graph.resize_images(
        images, ops.frame(height, width), ops.height, ops.width
      )
    anomaly_maps, image_scores = score_fn(images)
    return (
      resize_in_graph.restore_maps(jnp.asarray(anomaly_maps), ops, height, width)
      if camera_size
      else anomaly_maps
    ), image_scores

  return Graph(call, height, width, batch, metadata(model, height, width, camera_size is not None))


def metadata(model: model_dir.Model, height: int, width: int, has_resize: bool) -> dict[str, Any]:
  """What goes beside every graph: thresholds, the pixel path, origins."""
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
      'how': 'none: give it the pixels of the camera'
      if has_resize
      else 'ops by Pillow, bilinear with antialiasing; see uadjax.data.image_io',
    },
    'weights': model.weights._asdict(),
    'arrays_sha256': model_dir.read_info(model.directory).arrays_sha256,
  }


def array_bytes(model: model_dir.Model) -> int:
  """Bytes of a model's arrays, which a graph holds all."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.fitted))


def prepare_inputs(
  ops: transforms.Ops, image: UInt8[np.ndarray, 'h w 3'], camera_size: tuple[int, int] | None
):
  """An image as a graph takes it, and as the network does."""
  if not camera_size:
    graph_input = ops.apply(image)
    return graph_input, graph_input
  graph_input = transforms.parse(f'resize({camera_size[0]}, {camera_size[1]})').apply(image)
  return graph_input, ops.apply(graph_input)
