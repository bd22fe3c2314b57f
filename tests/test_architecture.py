"""The architecture as laws: packages depend in one direction, a foreign library has one package."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import subprocess
import sys

import pytest

from uadjax import config as configs
from uadjax.training import settings

PACKAGE = Path(__file__).resolve().parent.parent / 'uadjax'

# A package may import only from lower levels; within a package, imports must not form cycles.
# `production` comes with folder watching.
LEVELS = (
  ('types', 'errors'),
  ('config',),
  ('system', 'numerics'),
  ('visualization', 'distributed'),
  ('data', 'backbones'),
  ('detectors',),
  ('model',),
  ('export',),
  ('inference',),
  ('evaluation',),
  ('training',),
  ('production',),
  ('experiment', 'serve', 'sweep'),
  ('cli', 'main'),
  ('__main__',),
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}

# Where a foreign library may be imported.
HOMES = {
  'clu': {'training'},
  'fastapi': {'serve'},
  'filelock': {'system'},
  'flax': {'backbones', 'detectors', 'export'},  # Export looks into modules to find a difference.
  'jax2onnx': {'export'},
  'matplotlib': {'visualization', 'evaluation', 'data'},  # Of data, the figures of its check.
  'ml_collections': {'config'},
  'onnx': {'export'},
  'onnxruntime': {'export'},
  'openvino': {'export'},
  'optax': {'training', 'detectors'},
  'orbax': {'training', 'distributed'},  # In distributed for its barrier, which has a limit.
  'orjson': {'serve'},
  'prometheus_client': {'serve'},
  'pyarrow': {'inference'},
  'pydantic': {'serve'},
  'starlette': {'serve'},
  'tensorflow': {'system', 'export'},
  'tensorflow_datasets': {'data'},
  'typer': {'cli'},
  'uvicorn': {'serve'},
}


def modules() -> dict[str, Path]:
  """Path by dotted name."""
  path_by_module = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    path_by_module['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return path_by_module


MODULES = modules()


def package(module: str) -> str:
  return module.split('.')[1] if '.' in module else '__init__'


def imported(path: Path) -> Iterator[tuple[int, str]]:
  """Line and dotted name of whatever is imported, inside functions and for type checkers, too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


def dependencies(path: Path) -> Iterator[tuple[int, str]]:
  """Line and name of the modules of this package that a file imports."""
  for line, name in imported(path):
    while name.startswith('uadjax.') and name not in MODULES:
      name = name.rpartition('.')[0]
    if name.startswith('uadjax.'):
      yield line, name


def test_packages_import_only_from_lower_levels():
  wrong = []
  for module, path in MODULES.items():
    if module == 'uadjax':
      continue  # It names what others define, for type checkers alone.
    own_package = package(module)
    for line, name in dependencies(path):
      of_package = package(name) == own_package and path.parent != PACKAGE
      if not of_package and LEVEL[package(name)] >= LEVEL[own_package]:
        wrong.append(f'{path.relative_to(PACKAGE)}:{line} imports {name}')
  assert not wrong, '\n'.join(wrong)


def test_files_of_a_package_import_each_other_without_cycles():
  graph = {module: sorted({n for _, n in dependencies(path)}) for module, path in MODULES.items()}
  del graph['uadjax']
  done: set[str] = set()
  cycles = []

  def visit(module: str, way: tuple[str, ...]) -> None:
    if module in way:
      cycles.append(' -> '.join([*way[way.index(module) :], module]))
    elif module not in done:
      for name in graph[module]:
        visit(name, (*way, module))
      done.add(module)

  for module in graph:
    visit(module, ())
  assert not cycles, '\n'.join(cycles)


def test_foreign_libraries_stay_in_their_packages():
  wrong = [
    f'{path.relative_to(PACKAGE)}:{line} imports {name}; it belongs in {sorted(HOMES[top])}'
    for module, path in MODULES.items()
    for line, name in imported(path)
    if (top := name.split('.')[0]) in HOMES and package(module) not in HOMES[top]
  ]
  assert not wrong, '\n'.join(wrong)


