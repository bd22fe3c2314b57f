"""Settings of the detectors: the section `detector` of a run, one dataclass per detector."""

import dataclasses
from typing import Protocol

from uadjax.config import field, Settings
from uadjax.detectors import image_score
from uadjax.numerics import projections

DISTANCES = ('euclidean', 'cosine')  # Of PatchCore.

_NAME_HELP = 'Detector; each has a config file of its own.'
_LAYERS_HELP = 'Stages of the backbone whose features are used.'
# Finds more defects than the maximum, at equal false alarms (experiments/README.md, "Which image
# score finds the most defects?").
_IMAGE_SCORE = 'top:0.003'
_IMAGE_SCORE_HELP = (
  'max: maximum of the anomaly map; top:S: mean of its largest share S, as in top:0.01.'
)


class DetectorSettings(Settings, Protocol):
  """Section `detector`: a dataclass with these settings, and the options of one detector."""

  @property
  def name(self) -> str:
    """Name of the detector."""
    ...

  @property
  def layers(self) -> tuple[str, ...]:
    """Stages of the backbone whose features are used."""
    ...

  @property
  def image_score(self) -> str:
    """Rule of the image score, see `image_score.parse`."""
    ...


@dataclasses.dataclass(frozen=True)
class PadimSettings:
  """Section `detector` of PaDiM."""

  name: str = field('padim', _NAME_HELP)
  layers: tuple[str, ...] = field(('layer1', 'layer2', 'layer3'), _LAYERS_HELP)
  channels: int = field(100, 'Number of channels of the embedding.', minimum=1)
  # Orthonormal mixtures of all channels (Kim et al. 2021). The paper samples single channels
  # ('sample'), and the AUROC depends much on which ones.
  projection: str = field('ortho', 'Reduction of all channels.', choices=projections.METHODS)
  enlarge: str = field(
    'bilinear', 'Upsampling of the deeper stages.', choices=projections.UPSAMPLING_METHODS
  )
  image_score: str = field(_IMAGE_SCORE, _IMAGE_SCORE_HELP, check=image_score.parse)
  ridge: float = field(0.01, 'Constant added to the variances.', minimum=0)


@dataclasses.dataclass(frozen=True)
class PatchcoreSettings:
  """Section `detector` of PatchCore."""

  name: str = field('patchcore', _NAME_HELP)
  layers: tuple[str, ...] = field(('layer2', 'layer3'), _LAYERS_HELP)
  ratio: float = field(0.01, 'Share of all patches in the memory bank.', above=0, maximum=1)
  layers_apart: bool = field(
    False, 'Whether each layer has a memory bank of its own; their anomaly maps are averaged.'
  )
  coreset_dim: int = field(
    0, 'Dimensions in which patches are selected; 0 for all, which is most accurate.', minimum=0
  )
  image_score: str = field(_IMAGE_SCORE, _IMAGE_SCORE_HELP, check=image_score.parse)
  # The paper averages to 1024 for wider backbones.
  channels: int = field(0, 'Number of channels to average embeddings to; 0 for all.', minimum=0)
  max_bytes: int = field(2 << 30, 'Limit of the bank on each device.', unit='bytes', minimum=1)
  window: int = field(
    0,
    'Rows and columns by which the rows of the bank may be away from a patch; 0 for any number.',
    unit='cells of the patch grid',
    minimum=0,
  )
  # The paper averages; AnomalyDINO does not.
  pool: bool = field(True, 'Whether features are averaged over neighborhoods of 3x3 positions.')
  distance: str = field(
    'euclidean',
    'Distance to the nearest row; cosine is one minus the cosine of the angle.',
    choices=DISTANCES,
  )
  foreground: bool = field(
    False, 'Whether patches of the background, as the tokens of DINOv2 show it, have score 0.'
  )
  approx: bool = field(False, 'Whether accelerators may miss the nearest row of a few patches.')


@dataclasses.dataclass(frozen=True)
class SubspaceSettings:
  """Section `detector` of SubspaceAD."""

  name: str = field('subspace', _NAME_HELP)
  layers: tuple[str, ...] = field(('layer2', 'layer3'), _LAYERS_HELP)
  image_score: str = field(_IMAGE_SCORE, _IMAGE_SCORE_HELP, check=image_score.parse)
  share: float = field(
    0.95, 'Share of the variance of the patches that the subspace has.', above=0, maximum=1
  )


@dataclasses.dataclass(frozen=True)
class StfpmSettings:
  """Section `detector` of STFPM."""

  name: str = field('stfpm', _NAME_HELP)
  layers: tuple[str, ...] = field(('layer1', 'layer2', 'layer3'), _LAYERS_HELP)
  image_score: str = field('max', _IMAGE_SCORE_HELP, check=image_score.parse)
  momentum: float = field(0.9, 'Momentum of SGD.', minimum=0, below=1)
  weight_decay: float = field(1e-3, 'Factor of the L2 penalty.', minimum=0)
  half: bool = field(True, 'Whether distances have the factor ½ of equation 1.')
  floor: float = field(0.0, 'Values of the anomaly map below it become 0.', minimum=0)
  opening: int = field(0, 'Radius of a gray opening of the anomaly map.', unit='pixels', minimum=0)
