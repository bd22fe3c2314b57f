"""The program that scores the test images, compiled while the thresholds are calibrated."""

from concurrent import futures

import jax

from uadjax.data import transforms
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.model import scorer
from uadjax.model.model_dir import Model
from uadjax.training.settings import Settings
from uadjax.types import PyTree


class ScoreProgram:
  """Compiles the program of an evaluation in a thread, as calibration leaves much of a core idle.

  The model that is evaluated is the one in the model directory. It only takes over the program, and
  only if that is for arrays of the same shapes.
  """

  def __init__(self, config: Settings):
    """Create a program that is not compiled yet."""
    self._config = config
    self._program: tuple[PyTree, futures.Future] | None = None

  def compile(self, detector: Detector, fitted: PyTree) -> None:
    """Start to compile the program, unless the arrays may be sharded."""
    if detector.sharding_specs or processes.is_multiprocess():
      return
    config, ops = self._config, transforms.parse(self._config.data.ops)
    shapes = _shapes(fitted)
    mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
    arguments = shapes, mesh, config.evaluate.batch_size, (ops.height, ops.width)
    executor = futures.ThreadPoolExecutor(1, 'uadjax-compile')
    self._program = shapes, executor.submit(scorer.compile_for_mesh, detector.score, *arguments)
    executor.shutdown(wait=False)

  def give_to(self, model: Model) -> Model:
    """Return the model with the program, which is waited for, if it is for the model's arrays."""
    if self._program is None or self._program[0] != _shapes(model.fitted):
      return model
    return model._replace(score=self._program[1].result())


def _shapes(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
