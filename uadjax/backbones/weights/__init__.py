"""Variables of a backbone, from a file, torchvision's servers, this package, or a random generator.

`formats` and `pickle_interpreter` read files without calling what a pickle names, `key_mapping`
translates names of tensors, and `download` fetches and verifies published files.
"""

from collections.abc import Iterator, Sequence
import hashlib
from pathlib import Path
from typing import NamedTuple

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np

from uadjax.backbones import Backbone, compact
from uadjax.backbones.weights import download, formats, key_mapping
from uadjax.errors import refuse, Setting, WeightsError
from uadjax.system import files, logging
from uadjax.types import Variables

TORCHVISION = 'https://download.pytorch.org/models'

# The eight hexadecimal digits are the beginning of the file's SHA-256.
FILES = {
  'resnet18': 'resnet18-f37072fd.pth',
  'resnet34': 'resnet34-b627a593.pth',
  'resnet50': 'resnet50-0676ba61.pth',
  'resnet101': 'resnet101-63fe2227.pth',
  'wide_resnet50_2': 'wide_resnet50_2-95faca4d.pth',
}
# torchvision licenses weights like its code. The embedded weights were distilled from them.
_LICENSES = {'imagenet': 'BSD-3-Clause', 'embedded': 'Apache-2.0'}
# compact.json, in the same folder, records how these weights were made.
EMBEDDED = Path(compact.__file__).with_name('compact.safetensors')
_MAX_BYTES = 4 << 30  # This is more than ten times the largest ResNet.
_DISTILLED_FROM = 'resnet18'
_NAME, _LAYERS = Setting('backbone.name'), Setting('detector.layers')
_WEIGHTS = Setting('backbone.weights')


class Provenance(NamedTuple):
  """Origin of weights.

  Attributes:
    name: name of the file, or 'random'.
    source: URL, path or description.
    sha256: SHA-256 of the file; empty for random weights.
    license: SPDX identifier; empty if unknown.
  """

  name: str
  source: str
  sha256: str
  license: str = ''


class Choice(NamedTuple):
  """Selected backbone and weights.

  Attributes:
    name: name of the backbone.
    weights: 'imagenet', 'embedded', 'random' or a file.
    fallback_reason: why 'auto' did not select ImageNet weights; empty otherwise.
  """

  name: str
  weights: str
  fallback_reason: str = ''


def choose(name: str, weights: str, stages: Sequence[str]) -> Choice:
  """Return the backbone and weights that 'auto' or 'embedded' selects; keep any other choice.

  'auto' selects ImageNet weights if they are cached or can be downloaded, otherwise the embedded
  weights. These belong to the compact network, which replaces all stages of ResNet-18 but the last.

  Raises:
    WeightsError: 'auto' finds no weights.
    ConfigError: 'embedded' does not support the network or its stages, or 'imagenet' the network.
  """
  is_compact = name == compact.NAME
  can_embed = is_compact or (name == _DISTILLED_FROM and set(stages) <= set(compact.STAGES))
  reason = ''
  if weights == 'imagenet':
    _require_published(name)
  if weights not in ('auto', 'embedded'):
    return Choice(name, weights)
  if weights == 'auto' and not is_compact:
    try:
      fetch_published(name)
      return Choice(name, 'imagenet')
    except WeightsError as error:
      if not can_embed:
        raise
      reason = str(error)
  if not can_embed:
    supported = f'stages {list(compact.STAGES)} of {_DISTILLED_FROM}'
    message = f'The embedded weights support {supported}, not {list(stages)} of {name}.'
    hint = 'Set ', _WEIGHTS, " to 'imagenet', 'random' or a file, or choose those stages."
    refuse(_WEIGHTS.key, weights, message, *hint)
  return Choice(compact.NAME, 'embedded', reason)


