r"""PatchCore with the paper's settings and 1 % of the patches.

Roth et al. 2021, arXiv 2106.08265, section 4.2. experiments/README.md has measured results, with
commands and a comparison with anomalib::

  python -m uadjax.main --config=configs/patchcore.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/patchcore.py:ten`):

- `ten`: 10 % of the patches, the paper's middle setting; scoring takes ten times the memory and
  time.
"""

import ml_collections

from uadjax import config as defaults
from uadjax.errors import UnknownName
from uadjax.types import Config


def get_config(arg: str = '') -> Config:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg not in ('', 'ten'):
    raise UnknownName(f"Unknown variant {arg!r} of patchcore; choose from ['ten'].")
  config = defaults.base()
  config.detector = ml_collections.ConfigDict(
    {
      'name': 'patchcore',
      'layers': ('layer2', 'layer3'),
      'ratio': 0.1 if arg == 'ten' else 0.01,
      'coreset_dim': 0,  # Select in all dimensions, because a projection costs accuracy.
      'neighbors': 9,  # As in anomalib; the paper gives no number.
      'reweight': True,
      'channels': 0,  # Do not average channels; the paper averages to 1024 for wider backbones.
      'max_bytes': 2 << 30,
      'approx': False,
    }
  )
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from leave-one-out scores.
  config.fit.batch_size = 16  # Does not affect the result; larger ones only take memory on a CPU.
  return config
