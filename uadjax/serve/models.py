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

_MAX_ACCELERATOR_BATCH = 8  # Images at once on an accelerator.


class ServedModel(NamedTuple):
  """A model that was warmed up.

  Attributes:
    name: by which requests call it.
    predictor: opened.
    sizes: of batches, which leave every score what it is.
  """

  name: str
  predictor: predictors.Predictor
  batch_sizes: tuple[int, ...]

  def describe(self) -> dict[str, Any]:
    """What users may want to know, as JSON can hold it."""
    model = self.predictor.model
    thresholds: calibration.Thresholds = model.thresholds
    return {
      'name': self.name,
      'detector': model.name,
      'computed_by': ', '.join(map(str, self.predictor.devices)),
      'batch_sizes': list(self.batch_sizes),
      'thresholds': {
        'image': thresholds.image_threshold,
        'review': thresholds.review_threshold,
        'pixel': thresholds.pixel_threshold,
      },
      'preprocessing': str(model.ops),
    }

  def make_batcher(self, on_batch: Callable[[int], Any]) -> batching.Batcher:
    """What computes for it; to be called where an event loop runs."""
    predictor = self.predictor
    return batching.Batcher(
      predictor.scorers, self.batch_sizes, predictor.max_concurrent_batches, on_batch
    )


def open_model(name: str, directory: Path, settings: Settings) -> ServedModel:
  """Open a model and compute once at each batch size; takes seconds.

  Raises:
    UserError: as `create_model` does.
  """
  on_cpu = mesh.select_devices(settings.device)[0].platform == 'cpu'
  # An accelerator is JAX's; on a CPU an inference runtime is faster.
  backend = settings.backend if settings.backend != 'auto' or on_cpu else 'jax'
  predictor = pipelines.create_model(
    model_dir=directory, device=settings.device, backend=backend, access=settings.access
  )
  # A CPU is busy with one: several together take as long, and who came first waits for the last
  # (experiments/README.md).
  max_batch_size = settings.batch or (1 if on_cpu else _MAX_ACCELERATOR_BATCH)
  ops = predictor.model.ops
  with progress.show_status(f'Warming up {name}'):
    sizes_per_device = [
      batching.exact_batch_sizes(scorer, ops.height, ops.width, max_batch_size)
      for scorer in predictor.scorers
    ]
  common_sizes = tuple(
    size
    for size in sizes_per_device[0]
    if all(size in device_sizes for device_sizes in sizes_per_device)
  )
  return ServedModel(name, predictor, common_sizes)
