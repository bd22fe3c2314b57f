r"""PaDiM with the paper's settings for ResNet-18, except for the projection.

Defard et al. 2020, arXiv 2011.08785, section IV. experiments/README.md has measured results, with
commands and a comparison with anomalib::

  python -m uadjax.main --config=configs/padim.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/padim.py:wide`):

- `wide`: Wide-ResNet-50-2 and 550 channels, the paper's best; 5 GB of covariances.
"""

import ml_collections

from uadjax import config as defaults
from uadjax.errors import UnknownName
from uadjax.types import Config


def get_config(arg: str = '') -> Config:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg not in ('', 'wide'):
    raise UnknownName(f"Unknown variant {arg!r} of padim; choose from ['wide'].")
  config = defaults.base()
  config.detector = ml_collections.ConfigDict(
    {
      'name': 'padim',
      'layers': ('layer1', 'layer2', 'layer3'),
      'channels': 100,
      # Orthonormal mixtures of all channels (Kim et al. 2021). The paper samples single channels
      # ('sample'), and the AUROC depends much on which ones.
      'projection': 'ortho',
      'enlarge': 'bilinear',
      'ridge': 0.01,
    }
  )
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from leave-one-out scores.
  config.fit.batch_size = 32
  if arg == 'wide':
    config.backbone.name = 'wide_resnet50_2'
    config.detector.channels = 550
  return config
