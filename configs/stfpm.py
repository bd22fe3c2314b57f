"""STFPM with the paper's settings.

Wang et al. 2021, arXiv 2103.04257, section 4.1. `python -m uadjax.main --config=configs/stfpm.py
--config.data.root=DIR --config.data.category=NAME`. Measured on MVTec AD bottle, seed 3: image
AUROC 1.000, pixel AUROC 0.988. experiments/README.md has further results, with commands and a
comparison with anomalib.

Variants, after a colon (`--config=configs/stfpm.py:paddlex`):

- `paddlex`: PaddleX's batch size of 1, 5000 steps, weight decay, thresholding and opening, and no
  factor ½.
- `quick`: smoke test of a minute on two cores; the weights are random and the scores meaningless.
"""

from uadjax.config import ConfigDict
from uadjax.errors import UnknownName
from uadjax.training import settings


def get_config(arg: str = '') -> ConfigDict:
  """Return the paper's settings, or those of the variant `arg`."""
  if arg and arg not in _VARIANTS:
    names = sorted(_VARIANTS)
    raise UnknownName(f'Unknown variant {arg!r} of stfpm; choose from {names}.', allowed=names)
  config = settings.default_config('stfpm')
  config.fit.epochs = 100
  config.fit.batch_size = 32
  # The paper's. Large, because the loss is a mean over positions of unit vectors.
  config.fit.learning_rate = 0.4
  if arg:
    _VARIANTS[arg](config)
  return config


def _apply_paddlex(config: ConfigDict) -> None:
  config.fit.steps = 5000
  config.fit.batch_size = 1
  config.detector.weight_decay = 1e-4
  config.detector.half = False
  config.detector.floor = 0.01
  config.detector.opening = 4


def _apply_quick(config: ConfigDict) -> None:
  config.data.ops = 'resize(96)'
  config.backbone.weights = 'random'
  config.fit.steps = 30
  config.fit.batch_size = 8
  config.fit.log_every = 5


_VARIANTS = {'paddlex': _apply_paddlex, 'quick': _apply_quick}
