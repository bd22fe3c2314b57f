"""Runs of `uadjax.main` as tests start them, and the files that a run leaves.

Two stages at 32x48 pixels, so that a run takes seconds; what is tested is the machinery.
"""

from collections.abc import Iterable
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from uadjax import main
from uadjax.evaluation import curves

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
SMALL = (
  '--config.data.ops=resize(32, 48)',
  '--config.detector.layers=layer1,layer2',
  '--config.backbone.weights=embedded',
  '--config.fit.batch_size=4',
  '--config.mesh.data=1',
  '--config.evaluate.batch_size=5',
  '--config.evaluate.save_pictures=4',
)
STEPS = 40
DETECTOR_FLAGS = {
  'padim': ('--config.detector.channels=9',),
  'patchcore': ('--config.detector.ratio=0.125',),
  'stfpm': (f'--config.fit.steps={STEPS}',),
  'subspace': (),
}
NAMES = tuple(DETECTOR_FLAGS)
# For runs of every detector. What the default run has not of SubspaceAD is in test_subspace.py.
EVERY_NAME = (*NAMES[:-1], pytest.param('subspace', marks=pytest.mark.slow))
# For what is done in the same way whatever the detector: by default with the simplest one alone.
ANY_NAME = (
  'padim',
  *(pytest.param(name, marks=pytest.mark.slow) for name in ('patchcore', 'stfpm', 'subspace')),
)
TITLES = {
  'padim': 'PaDiM',
  'patchcore': 'PatchCore',
  'stfpm': 'STFPM',
  'subspace': 'SubspaceAD',
}
NO_EVALUATION = '--config.evaluate.do_eval=false'

# Errors with exit status 2; others have 1.
USAGE_ERRORS = ('ConfigError', 'UnknownName')

# The pictures of the fixture `drawn`, which are square.
SIDE = 60
TRAIN, GOOD, DEFECTS = 12, 3, ('missing', 'scratch', 'spot')  # Two pictures of each defect.
DISCS = {'categories': ('disc',), 'defects': DEFECTS}  # What is drawn of the demo set.


def run(*argv: object, draw_curves: bool = False) -> int:
  """Run an experiment; return its exit status.

  To draw the curves takes longer than all else of a small evaluation, so only their folder is made.
  """
  with pytest.MonkeyPatch.context() as patch:
    if not draw_curves:
      patch.setattr(curves, 'draw', lambda folder, data: folder.mkdir(exist_ok=True))
    return main.main([str(word) for word in argv])


def flags(name: str, root: Path, category: str = 'disc') -> tuple[str, ...]:
  """Flags of a small run of a detector."""
  where = (f'--config.data.root={root}', f'--config.data.category={category}')
  return (f'--config={CONFIGS / name}.py', *SMALL, *DETECTOR_FLAGS[name], *where)


def write_part(folder: Path, paths: Iterable[Path]) -> Path:
  """Write copies of good images as a dataset, and return its folder."""
  place = folder / 'disc' / 'train' / 'good'
  place.mkdir(parents=True)
  for path in paths:
    (place / path.name).write_bytes(path.read_bytes())
  return folder


def result(workdir: Path, mode: str = 'train') -> dict[str, Any]:
  return json.loads((workdir / f'{mode}_result.json').read_text())


def manifest(workdir: Path) -> dict[str, Any]:
  return json.loads((workdir / 'model' / 'manifest.json').read_text())


def arrays(workdir: Path) -> dict[str, np.ndarray]:
  return safetensors.numpy.load_file(workdir / 'model' / 'fitted.safetensors')


def table(path: Path) -> list[dict[str, str]]:
  return list(csv.DictReader(path.read_text().splitlines()))


def contents(folder: Path) -> dict[Path, bytes]:
  """Of each file below a folder."""
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
