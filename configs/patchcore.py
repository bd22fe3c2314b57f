r"""PatchCore with the paper's settings and 1 % of the patches.

Roth et al. 2021, arXiv 2106.08265, section 4.2. experiments/README.md has measured results, with
commands and a comparison with anomalib::

  python -m uadjax.main --config=configs/patchcore.py --config.data.root=DIR \
    --config.data.category=NAME

Variants, after a colon (`--config=configs/patchcore.py:ten`):

- `ten`: 10 % of the patches, the paper's middle setting; scoring takes ten times the memory and
  time.
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg not in ('', 'ten'):
    message = f"Unknown variant {arg!r} of patchcore; choose from ['ten']."
    raise UnknownName(message, allowed=('ten',))
  config = settings.default_config('patchcore')
  if arg == 'ten':
    config.detector.ratio = 0.1
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from leave-one-out scores.
  config.fit.batch_size = 16  # Does not affect the result; larger ones only take memory on a CPU.
  return config
