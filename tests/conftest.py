"""Every test runs strictly: eight CPU devices, no silent promotion, shapes checked."""

import contextlib
import os
from pathlib import Path
import shutil
import tempfile
import threading
import time

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['JAX_PLATFORMS'] = 'cpu'
# Workers keep all cores busy: a compilation that is cut up for threads only takes longer.
os.environ.setdefault('XLA_FLAGS', '--xla_cpu_parallel_codegen_split_count=1')
# What takes long to compile is compiled once for all workers and the processes that they start.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  COMPILED = tempfile.TemporaryDirectory(prefix='uadjax-compiled-')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED.name
  os.environ['JAX_COMPILATION_CACHE_MAX_SIZE'] = str(20 << 30)  # With a limit there is a lock.
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jaxtyping

# Before the package is imported: every annotated shape is then checked at every call.
jaxtyping.install_import_hook('uadjax', 'beartype.beartype')

import hypothesis
import jax
import pytest

from uadjax import main
from uadjax.data import demo

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Examples are not timed: a shared machine would make them fail now and then. Half as many as usual
# in each run, and others in the next.
hypothesis.settings.register_profile('unhurried', deadline=None, max_examples=50)
hypothesis.settings.load_profile('unhurried')

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
SMALL = (
  '--config.data.ops=resize(32, 48)',
  '--config.data.category=disc',
  '--config.detector.layers=layer1,layer2',
  '--config.backbone.weights=random',
  '--config.fit.batch_size=4',
  '--config.evaluate.do_eval=false',
)
SMALLER = {
  'padim': '--config.detector.channels=9',
  'patchcore': '--config.detector.ratio=0.1',
  'stfpm': '--config.fit.steps=3',
}


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real images and weights beside the checkout."""
  if not SHARED.is_dir():
    pytest.skip('needs the real images and weights in ../shared, which is absent')
  return SHARED


@pytest.fixture(scope='session')
def drawn(tmp_path_factory) -> Path:
  """A small demo set, to be read only."""
  folder = tmp_path_factory.mktemp('drawn')
  return demo.draw(folder, size=60, train=10, test_good=2, test_defect=1)


@pytest.fixture(scope='session')
def fitted(drawn, tmp_path_factory):
  """Makes directories of small models of discs; what is fitted once is copied from then on."""
  kept = {}

  def directory(name: str, *flags: str) -> Path:
    if (name, *flags) not in kept:
      workdir = tmp_path_factory.mktemp(name)
      where = f'--config.data.root={drawn}', f'--workdir={workdir}'
      config = f'--config={ROOT / "configs" / name}.py'
      assert main.main([config, *SMALL, SMALLER[name], *where, *flags]) == 0
      kept[name, *flags] = workdir / 'model'
    return shutil.copytree(kept[name, *flags], tmp_path_factory.mktemp('copy') / 'model')

  return directory


@pytest.fixture(scope='session')
def served():
  """Runs a service in a thread; gives its address once its models are warm."""
  uvicorn = pytest.importorskip('uvicorn', reason='needs the extra serve')

  @contextlib.contextmanager
  def address(application):
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_config=None, ws='none'))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not (server.started and application.state.service.ready):
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
