"""Settings of a run: the section `fit`, and the tree of all sections.

Each package declares its own section. This package composes them, because it is below both
`experiment` and `sweep`, which load them.
"""

from collections.abc import Iterable
import dataclasses
from typing import NamedTuple

from uadjax import config as configs, detectors, errors
from uadjax.backbones.settings import BackboneSettings
from uadjax.config import field
from uadjax.data import augment
from uadjax.data.settings import CheckSettings, DataSettings
from uadjax.detectors.settings import DetectorSettings
from uadjax.distributed.settings import HostSettings, MeshSettings
from uadjax.evaluation.settings import EvaluateSettings
from uadjax.export.settings import ExportSettings
from uadjax.inference.settings import MAX_BATCH_SIZE, PredictSettings
from uadjax.model.settings import CalibrateSettings

MODES = ('train', 'evaluate', 'predict', 'check_dataset', 'export')


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """Section `fit`."""

  epochs: int = field(1, 'Number of passes over the images.', minimum=1)
  steps: int | None = field(None, 'Number of steps; takes precedence over epochs.', minimum=1)
  batch_size: int = field(32, 'Images per step.', minimum=1, maximum=MAX_BATCH_SIZE)
  learning_rate: float = field(0.0, 'Learning rate of SGD.', minimum=0)
  warmup_steps: int = field(0, 'Steps in which the learning rate rises from 0.', minimum=0)
  held_out: float = field(
    0.2, 'Share of the good images for validation and calibration.', minimum=0, below=1
  )
  log_every: int = field(10, 'Interval of log lines.', unit='steps', minimum=1)
  eval_every: int | None = field(
    None, 'Interval of validation; one epoch when not set.', unit='steps', minimum=1
  )
  checkpoint_every_s: float = field(
    60.0, 'Interval of checkpoints; shorter runs save the last step only.', unit='s', minimum=0
  )
  cache_bytes: int = field(
    2 << 30, 'Limit for images in memory, and again for features.', unit='bytes', minimum=0
  )
  resume: str = field('', 'latest, best, or the step of a checkpoint to continue from.')
  overwrite: bool = field(False, 'Whether to replace an existing run.')
  extend: str = field('', 'Model directory to extend with further images; of all but STFPM.')
  augment: str = field(
    '', 'Ops that make augmented copies of good images, separated by |.', check=augment.parse
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a run."""

  mode: str = field('train', 'What the run does.', choices=MODES)
  device: str = field('auto', 'auto, cpu, gpu, tpu, or some of several devices: gpu:0,1.')
  seed: int = field(3, 'Seed of every random choice.', minimum=0, maximum=2**32 - 1)
  data: DataSettings = dataclasses.field(default_factory=DataSettings)
  backbone: BackboneSettings = dataclasses.field(default_factory=BackboneSettings)
  detector: DetectorSettings = dataclasses.field(metadata=configs.one_of(detectors.settings_types))
  fit: FitSettings = dataclasses.field(default_factory=FitSettings)
  check: CheckSettings = dataclasses.field(default_factory=CheckSettings)
  calibrate: CalibrateSettings = dataclasses.field(default_factory=CalibrateSettings)
  evaluate: EvaluateSettings = dataclasses.field(default_factory=EvaluateSettings)
  predict: PredictSettings = dataclasses.field(default_factory=PredictSettings)
  export: ExportSettings = dataclasses.field(default_factory=ExportSettings)
  hosts: HostSettings = dataclasses.field(default_factory=HostSettings)
  mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)


def load(source: str, overrides: Iterable[tuple[str, object]] = ()) -> Settings:
  """Read the settings of a run, apply overrides, and check types and bounds.

  Args:
    source: `FILE.py[:argument]`, `FILE.yaml`, or `NAME[:argument]` of a config in configs/.
    overrides: dotted keys with values, which may be text, in the order of their assignment.

  Raises:
    ConfigError: a file is missing or invalid, a key is unknown (the message suggests the closest
      match), or a value has the wrong type or is out of bounds.
  """
  values, changes = configs.read(source), dict(overrides)
  name, own_name = changes.get('detector.name'), values.get('detector.name')
  if isinstance(name, str) and name in detectors.settings_types() and name != own_name:
    hint = 'Use ', errors.Setting('config', name), '.'
    message = f'{source} has settings of {own_name}, not of {name}.'
    errors.refuse('detector.name', name, message, *hint, allowed=(own_name,))
  return configs.from_values(Settings, values, source, changes)


def default_config(detector: str) -> configs.ConfigDict:
  """Return the defaults with the section of a detector, for `get_config` in configs/ to edit."""
  return configs.to_config_dict(Settings(detector=detectors.settings_types()[detector]()))


class CatalogEntry(NamedTuple):
  """Setting, and its default in the built-in config of each detector that has it."""

  info: configs.SettingInfo
  defaults: dict[str, object]

  def format_default(self) -> str:
    """Return the default, or several with the detectors that have them."""
    names_by_default: dict[str, list[str]] = {}
    for name, value in self.defaults.items():
      text = 'not set' if value is None else errors.format_value(value) or "''"
      names_by_default.setdefault(text, []).append(name)
    if len(names_by_default) == 1 and len(self.defaults) == len(detectors.settings_types()):
      return next(iter(names_by_default))
    return '; '.join(f'{text} ({", ".join(names)})' for text, names in names_by_default.items())


def catalog() -> list[CatalogEntry]:
  """Return every setting of a run, in the order of the tree.

  An option whose bounds or help differ between detectors is listed once for each of them.
  """
  entries: dict[tuple[str, configs.Limits], CatalogEntry] = {}
  for name in detectors.settings_types():
    for key, info in configs.describe(load(name)).items():
      entry = entries.setdefault((key, info.limits), CatalogEntry(info, {}))
      entry.defaults[name] = info.value
  sections = [field.name for field in dataclasses.fields(Settings)]
  return sorted(entries.values(), key=lambda e: sections.index(e.info.key.partition('.')[0]))
