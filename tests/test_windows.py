"""A model opens and predicts on a system without what only POSIX has, such as Windows."""

import json
import subprocess
import sys

import numpy as np
import pytest

from uadjax import create_model

# Takes away what Windows lacks: a module whose entry is None cannot be imported.
WITHOUT_POSIX = """
import os, signal, sys
sys.modules['fcntl'] = sys.modules['resource'] = None
del os.sched_getaffinity, signal.pthread_kill, signal.SIGPIPE
"""
IMAGE_SIZE = 40


def run_without_posix(code, *arguments):
  process = subprocess.run(
    [sys.executable, '-c', WITHOUT_POSIX + code, *map(str, arguments)],
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout.splitlines()[-1])


def test_system_functions_work_without_posix(tmp_path):
  code = """
import _thread, json, pathlib, time
import uadjax, uadjax.cli.runtime, uadjax.data.demo, uadjax.inference.predictor, uadjax.sweep
from uadjax.errors import Interrupted
from uadjax.system import files, memory, signals, threads
files.write_text(pathlib.Path(sys.argv[1]), 'text')
memory.retain_freed_pages(); memory.release_free_memory()
try:
  with signals.raise_on_signal():
    signals._signal_main_thread(signal.SIGTERM)
    for _ in range(100): time.sleep(0.01)
  stopped = False
except Interrupted: stopped = True
print(json.dumps([memory.peak_mb(), threads.num_cores() > 0, stopped]))
"""
  assert run_without_posix(code, tmp_path / 'file') == [None, True, True]
  assert (tmp_path / 'file').read_text() == 'text'


@pytest.mark.slow
def test_a_model_predicts_the_same_without_posix(fitted):
  model_dir = fitted('padim')
  code = f"""
import json
import numpy as np
import pytest

import pytest
from uadjax import create_model
image = np.random.default_rng(0).integers(0, 256, ({IMAGE_SIZE}, {IMAGE_SIZE}, 3), dtype=np.uint8)
(result,) = create_model(model_dir=sys.argv[1]).predict([image])
print(json.dumps(result['score']))
"""
  image = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
  (result,) = create_model(model_dir=model_dir).predict([image])
  assert np.isclose(run_without_posix(code, model_dir), result['score'], rtol=1e-5)
