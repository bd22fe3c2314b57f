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

DEFAULT_TITLE = 'PatchCore'  # Where no detector is named.


def ensure_model_dir(title: str, fit_command: str) -> Path:
  """The demo model's directory in the user's cache; it is fitted where there is none yet.

  Args:
    title: of the detector.
    own: the command that fits a model to images of one's own, to be told.

  Raises:
    ModelError: it could not be fitted.
  """
  config = demo_config(title.lower())
  config_text = configs.to_yaml(config)
  digest = hashlib.sha256(f'{uadjax.__version__} {demo.VERSION} {config_text}'.encode())
  digest.update(weights.EMBEDDED.read_bytes())
  model_dir = (
    files.cache_dir() / 'demo-models' / f'{config.detector.name}-{digest.hexdigest()[:12]}'
  )
  logging.LOG.warning(
    'No model directory was named, so this is a demo: %s fitted on drawn pictures (%s), with %s '
    'weights; what it says of yours means nothing. Fit one on your good images with `%s`, and name '
    'its directory: model_dir=RUN/model.%s',
    title, config.data.category, config.backbone.weights, fit_command,
    '' if model_dir.is_dir() else ' Now it is being fitted, once, which takes a minute or two.',
  )  # fmt: skip
  if not model_dir.is_dir():
    _fit_in_subprocess(config_text, model_dir)
  return model_dir


def demo_config(name: str) -> Config:
  """The settings: those of the detector, and few steps."""
  config = configs.load(
    name, [('data.category', demo.DEFAULT_CATEGORY), ('evaluate.do_eval', False)]
  )
  # Nothing is downloaded for a demo.
  has_imagenet_weights = weights.cache_path(config.backbone.name).is_file()
  config.backbone.weights = 'imagenet' if has_imagenet_weights else 'embedded'
  if not detectors.learns_in_one_pass(config.detector.name):
    config.fit.update({'steps': 60, 'batch_size': 8})
  return config


def _fit_in_subprocess(config_text: str, model_dir: Path) -> None:
  """Run the experiment, and keep the model of it."""
  model_dir.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.', dir=model_dir.parent) as temp_dir:
    config_file, workdir = Path(temp_dir) / 'demo.yaml', Path(temp_dir) / 'run'
    files.write_text(config_file, config_text)
    # -P: modules are not looked for in the folder where the user happens to be.
    command = [sys.executable, '-P', '-m', 'uadjax.main']
    command += [f'--config={config_file}', f'--workdir={workdir}']
    source_root = str(Path(uadjax.__file__).parent.parent)  # Wherever this process has it from.
    import_paths = [source_root, *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.pathsep.join(import_paths),
    }
    with progress.show_status('Fitting the demo model'):
      process = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
      )
    if process.returncode:
      raise ModelError(
        f'The demo model could not be fitted: {_failure_reason(workdir, process.stderr)}'
      )
    try:
      (workdir / 'model').rename(model_dir)
    except OSError:
      if not model_dir.is_dir():  # Else another process was quicker.
        raise


def _failure_reason(workdir: Path, stderr: str) -> str:
  """Why a run failed: as its result says, or else the last that it told."""
  result_file = workdir / 'train_result.json'
  if result_file.is_file():
    return json.loads(result_file.read_text())['err_msg']
  return stderr.strip().rpartition('\n')[2]
