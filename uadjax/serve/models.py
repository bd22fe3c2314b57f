"""Models of the service: opening, warm-up, and batchers."""

import base64
from pathlib import Path
from typing import NamedTuple

from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.distributed import mesh
from uadjax.inference import pipelines
from uadjax.inference.predictor import Predictor
from uadjax.serve import batching, responses
from uadjax.serve.settings import Settings
from uadjax.system import progress

_MAX_ACCELERATOR_BATCH = 8
_MAX_REGION_SIDE = 1024  # Of the picture of a region of interest, in pixels.


class ServedModel(NamedTuple):
  """Model that is open and warmed up.

  Attributes:
    name: name of the model in requests.
    predictor: predictor of the model; at the batch sizes of its scorer, predictions equal those of
      a full batch exactly.
    failure: why the model cannot score images; '' if it can.
  """

  name: str
  predictor: Predictor
  failure: str = ''

  def describe(self) -> dict[str, object]:
    """Return name, readiness, detector, devices, thresholds and others, ready for JSON."""
    model = self.predictor.model
    return {
      'name': self.name,
      'ready': not self.failure,
      'reason': self.failure,
      'detector': model.name,
      'directory': str(model.directory),
      'computed_by': ', '.join(map(str, self.predictor.devices)),
      'batch_sizes': list(self.predictor.scorer.batch_sizes),
      'thresholds': responses.thresholds_in_camel_case(model.thresholds),
      'preprocessing': str(model.ops),
    }

  def encode_region(self) -> str | None:
    """Return the region of interest as a PNG in base64, reduced if it is large; None for none."""
    region = self.predictor.model.ops.region
    if region is None:
      return None
    h, w = region.mask.shape
    scale = min(1.0, _MAX_REGION_SIDE / max(h, w))
    reduced = RegionOfInterest(region.resized(max(1, round(scale * h)), max(1, round(scale * w))))
    return base64.b64encode(reduced.to_png()).decode()


def open_model(name: str, directory: Path, settings: Settings) -> ServedModel:
  """Open a model and run it once at each batch size, which takes seconds.

  A model whose test inference fails is returned with the `failure`, so that others are served.

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
  ops, scorer = predictor.model.ops, predictor.scorer
  try:
    with progress.show_status(f'Warming up {name}'):
      sizes = batching.exact_batch_sizes(scorer, ops.height, ops.width, max_batch_size)
  except Exception as error:  # Runtimes raise errors of any class.
    failure = f'The test inference failed: {type(error).__name__}: {error}'
    return ServedModel(name, predictor, failure)
  return ServedModel(name, predictor._replace(scorer=scorer._replace(batch_sizes=sizes)))