def test_every_package_has_a_level_and_says_what_belongs_in_it():
  assert {package(module) for module in MODULES} - {'__init__'} == set(LEVEL) - {'production'}
  terse = []
  for module, path in MODULES.items():
    if path.name == '__init__.py':
      text = ast.get_docstring(ast.parse(path.read_text())) or ''
      if len(text.split()) < 20:
        terse.append(module)
  assert not terse, f'These packages do not say in two or three sentences what they hold: {terse}'


def test_the_top_level_fits_on_one_screen():
  assert len([path for path in PACKAGE.iterdir() if path.name != '__pycache__']) <= 24


def literals(path: Path) -> Iterator[tuple[int, str]]:
  """Line and text of the strings of a file, and of the parts of f-strings; no docstrings."""
  tree = ast.parse(path.read_text())
  documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documents:
      yield node.lineno, node.value


def test_only_front_ends_write_command_line_options():
  """Others name a setting by its key, see `errors.Setting`."""
  front_ends = {'cli', 'main', 'experiment'}
  starts_processes = {'sweep/__init__.py', 'sweep/slots.py', 'inference/demo_model.py'}
  wrong = [
    f'{path.relative_to(PACKAGE)}:{line} {text!r}'
    for module, path in MODULES.items()
    if package(module) not in front_ends and str(path.relative_to(PACKAGE)) not in starts_processes
    for line, text in literals(path)
    if re.search(r'(?<![\w-])--[a-zA-Z]', text)
  ]
  assert not wrong, '\n'.join(wrong)


def test_numerics_import_only_types_and_name_no_settings():
  keys = '|'.join(
    sorted({key.partition('.')[0] for key in configs.describe(settings.load('padim'))})
  )
  wrong = []
  for module, path in MODULES.items():
    if package(module) == 'numerics':
      wrong += [f'{module} imports {n}' for _, n in dependencies(path) if 'numerics' not in n]
      texts = (text for _, text in literals(path))
      wrong += [f'{module}: {text!r}' for text in texts if re.search(rf'\b({keys})\.[a-z]', text)]
  assert {name for name in wrong if not name.endswith(' imports uadjax.types')} == set()


def in_new_process(code: str) -> str:
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  return out.stdout.strip()


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
  code = 'import uadjax, sys; print(sorted({"jax", "tensorflow", "numpy"} & sys.modules.keys()))'
  assert in_new_process(code) == '[]'


def test_opening_a_model_imports_only_what_predicting_needs(fitted):
  """No drawn images, no processes, no exporters, no TensorFlow, nothing that fits or serves."""
  code = (
    'import sys, uadjax, uadjax.export.runtimes; '
    f'uadjax.create_model(model_dir={str(fitted("padim"))!r}, device="cpu"); '
    'print("\\n".join(sys.modules))'
  )
  loaded = in_new_process(code).split()
  needless = {
    'uadjax.data': 'batches convert demo',
    'uadjax.distributed': 'processes',
    'uadjax.export': 'bisect exporter graph onnx quantize quantization_check stablehlo tensorflow',
    'uadjax.inference': 'demo_model',
    'uadjax.model': 'scoring',
    'uadjax': 'cli evaluation experiment serve sweep training',
  }
  names = {f'{parent}.{name}' for parent, names in needless.items() for name in names.split()}
  names |= {'clu', 'jax2onnx', 'onnx', 'orbax', 'tensorflow', 'tensorflow_datasets', 'typer'}
  assert 'uadjax.model.model_dir' in loaded
  ours = {f'uadjax.{package(module)}' for module in MODULES} | set(MODULES)
  assert {name for name in names if name.startswith('uadjax.')} <= ours  # Else a name is stale.
  assert not names & set(loaded)


def test_public_names_resolve_at_first_use():
  import uadjax

  assert all(getattr(uadjax, name) is not None for name in uadjax.__all__)
  assert set(dir(uadjax)) == set(uadjax.__all__)
  with pytest.raises(AttributeError, match='no_such_name'):
    uadjax.no_such_name  # noqa: B018
