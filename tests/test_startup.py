"""A command imports, of the packages that take long to import, only those that it needs."""

import subprocess
import sys

import pytest

HEAVY = {
  *('clu', 'fastapi', 'flax', 'jax', 'jax2onnx', 'matplotlib', 'numpy', 'onnx', 'onnxruntime'),
  *('openvino', 'optax', 'orbax', 'pyarrow', 'scipy', 'starlette', 'tensorflow', 'uvicorn'),
}
DETECTORS = {'flax', 'jax', 'numpy', 'optax'}
RUNS = {*DETECTORS, 'matplotlib', 'orbax', 'scipy'}
SERVICE = {'fastapi', 'starlette', 'uvicorn'}

CHECK = """
import sys
{code}
print(*sys.modules, file=sys.stderr)
"""


def heavy_imports(code: str, *words: object) -> set[str]:
  """Of a new process that runs some code with these arguments."""
  command = [sys.executable, '-c', CHECK.format(code=code), *map(str, words)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return HEAVY & {name.partition('.')[0] for name in done.stderr.split()}


def of_command(*words: object) -> set[str]:
  return heavy_imports('from uadjax import cli; assert cli.main(sys.argv[1:]) == 0', *words)


def of_module(name: str) -> set[str]:
  """Of a command that would take too long to run; it imports more only where it is used."""
  return heavy_imports(f'import {name}')


def test_a_check_of_images_imports_nothing_that_scores_them(drawn):
  words = ('check', drawn / 'disc', '--quiet')
  assert of_command(*words) <= {'matplotlib', 'numpy', 'scipy'}


@pytest.mark.parametrize(
  ('backend', 'needed'),
  [
    pytest.param('jax', set(), marks=pytest.mark.slow),
    ('onnxruntime', {'onnxruntime'}),
  ],
)
def test_a_verdict_needs_a_runtime_and_the_reading_of_a_model(backend, needed, exported, drawn):
  pytest.importorskip(backend)
  image = drawn / 'disc' / 'test' / 'good' / '000.png'
  words = ('predict', exported('padim'), image, '--no-save', '--backend', backend)
  assert of_command(*words) == {*DETECTORS, 'scipy', *needed}


@pytest.mark.slow
def test_other_commands(trained, tmp_path):
  model = trained('padim') / 'model'
  assert of_command('--help') == of_command('--version') == set()
  assert of_module('uadjax.main') == set()
  assert of_command('demo', tmp_path / 'demo', '--size', 32) <= {'numpy', 'scipy'}
  assert of_command('weights') <= {'flax', 'jax', 'numpy'}
  assert of_command('config', 'seed') <= DETECTORS
  assert of_command('threshold', model) <= RUNS
  assert of_module('uadjax.cli.export') <= {*DETECTORS, 'scipy'}
  assert of_module('uadjax.serve, uadjax.cli.serve') <= {*DETECTORS, *SERVICE, 'scipy'}
  for name in ('fit', 'report', 'sweep'):
    assert of_module(f'uadjax.cli.{name}') <= RUNS
