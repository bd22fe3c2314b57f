"""Notebooks are valid and were committed with their outputs; a slow test runs them."""

import ast
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import types

from IPython.core import inputtransformer2
import nbformat
import pytest

from uadjax.data import demo

FOLDER = Path(__file__).resolve().parent.parent / 'colabs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))
CHANGED = ('install', 'parameters', 'slow')  # Tags of cells that are not run as they are.

TINY = {'data.ops': 'resize(64)', 'backbone.weights': 'random'}
SMALL = {
  'quickstart': {'CATEGORY': 'disc', 'DETECTOR': 'PatchCore', 'SETTINGS': TINY},
  'your_own_data': {'FOLDER': '', 'DETECTOR': 'PaDiM', 'SETTINGS': TINY},
  'mvtec_ad_table': {
    'ROOT': '', 'CATEGORIES': 'objects', 'DETECTORS': ['padim'], 'SEEDS': [3],
    'SETTINGS': [f'--config.{key}={value}' for key, value in TINY.items()],
  },
  'accelerators': {'CLONE': str(FOLDER.parent), 'DEVICE': 'cpu', 'ROOT': '', 'MINUTES': 30},
}  # fmt: skip


def read(name):
  return json.loads((FOLDER / f'{name}.ipynb').read_text())


def code(notebook):
  return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def tags(cell):
  return cell['metadata'].get('tags', ())


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """The demo set, fewer and smaller."""
  cache, few = tmp_path_factory.mktemp('cache'), {'train': 12, 'test_good': 2, 'test_defect': 2}
  folder = cache / f'demo-{demo.VERSION}'
  demo.write_dataset(
    folder, size=64, categories=demo.CATEGORIES, defects=demo.defect_names(), **few
  )
  return cache


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_runs(name, cache, tmp_path, request):
  """With settings small enough for tests."""
  notebook = read(name)
  if name == 'accelerators':  # The script finds its steps done, as when a cell is run again.
    shutil.copytree(request.getfixturevalue('small_gpu_run'), tmp_path / 'runs' / 'gpu')
  settings = '\n'.join(f'{key} = {value!r}' for key, value in SMALL[name].items())
  for cell in code(notebook):
    if set(CHANGED) & set(tags(cell)):
      cell['source'] = {'install': 'import uadjax', 'parameters': settings}.get(tags(cell)[0], '')
  path = tmp_path / 'run.ipynb'
  path.write_text(json.dumps(notebook))
  # In a process of its own, whose warnings are those of others.
  command = [sys.executable, '-c', 'from nbclient import cli; cli.main()', '--inplace', path.name]
  environment = {**os.environ, 'UADJAX_CACHE': str(cache), 'XLA_FLAGS': ''}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  pictures = [out for cell in code(json.loads(path.read_text())) for out in cell['outputs']]
  assert any('image/png' in out.get('data', {}) for out in pictures)


def test_every_notebook_has_settings_small_enough_for_tests():
  assert set(NAMES) == set(SMALL)


@pytest.mark.parametrize('name', NAMES)
def test_a_committed_notebook_has_outputs_of_one_run_with_pictures(name):
  cells = code(read(name))
  assert [cell['execution_count'] for cell in cells] == [*range(1, len(cells) + 1)]
  outputs = [out for cell in cells for out in cell['outputs']]
  assert not [out for out in outputs if out['output_type'] == 'error']
  assert any('image/png' in out.get('data', {}) for out in outputs)
  assert set(SMALL[name]) <= {
    line.partition(' =')[0]
    for cell in cells
    if 'parameters' in tags(cell)
    for line in cell['source']
  }


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_is_of_python_and_first_installs_uadjax(name):
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=nbformat.NO_CONVERT)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == 'python3'
  # Magics become calls; whatever is no Python then is a syntax error, which names its line.
  plain = [
    ast.parse(inputtransformer2.TransformerManager().transform_cell(cell.source), name)
    for cell in notebook.cells
    if cell.cell_type == 'code'
  ]
  source, attempt, *_ = plain[0].body
  assert ast.unparse(source) == "SOURCE = ''"
  assert isinstance(attempt, ast.Try)
  assert [ast.unparse(line) for line in attempt.body] == ['import uadjax']
  assert 'install -q "{SOURCE}"' in ast.unparse(attempt.handlers[0])


@pytest.mark.parametrize('name', NAMES)
def test_without_a_source_an_error_explains_how_to_build_the_wheel(name, monkeypatch):
  cell = next(cell for cell in code(read(name)) if 'install' in tags(cell))
  program = inputtransformer2.TransformerManager().transform_cell(''.join(cell['source']))
  commands = []

  def install(*words):
    commands.append(words)
    sys.modules['uadjax'] = types.SimpleNamespace(__version__='0')

  shell = types.SimpleNamespace(run_line_magic=install)
  monkeypatch.setitem(sys.modules, 'uadjax', None)  # So that its import fails.
  with pytest.raises(RuntimeError, match='pip wheel'):
    exec(program, {'get_ipython': lambda: shell})
  assert not commands
  exec(program.replace("SOURCE = ''", "SOURCE = 'a.whl'"), {'get_ipython': lambda: shell})
  assert [words[0] for words in commands] == ['pip']
