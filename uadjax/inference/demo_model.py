"""The model that answers until there is one of the user's own: fitted on the demo set when needed.

It is fitted by a process of its own, on the CPU: the devices may be the caller's already, and what
only predicts need not import TensorFlow.
"""

import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

import uadjax
from uadjax import config as configs, detectors
from uadjax.backbones import weights
from uadjax.data import demo
from uadjax.errors import ModelError
from uadjax.system import files, logging, progress
from uadjax.types import Config

TITLE = 'PatchCore'  # Where no detector is named.


def directory(title: str, own: str) -> Path:
  """The demo model's directory in the user's cache; it is fitted where there is none yet.

  Args:
    title: of the detector.
    own: the command that fits a model to images of one's own, to be told.

  Raises:
    ModelError: it could not be fitted.
  """
  config = configure(title.lower())
  text = configs.to_yaml(config)
  digest = hashlib.sha256(f'{uadjax.__version__} {demo.VERSION} {text}'.encode())
  digest.update(weights.EMBEDDED.read_bytes())
  place = files.cache_dir() / 'demo-models' / f'{config.detector.name}-{digest.hexdigest()[:12]}'
  logging.LOG.warning(
    'No model directory was named, so this is a demo: %s fitted on drawn pictures (%s), with %s '
    'weights; what it says of yours means nothing. Fit one on your good images with `%s`, and name '
    'its directory: model_dir=RUN/model.%s',
    title, config.data.category, config.backbone.weights, own,
    '' if place.is_dir() else ' Now it is being fitted, once, which takes a minute or two.',
  )  # fmt: skip
  if not place.is_dir():
    _fit(text, place)
  return place


def configure(name: str) -> Config:
  """The settings: those of the detector, and few steps."""
  config = configs.load(
    name, [('data.category', demo.DEFAULT_CATEGORY), ('evaluate.do_eval', False)]
  )
  # Nothing is downloaded for a demo.
  there = weights.cache_path(config.backbone.name).is_file()
  config.backbone.weights = 'imagenet' if there else 'embedded'
  if not detectors.learns_in_one_pass(config.detector.name):
    config.fit.update({'steps': 60, 'batch_size': 8})
  return config


def _fit(config: str, place: Path) -> None:
  """Run the experiment, and keep the model of it."""
  place.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.', dir=place.parent) as draft:
    settings, run = Path(draft) / 'demo.yaml', Path(draft) / 'run'
    files.write_text(settings, config)
    # -P: modules are not looked for in the folder where the user happens to be.
    command = [sys.executable, '-P', '-m', 'uadjax.main']
    command += [f'--config={settings}', f'--workdir={run}']
    source = str(Path(uadjax.__file__).parent.parent)  # Wherever this process has it from.
    paths = [source, *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(paths)}
    with progress.show_status('Fitting the demo model'):
      done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
      )
    if done.returncode:
      raise ModelError(f'The demo model could not be fitted: {_reason(run, done.stderr)}')
    try:
      (run / 'model').rename(place)
    except OSError:
      if not place.is_dir():  # Else another process was quicker.
        raise


def _reason(run: Path, told: str) -> str:
  """Why a run failed: as its result says, or else the last that it told."""
  result = run / 'train_result.json'
  if result.is_file():
    return json.loads(result.read_text())['err_msg']
  return told.strip().rpartition('\n')[2]
