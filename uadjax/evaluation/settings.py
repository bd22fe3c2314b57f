"""Settings of evaluation: the section `evaluate` of a run."""

import dataclasses

from uadjax.config import field
from uadjax.inference import settings as inference_settings


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
  """Section `evaluate`."""

  do_eval: bool = field(True, 'Whether to evaluate after training.')
  save_pictures: int = field(16, 'Number of pictures to save.', minimum=0)
  report_pictures: int = field(200, 'Number of pictures in report.html; 0: no report.', minimum=0)
  batch_size: int = field(
    16, 'Images per batch.', minimum=1, maximum=inference_settings.MAX_BATCH_SIZE
  )
  model_dir: str = field('', 'Model directory; empty for the model of the run.')
  image_threshold: float | None = field(None, inference_settings.IMAGE_THRESHOLD_HELP)
  review_threshold: float | None = field(None, inference_settings.REVIEW_THRESHOLD_HELP)
  pixel_threshold: float | None = field(None, inference_settings.PIXEL_THRESHOLD_HELP)
  part_pattern: str = field('', inference_settings.PART_PATTERN_HELP)
