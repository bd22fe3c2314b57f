"""Demo model for users without a model: fitted on the synthetic demo dataset when first needed.

It is fitted in a subprocess on the CPU, since the caller may already use the devices, and since
prediction does not import TensorFlow.
"""

import hashlib
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

import yaml

import uadjax
from uadjax import config as configs, detectors
from uadjax.backbones import weights
from uadjax.data import demo
from uadjax.errors import ModelError
from uadjax.system import files, logging, progress

DEFAULT_DETECTOR = 'patchcore'  # Detector of the demo model if none is named.


def ensure_model_dir(name: str) -> Path:
  """Return the demo model's directory in the user's cache, and fit the model if it is missing.

  Args:
    name: name of the detector, such as 'patchcore'.

  Raises:
    ModelError: the demo model could not be fitted.
    ConfigError: the cache cannot be written.
  """
  config = demo_config(name)
  config_text = yaml.safe_dump(config)
  digest = hashlib.sha256(f'{uadjax.__version__} {demo.VERSION} {config_text}'.encode())
  digest.update(weights.EMBEDDED.read_bytes())
  model_dir = files.cache_dir() / 'demo-models' / f'{name}-{digest.hexdigest()[:12]}'
  logging.LOG.warning(
    'No model directory was given, so a demo model is used: %s fitted on synthetic images (%s) '
    'with %s weights. Its verdict on your images is meaningless. Fit a model on your good images '
    'with `uadjax fit DIR`, and pass its directory as model_dir=RUN/model.%s',
    detectors.title(name), config['data.category'], config['backbone.weights'],
    '' if model_dir.is_dir() else ' The demo model is fitted now, once, in a minute or two.',
  )  # fmt: skip
  if not model_dir.is_dir():
    files.require_writable_cache()
    _fit_in_subprocess(config_text, model_dir)
  return model_dir


def demo_config(name: str) -> dict[str, Any]:
  """Return the settings of the demo model by key: the detector's, with few training steps."""
  config = configs.read(name)
  config |= {'data.category': demo.DEFAULT_CATEGORY, 'evaluate.do_eval': False}
  # A demo must not download anything.
  has_imagenet_weights = weights.cache_path(config['backbone.name']).is_file()
  config['backbone.weights'] = 'imagenet' if has_imagenet_weights else 'embedded'
  if not detectors.learns_in_one_pass(name):
    config |= {'fit.steps': 60, 'fit.batch_size': 8}
  return config


def _fit_in_subprocess(config_text: str, model_dir: Path) -> None:
  """Run the experiment in a subprocess, and move its model to `model_dir`.

  Raises:
    ModelError: the run failed.
  """
  model_dir.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.', dir=model_dir.parent) as temp_dir:
    config_file, workdir = Path(temp_dir) / 'demo.yaml', Path(temp_dir) / 'run'
    files.write_text(config_file, config_text)
    # -P: Python does not search the current folder for modules.
    command = [sys.executable, '-P', '-m', 'uadjax.main']
    command += [f'--config={config_file}', f'--workdir={workdir}']
    source_root = str(Path(uadjax.__file__).parent.parent)  # The subprocess runs the same uadjax.
    import_paths = [source_root, *filter(None, [os.environ.get('PYTHONPATH')])]
    variables = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(import_paths)}
    with progress.show_status('Fitting the demo model'):
      process = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
      )
    if process.returncode:
      reason = _failure_reason(workdir, process.stderr)
      raise ModelError(f'The demo model could not be fitted: {reason}')
    try:
      (workdir / 'model').rename(model_dir)
    except OSError:
      if not model_dir.is_dir():  # Otherwise another process has fitted it first.
        raise


def _failure_reason(workdir: Path, stderr: str) -> str:
  """Return why a run failed, from its result file or else from its last line of output."""
  result_file = workdir / 'train_result.json'
  if result_file.is_file():
    return json.loads(result_file.read_text())['err_msg']
  return stderr.strip().rpartition('\n')[2]
