"""A backbone's variables: from a file, torchvision's servers or this package, or at random.

Formats of files are read in `formats` and `unpickler` (no pickle is executed), names of tensors are
translated in `key_mapping`, and published files are fetched and verified in `download`.
"""

from collections.abc import Sequence
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np

from uadjax.backbones import Backbone, compact
from uadjax.backbones.weights import download, formats, key_mapping
from uadjax.errors import Setting, WeightsError
from uadjax.system import files
from uadjax.types import Variables

TORCHVISION = 'https://download.pytorch.org/models'

# The eight hexadecimal digits begin the file's SHA-256.
FILES = {
  'resnet18': 'resnet18-f37072fd.pth',
  'resnet34': 'resnet34-b627a593.pth',
  'resnet50': 'resnet50-0676ba61.pth',
  'resnet101': 'resnet101-63fe2227.pth',
  'wide_resnet50_2': 'wide_resnet50_2-95faca4d.pth',
}
# Of torchvision, code and weights; of ours, which were distilled from those.
_LICENSES = {'imagenet': 'BSD-3-Clause', 'embedded': 'Apache-2.0'}
# With its card and origin beside it.
EMBEDDED = Path(compact.__file__).with_name('compact.safetensors')
_DISTILLED_FROM = 'resnet18'  # By the compact network.
_CONFIG_KEY = 'backbone.weights'


class Provenance(NamedTuple):
  """Where weights came from.

  Attributes:
    name: of the file, or 'random'.
    source: URL or path.
    sha256: of the whole file; empty for random weights.
    license: SPDX identifier, where it is known.
  """

  name: str
  source: str
  sha256: str
  license: str = ''


class Choice(NamedTuple):
  """Which network, which weights, and why not those that `auto` means first, if so."""

  name: str
  weights: str
  fallback_reason: str = ''


def choose(name: str, weights: str, stages: Sequence[str], base_url: str = TORCHVISION) -> Choice:
  """Decide what 'auto' and 'embedded' stand for.

  'auto' is ImageNet's weights where they are cached or can be downloaded. The embedded weights are
  those of the compact network, which has the stages of ResNet-18 but the last.

  Raises:
    WeightsError: 'auto' has neither, or 'embedded' is not of such a network.
  """
  if name not in (*FILES, compact.NAME):  # Which is told where it is built.
    return Choice(name, weights)
  can_use_embedded = name == _DISTILLED_FROM and set(stages) <= set(compact.STAGES)
  if weights == 'auto' and name != compact.NAME:
    reason = ''
    # One that is damaged is removed, and then fetched anew.
    for _ in range(2 if cache_path(name).is_file() else 1):
      try:
        fetch_published(name, base_url)
        return Choice(name, 'imagenet')
      except WeightsError as error:
        reason = str(error)
    if not can_use_embedded:
      raise WeightsError(reason)
    return Choice(compact.NAME, 'embedded', reason)
  if weights in ('auto', 'embedded'):
    if name != compact.NAME and not can_use_embedded:
      raise WeightsError(
        f'The embedded weights imitate {list(compact.STAGES)} of {_DISTILLED_FROM}, not {list(stages)} '
        f'of {name}.',
        key=_CONFIG_KEY,
        value=weights,
        hint=(
          'Choose others (',
          Setting(_CONFIG_KEY),
          ": 'imagenet', 'random' or a file), or that network.",
        ),
      )
    return Choice(compact.NAME, 'embedded')
  return Choice(name, weights)


def load(
  weights: str, module: Backbone, base_url: str = TORCHVISION
) -> tuple[Variables, Provenance]:
  """Read the variables of `module`.

  Args:
    weights: a file, 'imagenet' (torchvision's), 'embedded' (of this package) or 'random'; `choose`
      comes first where it may be 'auto'.
    module: up to its last stage.
    base: where torchvision's files are.

  Raises:
    WeightsError: naming the file, the tensor or stage, what was expected, and the way out.
  """
  if weights == 'random':
    # A key that no configured seed gives: a student must not begin as its teacher.
    key = jax.random.fold_in(jax.random.key(0), 1)
    variables = jax.jit(module.init)(key, jnp.zeros((1, 32, 32, 3)))
    return variables, Provenance('random', 'random initialization', '')
  if weights == 'imagenet':
    path, source = fetch_published(module.arch, base_url)
  elif weights == 'embedded':
    path, source = EMBEDDED, 'embedded in uadjax (see NOTICE)'
  else:
    path, source = Path(weights).expanduser(), weights
  try:
    data = path.read_bytes()
  except OSError as error:
    raise WeightsError(
      f'Cannot read weights {path}: {error.strerror}.',
      key=_CONFIG_KEY,
      value=weights,
      hint=(Setting(_CONFIG_KEY), " is 'auto', 'imagenet', 'embedded', 'random' or a file."),
    ) from None
  variables = _parse_variables(data, module, path)
  spdx_license = _LICENSES.get(weights, '')
  return variables, Provenance(path.name, source, hashlib.sha256(data).hexdigest(), spdx_license)


