"""Settings of prediction: the section `predict` of a run, and the settings of a pipeline."""

import dataclasses

from uadjax.config import field

MAX_BATCH_SIZE = 65_536  # No device holds a larger batch.
BACKENDS = ('jax', 'auto', 'onnxruntime', 'openvino')
PIPELINES = ('anomaly_detection',)
PART_PATTERN_HELP = (
  r"Regular expression for the names of images, such as '(?P<part>.+)_cam\d+': one verdict for all "
  'images of a part, the worst.'
)
IMAGE_THRESHOLD_HELP = 'NG if the score exceeds it; replaces the calibrated threshold.'
REVIEW_THRESHOLD_HELP = 'Review if the score exceeds it; replaces the calibrated threshold.'
PIXEL_THRESHOLD_HELP = 'Mark pixels that exceed it; replaces the calibrated threshold.'


@dataclasses.dataclass(frozen=True)
class PredictSettings:
  """Section `predict`."""

  input: str = field('', 'Image, URL or folder.')
  batch_size: int = field(8, 'Images per batch.', minimum=1, maximum=MAX_BATCH_SIZE)
  model_dir: str = field('', 'Model directory; empty for the model of the run.')
  backend: str = field('jax', 'jax, or a runtime, which is faster on a CPU.', choices=BACKENDS)
  table: str = field('', 'Folder of a table with a row per image, instead of pictures.')
  format: str = field('parquet', 'Format of the table.', choices=('parquet', 'jsonl', 'csv'))
  shard: str = field(
    'auto', 'I/N: score shard I (from 0) of N processes; auto: from SLURM, Open MPI or a TPU pod.'
  )
  image_threshold: float | None = field(None, IMAGE_THRESHOLD_HELP)
  review_threshold: float | None = field(None, REVIEW_THRESHOLD_HELP)
  pixel_threshold: float | None = field(None, PIXEL_THRESHOLD_HELP)
  part_pattern: str = field('', PART_PATTERN_HELP)


@dataclasses.dataclass(frozen=True)
class AnomalyDetectionSettings:
  """Section `SubModules.AnomalyDetection` of a pipeline."""

  module_name: str = field('anomaly_detection', 'Name of the module.')
  model_name: str = field(
    '', 'STFPM, PaDiM, PatchCore or SubspaceAD; must match the model directory.'
  )
  model_dir: str = field('', 'Model directory; empty for a demo model.')
  batch_size: int = field(1, 'Images per batch.', minimum=1, maximum=MAX_BATCH_SIZE)
  image_threshold: float | None = field(None, IMAGE_THRESHOLD_HELP)
  review_threshold: float | None = field(None, REVIEW_THRESHOLD_HELP)
  pixel_threshold: float | None = field(None, PIXEL_THRESHOLD_HELP)


@dataclasses.dataclass(frozen=True)
class SubModulesSettings:
  """Section `SubModules` of a pipeline."""

  AnomalyDetection: AnomalyDetectionSettings = dataclasses.field(
    default_factory=AnomalyDetectionSettings
  )


@dataclasses.dataclass(frozen=True)
class ServingSettings:
  """Section `Serving` of a pipeline."""

  visualize: bool = field(True, 'Whether responses have a picture.')


@dataclasses.dataclass(frozen=True)
class PipelineSettings:
  """Settings of a pipeline, with the keys of PaddleX's YAML files."""

  pipeline_name: str = field(PIPELINES[0], 'Name of the pipeline.', choices=PIPELINES)
  device: str = field('auto', 'auto, cpu, gpu, tpu, or some of several devices: gpu:0,1.')
  use_hpip: bool = field(False, 'Whether to use an inference runtime, as backend=auto does.')
  backend: str = field('jax', 'jax, or a runtime, which is faster on a CPU.', choices=BACKENDS)
  shard_model: bool = field(False, 'Whether to shard the fitted arrays over the devices.')
  SubModules: SubModulesSettings = dataclasses.field(default_factory=SubModulesSettings)
  Serving: ServingSettings = dataclasses.field(default_factory=ServingSettings)
