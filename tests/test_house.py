"""The architecture as laws: imports go one way, a foreign library lives in one room."""

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'uadjax'

# A room may import from its own floor's packages and from floors before it.
FLOORS = (
  ('__init__',),
  ('types',),
  ('files', 'hostmemory', 'interrupts', 'launchers', 'tables', 'threads', 'config', 'numerics'),
  ('hosts', 'parts'),
  ('backbones', 'data'),
  ('fetch',),
  ('inputs',),
  ('detectors',),
  ('sharding', 'checkpoint', 'learned', 'telemetry'),
  ('score', 'frozen'),
  ('fit',),
  ('onepass',),
  ('pen',),
  ('calibrate', 'metrics', 'visualize', 'page'),
  ('groundtruth', 'histogram', 'verdict'),
  ('labelled',),
  ('bundle', 'inspection', 'result', 'runtimes'),
  ('export',),
  ('predict', 'curves', 'demo_model'),
  ('bulk', 'pipelines', 'report'),
  ('evaluate',),
  ('workdir',),
  ('train', 'trial', 'weights'),
  ('assess',),
  ('run',),
  ('fitting', 'serve', 'sweep'),
  ('main', 'cli'),
  ('__main__',),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Where a foreign library may be named.
ROOMS = {
  'orbax': {'checkpoint', 'hosts'},  # There for its barrier.
  'clu': {'telemetry'},
  'tensorflow': {'data', 'telemetry', 'export'},
  'tensorflow_datasets': {'data'},
  'jax2onnx': {'export'},
  'onnx': {'export'},
  'onnxruntime': {'runtimes', 'export'},
  'openvino': {'runtimes'},
  'fastapi': {'serve'},
  'orjson': {'serve'},
  'prometheus_client': {'serve'},
  'pydantic': {'serve'},
  'starlette': {'serve'},
  'uvicorn': {'serve'},
}


def modules() -> list[Path]:
  return sorted(PACKAGE.rglob('*.py'))


def room(path: Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(path: Path) -> Iterator[str]:
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
  for name in imported(path):
    parts = name.split('.')
    if parts[0] != 'uadjax' or len(parts) < 2 or room(path) == '__init__':
      continue  # The package's own __init__ names what others define, for type checkers alone.
    same_package = parts[1] == room(path) and path.parent != PACKAGE
    assert same_package or FLOOR[parts[1]] < FLOOR[room(path)] or room(path) == 'main', name


@pytest.mark.parametrize('path', modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_foreign_library_lives_in_one_room(path):
  for name in imported(path):
    top = name.split('.')[0]
    assert room(path) in ROOMS.get(top, {room(path)}), f'{name} belongs in {ROOMS[top]}'


def test_every_room_has_a_floor():
  assert {room(path) for path in modules()} == set(FLOOR)


def test_importing_the_package_imports_neither_jax_nor_tensorflow():
  code = 'import uadjax, sys; print(sorted({"jax", "tensorflow", "numpy"} & sys.modules.keys()))'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == '[]'


def test_public_names_resolve_at_first_use():
  import uadjax

  assert all(getattr(uadjax, name) is not None for name in uadjax.__all__)
  assert set(dir(uadjax)) == set(uadjax.__all__)
  with pytest.raises(AttributeError, match='no_such_name'):
    uadjax.no_such_name  # noqa: B018


def test_predicting_imports_no_tensorflow():
  code = 'import uadjax.inference.pipelines, sys; print("tensorflow" in sys.modules)'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == 'False'