def cache_path(arch: str) -> Path:
  """Where torchvision's file lies once it has been downloaded."""
  return files.cache_dir() / 'weights' / FILES[arch]


def fetch_published(arch: str, base_url: str = TORCHVISION) -> tuple[Path, str]:
  """Find torchvision's file in the cache, which is filled first where it has to be."""
  if arch not in FILES:
    raise WeightsError(
      f'Nobody published ImageNet weights of {arch}.',
      key='backbone.name',
      value=arch,
      allowed=sorted(FILES),
      hint=(
        'Choose another ',
        Setting(_CONFIG_KEY),
        f', or one of {sorted(FILES)} (',
        Setting('backbone.name'),
        ').',
      ),
    )
  path = cache_path(arch)
  digest, url = path.stem.rpartition('-')[2], f'{base_url}/{path.name}'
  try:
    if path.exists():
      download.verify(path, digest, str(path))
    else:
      download.fetch(url, path, digest)
  except WeightsError as error:
    raise WeightsError(
      str(error),
      key=_CONFIG_KEY,
      hint=(
        f'Run again to download it, put the file at {path}, or name a file that you have with ',
        Setting(_CONFIG_KEY, 'FILE'),
        '.',
      ),
    ) from error
  return path, url


def _parse_variables(data: bytes, module: Backbone, path: Path) -> Variables:
  try:
    tensors = formats.read(data)
  except ValueError as error:
    raise WeightsError(
      f'{path} is damaged or holds no weights: {error}. Give a state_dict as .pth, .safetensors, '
      f'.npz or .pdparams, or download the file again.'
    ) from error
  tensors_by_name = {
    key_mapping.to_torchvision_name(name, module.depths): value for name, value in tensors.items()
  }
  expected = key_mapping.expected_tensors(module)
  _require_matching_tensors(tensors_by_name, expected, module, path)
  flat_variables = {
    variable_path: _to_leaf(tensors_by_name[name], name, path)
    for name, (variable_path, _) in expected.items()
  }
  return traverse_util.unflatten_dict(flat_variables)


def _require_matching_tensors(
  tensors_by_name: formats.Tensors, expected: dict[str, Any], module: Backbone, path: Path
) -> None:
  """Refuse what is not, tensor for tensor, the network up to its last stage."""
  needed_modules, available_modules = (
    key_mapping.top_level_modules(expected),
    key_mapping.top_level_modules(tensors_by_name),
  )
  for top_level_module in needed_modules:
    if top_level_module not in available_modules:
      raise WeightsError(
        f'{path} has no {top_level_module}, which {module.arch} with stages {list(module.stages)} needs; it '
        f'has {available_modules}.',
        key='detector.layers',
        value=module.stages,
        hint=(
          'Name a file that holds it (',
          Setting(_CONFIG_KEY, 'FILE'),
          '), or other stages (',
          Setting('detector.layers'),
          ').',
        ),
      )
  hint = (
    f'Name the file of a {module.arch} (',
    Setting(_CONFIG_KEY),
    '), or another ',
    Setting('backbone.name'),
    '.',
  )
  for name, (_, shape) in expected.items():
    if name not in tensors_by_name:
      raise WeightsError(f'{path} is not of {module.arch}: it has no tensor {name}.', hint=hint)
    if tensors_by_name[name].shape != shape:
      raise WeightsError(
        f'{path} is not of {module.arch}: {name} should have shape {shape} and has '
        f'{tensors_by_name[name].shape}.',
        hint=hint,
      )
  for name in tensors_by_name:
    if (
      name not in expected
      and key_mapping.top_level_module(name) in needed_modules
      and not name.endswith('_tracked')
    ):
      raise WeightsError(f'{path} is not of {module.arch}: it also has a tensor {name}.', hint=hint)


def _to_leaf(value: np.ndarray, name: str, path: Path) -> jax.Array:
  if value.dtype.kind != 'f' and value.dtype != jnp.bfloat16:
    raise WeightsError(f'{path}: {name} has type {value.dtype}; weights are floating point.')
  with np.errstate(over='ignore'):
    value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise WeightsError(f'{path} is damaged: {name} has values that are not finite.')
  return jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
