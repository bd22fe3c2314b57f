"""Settings of a model, and the section `calibrate` of a run."""

import dataclasses
from typing import Protocol, runtime_checkable

from uadjax import config as configs, detectors
from uadjax.backbones.settings import BackboneSettings
from uadjax.config import field
from uadjax.data.settings import DataSettings
from uadjax.detectors.settings import DetectorSettings

CALIBRATION_METHODS = ('normals', 'confident', 'f1', 'cost')


@dataclasses.dataclass(frozen=True)
class CalibrateSettings:
  """Section `calibrate`: how thresholds are chosen."""

  method: str = field('normals', 'f1 and cost need labeled images.', choices=CALIBRATION_METHODS)
  budget: float = field(0.01, 'Share of good images that may be NG.', above=0, below=1)
  review_budget: float = field(0.05, 'Share that may be NG or review.', above=0, below=1)
  labeled: str = field('', 'Dataset with good and defective images, for f1 and cost.')
  miss_cost: float = field(10.0, 'Cost of a defect that is not NG, in false alarms.', above=0)
  images: int = field(500, 'Maximum number of leave-one-out scores.', minimum=1)


@runtime_checkable
class HasDetector(configs.Settings, Protocol):
  """Settings with a backbone and a detector: those of a model, or of a whole run."""

  @property
  def backbone(self) -> BackboneSettings:
    """Section `backbone`."""
    ...

  @property
  def detector(self) -> DetectorSettings:
    """Section `detector`."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
  """Sections that scoring needs of the settings of the run that fitted a model."""

  data: DataSettings = dataclasses.field(default_factory=DataSettings)
  backbone: BackboneSettings = dataclasses.field(default_factory=BackboneSettings)
  detector: DetectorSettings = dataclasses.field(metadata=configs.one_of(detectors.settings_types))
