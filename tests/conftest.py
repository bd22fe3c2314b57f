"""Every test runs strictly: eight CPU devices, no silent promotion, shapes checked."""

import os
from pathlib import Path
import shutil
import tempfile

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['JAX_PLATFORMS'] = 'cpu'
# What takes long to compile is compiled once for each worker and the processes that it starts.
COMPILED = tempfile.TemporaryDirectory(prefix='uadjax-compiled-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jaxtyping

# Before the package is imported: every annotated shape is then checked at every call.
jaxtyping.install_import_hook('uadjax', 'beartype.beartype')

import hypothesis
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Examples are not timed: a shared machine would make them fail now and then. Half as many as usual
# in each run, and others in the next.
hypothesis.settings.register_profile('unhurried', deadline=None, max_examples=50)
hypothesis.settings.load_profile('unhurried')

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared'


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real images and weights beside the checkout."""
  if not SHARED.is_dir():
    pytest.skip('needs the real images and weights in ../shared, which is absent')
  return SHARED


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
