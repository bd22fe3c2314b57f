r"""SubspaceAD on the features of PatchCore's backbone.

Lendering et al. 2026, arXiv 2602.23013. The paper takes DINOv2, and 99 % of the variance; here it
is a ResNet-18, and 95 %::

  python -m uadjax.main --config=configs/subspace.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/subspace.py:dinov2`):

- `dinov2`: tokens of DINOv2 ViT-S/14 at 448 pixels, with 99 % of the variance.
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the default settings, or those of the variant `arg`."""
  if arg not in ('', 'dinov2'):
    message = f"Unknown variant {arg!r} of subspace; choose from ['dinov2']."
    raise UnknownName(message, allowed=('dinov2',))
  config = settings.default_config('subspace')
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from held-out folds.
  config.fit.batch_size = 16  # Does not affect the result; larger ones only take memory on a CPU.
  if arg == 'dinov2':
    config.backbone.name = 'dinov2_vits14'
    config.detector.layers = ('tokens',)
    config.detector.share = 0.99
    config.data.ops = 'resize(448)'
  return config
