"""The models of a service: opened, warmed up, and each with a batcher of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from uadjax.distributed import mesh
from uadjax.inference import pipelines, predictor as predictors
from uadjax.model import calibration
from uadjax.serve import batching
from uadjax.serve.settings import Settings
from uadjax.system import progress

_MOST = 8  # Images at once on an accelerator.


class Opened(NamedTuple):
  """A model that was warmed up.

  Attributes:
    name: by which requests call it.
    predictor: opened.
    sizes: of batches, which leave every score what it is.
  """

  name: str
  predictor: predictors.Predictor
  sizes: tuple[int, ...]

  def about(self) -> dict[str, Any]:
    """What users may want to know, as JSON can hold it."""
    model = self.predictor.model
    limits: calibration.Limits = model.limits
    return {
      'name': self.name,
      'detector': model.name,
      'computed_by': ', '.join(map(str, self.predictor.devices)),
      'batch_sizes': list(self.sizes),
      'thresholds': {'image': limits.image, 'review': limits.review, 'pixel': limits.pixel},
      'preprocessing': str(model.ops),
    }

  def batcher(self, seen: Callable[[int], Any]) -> batching.Batcher:
    """What computes for it; to be called where an event loop runs."""
    one = self.predictor
    return batching.Batcher(one.scorers, self.sizes, one.at_once, seen)


def opened(name: str, directory: Path, settings: Settings) -> Opened:
  """Open a model and compute once at each batch size; takes seconds.

  Raises:
    UserError: as `create_model` does.
  """
  on_cpu = mesh.devices(settings.device)[0].platform == 'cpu'
  # An accelerator is JAX's; on a CPU an inference runtime is faster.
  chosen = settings.backend if settings.backend != 'auto' or on_cpu else 'jax'
  one = pipelines.create_model(
    model_dir=directory, device=settings.device, backend=chosen, access=settings.access
  )
  # A CPU is busy with one: several together take as long, and who came first waits for the last
  # (experiments/README.md).
  most = settings.batch or (1 if on_cpu else _MOST)
  ops = one.model.ops
  with progress.busy(f'Warming up {name}'):
    sizes = [batching.faithful(run, ops.height, ops.width, most) for run in one.scorers]
  common = tuple(size for size in sizes[0] if all(size in others for others in sizes))
  return Opened(name, one, common)
