"""Models of the service: opening, warm-up, and batchers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from uadjax.distributed import mesh
from uadjax.inference import pipelines, predictor as predictors
from uadjax.model import calibration
from uadjax.serve import batching
from uadjax.serve.settings import Settings
from uadjax.system import progress

_MAX_ACCELERATOR_BATCH = 8


class ServedModel(NamedTuple):
  """Model that is open and warmed up.

  Attributes:
    name: name of the model in requests.
    predictor: predictor of the model.
    batch_sizes: batch sizes, ascending, at which predictions equal those of a full batch exactly.
  """

  name: str
  predictor: predictors.Predictor
  batch_sizes: tuple[int, ...]

  def describe(self) -> dict[str, Any]:
    """Return name, detector, devices, thresholds and preprocessing, ready for JSON."""
    model = self.predictor.model
    thresholds: calibration.Thresholds = model.thresholds
    return {
      'name': self.name,
      'detector': model.name,
      'computed_by': ', '.join(map(str, self.predictor.devices)),
      'batch_sizes': list(self.batch_sizes),
      'thresholds': {
        'imageThreshold': thresholds.image_threshold,
        'reviewThreshold': thresholds.review_threshold,
        'pixelThreshold': thresholds.pixel_threshold,
      },
      'preprocessing': str(model.ops),
    }

  def make_batcher(self, on_batch: Callable[[int], Any]) -> batching.Batcher:
    """Start a batcher for the model; requires a running event loop."""
    predictor = self.predictor
    return batching.Batcher(
      predictor.scorers, self.batch_sizes, predictor.max_concurrent_batches, on_batch
    )


def open_model(name: str, directory: Path, settings: Settings) -> ServedModel:
  """Open a model and run it once at each batch size, which takes seconds.

  Raises:
    UserError: the model cannot be opened; see `pipelines.create_model`.
  """
  on_cpu = mesh.select_devices(settings.device)[0].platform == 'cpu'
  # Accelerators are used through JAX; on a CPU an inference runtime is faster.
  backend = settings.backend if settings.backend != 'auto' or on_cpu else 'jax'
  predictor = pipelines.create_model(
    model_dir=directory, device=settings.device, backend=backend, access=settings.access
  )
  # One image occupies a whole CPU: a batch takes as long as its images one after another, and the
  # first would wait for the last (experiments/README.md).
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
