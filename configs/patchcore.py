r"""PatchCore with the paper's settings and 1 % of the patches.

Roth et al. 2021, arXiv 2106.08265, section 4.2. Measured figures, with commands and a rival,
are in experiments/README.md::

  python -m uadjax.main --config=configs/patchcore.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/patchcore.py:ten`):

- `ten`: 10 % of the patches, the paper's middle setting; ten times the memory and time of scoring.
"""

import ml_collections

from uadjax import config as defaults
from uadjax.errors import UnknownName
from uadjax.types import Config


def get_config(arg: str = '') -> Config:
  """The paper's settings, or a variant's."""
  if arg not in ('', 'ten'):
    raise UnknownName(f"Unknown variant {arg!r} of patchcore; choose from ['ten'].")
  config = defaults.base()
  config.detector = ml_collections.ConfigDict(
    {
      'name': 'patchcore',
      'layers': ('layer2', 'layer3'),
      'ratio': 0.1 if arg == 'ten' else 0.01,
      'coreset_dim': 0,  # Select in all dimensions: a projection costs accuracy.
      'neighbors': 9,  # The paper leaves it open; as in anomalib.
      'reweight': True,
      'channels': 0,  # Do not average channels; the paper, with wider backbones, has 1024.
      'max_bytes': 2 << 30,
      'approx': False,
    }
  )
  config.fit.held_out = 0.0  # Learns from every image; thresholds come from leaving each out.
  config.fit.batch_size = 16  # Does not change what is learned; more only takes memory on a CPU.
  return config
