r"""SubspaceAD on the features of PatchCore's backbone.

Lendering et al. 2026, arXiv 2602.23013. The paper takes DINOv2, and 99 % of the variance; here it
is a ResNet-18, and 95 %::

  python -m uadjax.main --config=configs/subspace.py --config.data.root=DIR \
    --config.data.category=NAME
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the default settings; there are no variants."""
  if arg:
    raise UnknownName(f'Unknown variant {arg!r} of subspace; it has none.', allowed=())
  config = settings.default_config('subspace')
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from held-out folds.
  config.fit.batch_size = 16  # Does not affect the result; larger ones only take memory on a CPU.
  return config
