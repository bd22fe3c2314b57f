r"""PaDiM with the paper's settings for ResNet-18, except for the projection.

Defard et al. 2020, arXiv 2011.08785, section IV. experiments/README.md has measured results, with
commands and a comparison with anomalib::

  python -m uadjax.main --config=configs/padim.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/padim.py:wide`):

- `wide`: Wide-ResNet-50-2 and 550 channels, the paper's best; 5 GB of covariances.
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg not in ('', 'wide'):
    raise UnknownName(f"Unknown variant {arg!r} of padim; choose from ['wide'].", allowed=('wide',))
  config = settings.default_config('padim')
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from leave-one-out scores.
  config.fit.batch_size = 32
  if arg == 'wide':
    config.backbone.name = 'wide_resnet50_2'
    config.detector.channels = 550
  return config