def load(weights: str, module: Backbone) -> tuple[Variables, Provenance]:
  """Return the variables of a backbone and their origin.

  Args:
    weights: a file, 'imagenet' (torchvision's), 'embedded' (this package's) or 'random'. `choose`
      resolves 'auto'.
    module: the backbone, up to the last stage that is needed.

  Raises:
    WeightsError: the file is missing, damaged or from another network. The message names the file,
      the tensor or stage, the expected value, and the fix.
  """
  if weights == 'random':
    # No configured seed yields this key, so that a student never starts equal to its teacher.
    key = jax.random.fold_in(jax.random.key(0), 1)
    variables = jax.jit(module.init)(key, jnp.zeros((1, 32, 32, 3)))
    return variables, Provenance('random', 'random initialization', '')
  if weights == 'imagenet':
    path, source = fetch_published(module.arch)
  elif weights == 'embedded':
    path, source = EMBEDDED, 'embedded in uadjax (see NOTICE)'
  else:
    path, source = Path(weights).expanduser(), weights
  try:
    with files.open_regular(path, _MAX_BYTES) as file:
      data = file.read()
  except OSError as error:
    message = f'Cannot read weights {path}: {error.strerror}.'
    hint = _WEIGHTS, " is 'auto', 'imagenet', 'embedded', 'random' or a file."
    raise WeightsError(message, key=_WEIGHTS.key, value=weights, hint=hint) from None
  digest = hashlib.sha256(data).hexdigest()
  provenance = Provenance(path.name, source, digest, _LICENSES.get(weights, ''))
  return _parse_variables(data, module, path), provenance


def _require_published(arch: str) -> None:
  if arch not in FILES:
    message = f'There are no published ImageNet weights for {arch}, only for {sorted(FILES)}.'
    hint = 'Choose other weights (', _WEIGHTS, ') or another ', _NAME, '.'
    refuse(_NAME.key, arch, message, *hint, allowed=sorted(FILES))


def cache_path(arch: str) -> Path:
  """Return the path at which torchvision's weights are cached."""
  return files.cache_dir() / 'weights' / FILES[arch]


def fetch_published(arch: str) -> tuple[Path, str]:
  """Return the cached path and the URL of torchvision's weights, downloading them if necessary.

  A damaged file in the cache is downloaded again.

  Raises:
    ConfigError: the backbone has no published weights.
    WeightsError: the file cannot be downloaded.
  """
  _require_published(arch)
  path = cache_path(arch)
  digest, url = path.stem.rpartition('-')[2], f'{TORCHVISION}/{path.name}'
  if path.exists() and not files.sha256(path).startswith(digest):
    logging.LOG.warning('%s is damaged and will be downloaded again.', path)
    path.unlink()
  if not path.exists():
    download.fetch(url, path, digest)
  return path, url


def _parse_variables(data: bytes, module: Backbone, path: Path) -> Variables:
  try:
    tensors = formats.read(data)
  except ValueError as error:
    hint = 'Pass a state_dict as .pth, .safetensors, .npz or .pdparams, or download the file again.'
    raise WeightsError(f'{path} is damaged or holds no weights: {error}.', hint=hint) from error
  tensors = {
    key_mapping.to_torchvision_name(name, module.depths): value for name, value in tensors.items()
  }
  expected = key_mapping.expected_tensors(module)
  if mismatch := next(_mismatches(tensors, expected), ''):
    network = f'{module.arch} with stages {list(module.stages)}'
    hint = 'Choose other ', _WEIGHTS, ', another ', _NAME, ' or other ', _LAYERS, '.'
    raise WeightsError(f'{path} does not fit {network}: {mismatch}.', hint=hint)
  leaves = {keys: _to_leaf(tensors[name], name, path) for name, (keys, _) in expected.items()}
  return traverse_util.unflatten_dict(leaves)


def _mismatches(tensors: formats.Tensors, expected: key_mapping.ExpectedTensors) -> Iterator[str]:
  """Yield the differences between names and shapes of a file and those of a network.

  A file may have further stages, a head, and counters of BatchNorm.
  """
  modules, available = map(key_mapping.top_level_modules, (expected, tensors))
  for module in modules:
    if module not in available:
      yield f'it has no {module}, only {available}'
  for name, (_, shape) in expected.items():
    if name not in tensors:
      yield f'it has no tensor {name}'
    elif tensors[name].shape != shape:
      yield f'{name} must have shape {shape}, but has {tensors[name].shape}'
  for name in tensors:
    is_counter = name.endswith('_tracked')
    if name not in expected and name.split('.')[0] in modules and not is_counter:
      yield f'unexpected tensor {name}'


def _to_leaf(value: np.ndarray, name: str, path: Path) -> jax.Array:
  if value.dtype.kind != 'f' and value.dtype != jnp.bfloat16:
    raise WeightsError(f'{path}: {name} has type {value.dtype}; weights must be floating point.')
  with np.errstate(over='ignore'):
    value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise WeightsError(f'{path} is damaged: {name} has values that are not finite.')
  return jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
