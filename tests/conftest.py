"""Every test runs strictly: eight CPU devices, no silent promotion, shapes checked."""

import os
from pathlib import Path

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jaxtyping

# Before the package is imported: every annotated shape is then checked at every call.
jaxtyping.install_import_hook('uadjax', 'beartype.beartype')

import hypothesis
import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

# Examples are not timed: a shared machine would make them fail now and then.
hypothesis.settings.register_profile('unhurried', deadline=None)
hypothesis.settings.load_profile('unhurried')

SHARED = Path(__file__).resolve().parent.parent.parent / 'shared'


@pytest.fixture(scope='session')
def shared() -> Path:
  """The folder of real images and weights beside the checkout."""
  if not SHARED.is_dir():
    pytest.skip('needs the real images and weights in ../shared, which is absent')
  return SHARED


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory):
  """Compile once per module: where most runs need the same programs, and do little else."""
  settings = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for values in (settings, before):
    compilation_cache.reset_cache()
    for name, value in values.items():
      jax.config.update(name, value)
    if values is settings:
      yield
