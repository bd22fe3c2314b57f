r"""AnomalyDINO: PatchCore on the tokens of DINOv2, for few good images.

Damm et al. 2025, arXiv 2405.14529: the cosine distance of a token to the nearest token of a good
image. All tokens are kept. The weights are downloaded, or taken from a file that you name::

  python -m uadjax.main --config=configs/anomalydino.py --config.data.root=DIR \
    --config.data.category=NAME

Not measured here. docs/detectors.md says how it differs from the authors' program.

Variants, after a colon (`--config=configs/anomalydino.py:rotated`):

- `rotated`: also learns from seven turned copies of each image, the paper's choice for parts in any
  orientation; eight times the memory.
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg not in ('', 'rotated'):
    message = f"Unknown variant {arg!r} of anomalydino; choose from ['rotated']."
    raise UnknownName(message, allowed=('rotated',))
  config = settings.default_config('patchcore')
  config.backbone.name = 'dinov2_vits14'
  config.data.ops = 'resize(448)'  # A multiple of the 14 pixels of a patch.
  config.detector.layers = ('tokens',)
  config.detector.distance = 'cosine'
  config.detector.pool = False
  config.detector.ratio = 1.0
  config.detector.image_score = 'top:0.01'
  config.fit.held_out = 0.0  # Trains on every image; thresholds come from leave-one-out scores.
  config.fit.batch_size = 8  # Does not affect the result; larger ones only take memory on a CPU.
  if arg == 'rotated':
    config.fit.augment = 'rotate(8)'
  return config
