"""Variables of a backbone, from a file, its publisher, this package, or a random generator.

`formats` and `pickle_interpreter` read files without calling what a pickle names, `key_mapping`
and `vit_files` translate names of tensors, and `download` fetches and verifies published files.
"""

from collections.abc import Iterator, Sequence
import hashlib
from pathlib import Path
from typing import NamedTuple

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np

from uadjax.backbones import architecture as architectures, Backbone, compact, ConvNet, vit
from uadjax.backbones.weights import download, formats, key_mapping, vit_files
from uadjax.errors import refuse, Setting, WeightsError
from uadjax.system import files, logging
from uadjax.types import Variables

TORCHVISION = 'https://download.pytorch.org/models'
META = 'https://dl.fbaipublicfiles.com'
DINOV3 = 'https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/'

# The eight hexadecimal digits are the beginning of the file's SHA-256.
FILES = {
  'resnet18': 'resnet18-f37072fd.pth',
  'resnet34': 'resnet34-b627a593.pth',
  'resnet50': 'resnet50-0676ba61.pth',
  'resnet101': 'resnet101-63fe2227.pth',
  'wide_resnet50_2': 'wide_resnet50_2-95faca4d.pth',
}
# Below META. These names bear no checksum, so `fetch_published` records it at first use. DINO's
# ViT-S was named after DeiT-S, which has the same sizes.
META_FILES = {
  name: f'{name.partition("_")[0]}/{file}/{file}.pth'
  for name, file in {
    'dino_vits16': 'dino_deitsmall16_pretrain', 'dino_vits8': 'dino_deitsmall8_pretrain',
    'dino_vitb16': 'dino_vitbase16_pretrain', 'dino_vitb8': 'dino_vitbase8_pretrain',
  }.items()
} | {
  f'dinov2_vit{letter}14{suffix}':
    f'dinov2/dinov2_vit{letter}14/dinov2_vit{letter}14{suffix.replace("reg", "reg4")}_pretrain.pth'
  for letter in 'sblg' for suffix in ('', '_reg')
}  # fmt: skip
# Meta sends their addresses to those who accept the license.
DINOV3_FILES = {
  'dinov3_vits16': 'dinov3_vits16_pretrain_lvd1689m-08c60483.pth',
  'dinov3_vits16plus': 'dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth',
  'dinov3_vitb16': 'dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth',
  'dinov3_vitl16': 'dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth',
}
# torchvision licenses weights like its code. The embedded weights were distilled from them.
_LICENSES = {'imagenet': 'BSD-3-Clause', 'published': 'Apache-2.0', 'embedded': 'Apache-2.0'}
# compact.json, in the same folder, records how these weights were made.
EMBEDDED = Path(compact.__file__).with_name('compact.safetensors')
_MAX_BYTES = 6 << 30  # The largest published backbone, ViT-g, has 4.5 GB.
_DISTILLED_FROM = 'resnet18'
_DIGEST_LENGTH = 64  # Hexadecimal digits of a SHA-256.
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
    weights: 'imagenet', 'published', 'embedded', 'random' or a file.
    fallback_reason: why 'auto' did not select ImageNet weights; empty otherwise.
  """

  name: str
  weights: str
  fallback_reason: str = ''


def choose(name: str, weights: str, stages: Sequence[str]) -> Choice:
  """Return the backbone and weights that 'auto' or 'embedded' selects; keep any other choice.

  'auto' selects ImageNet weights if they are cached or can be downloaded, otherwise the embedded
  weights. These belong to the compact network, which replaces all stages of ResNet-18 but the last.
  Of a vision transformer it selects the weights that its authors published.

  Raises:
    WeightsError: 'auto' finds no weights.
    ConfigError: 'embedded' does not support the network or its stages, or 'imagenet' or 'published'
      the network.
  """
  is_compact = name == compact.NAME
  can_embed = is_compact or (name == _DISTILLED_FROM and set(stages) <= set(compact.STAGES))
  reason = ''
  if weights in ('imagenet', 'published'):
    _require_published(name, weights)
  if weights not in ('auto', 'embedded'):
    return Choice(name, weights)
  if weights == 'auto' and not is_compact:
    try:
      fetch_published(name)
      return Choice(name, 'published' if _is_transformer(name) else 'imagenet')
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
    weights: a file, 'imagenet' (torchvision's), 'published' (a vision transformer's authors'),
      'embedded' (this package's) or 'random'. `choose` resolves 'auto'.
    module: the backbone, up to the last stage that is needed.

  Raises:
    WeightsError: the file is missing, damaged or from another network. The message names the file,
      the tensor or stage, the expected value, and the fix.
  """
  if weights == 'random':
    # No configured seed yields this key, so that a student never starts equal to its teacher.
    key = jax.random.fold_in(jax.random.key(0), 1)
    variables = jax.jit(module.init)(key, jnp.zeros((1, module.min_side, module.min_side, 3)))
    return variables, Provenance('random', 'random initialization', '')
  if weights in ('imagenet', 'published'):
    path, source = fetch_published(module.arch)
  elif weights == 'embedded':
    path, source = EMBEDDED, 'embedded in uadjax (see NOTICE)'
  else:
    path, source = Path(weights).expanduser(), weights
  data = _read_file(path, weights)
  digest = hashlib.sha256(data).hexdigest()
  provenance = Provenance(path.name, source, digest, _LICENSES.get(weights, ''))
  return _parse_variables(data, module, path), provenance


def complete_architecture(name: str, weights: str, architecture: str) -> str:
  """Return `backbone.architecture`, with what it omits read off the weights, if they are a file.

  That of another backbone than `vit` is returned as it is.

  Raises:
    WeightsError: the file cannot be read, or is of no vision transformer.
    ConfigError: the architecture is invalid.
  """
  sizes, path = architectures.parse(architecture), Path(weights).expanduser()
  is_complete = len(sizes) == len(architectures.Architecture._fields)
  if name != architectures.NAME or is_complete or not path.is_file():
    return architecture
  tensors = _read_tensors(_read_file(path, weights), path)
  try:
    spelling = vit_files.detect_spelling(tensors)
    result = vit_files.read_sizes(vit_files.rename(tensors), spelling, sizes)
  except ValueError as error:
    hint = 'Choose other ', _WEIGHTS, ' or another ', _NAME, '.'
    message = f'{path} holds no vision transformer: {error}.'
    raise WeightsError(message, key=_WEIGHTS.key, value=weights, hint=hint) from None
  architectures.require_valid(result)
  return str(result)


def _read_file(path: Path, weights: str) -> bytes:
  try:
    with files.open_regular(path, _MAX_BYTES) as file:
      return file.read()
  except OSError as error:
    message = f'Cannot read weights {path}: {error.strerror}.'
    hint = _WEIGHTS, " is 'auto', 'imagenet', 'published', 'embedded', 'random' or a file."
    raise WeightsError(message, key=_WEIGHTS.key, value=weights, hint=hint) from None


def _is_transformer(arch: str) -> bool:
  return arch in architectures.PUBLISHED or arch == architectures.NAME


def _require_published(arch: str, weights: str = '') -> None:
  """Check that there are weights to download: 'imagenet', 'published', or of either kind."""
  kinds = {'imagenet': FILES, 'published': META_FILES, '': published_files()}
  if arch in kinds[weights]:
    return
  if arch in DINOV3_FILES:
    message = (
      f'The weights of {arch}, {DINOV3_FILES[arch]}, are published for those who accept their '
      f'license, at {DINOV3}.'
    )
    refuse(_NAME.key, arch, message, 'Set ', Setting(_WEIGHTS.key, 'FILE'), ' to that file.')
  kind = 'ImageNet ' if weights == 'imagenet' else ''
  message = f'There are no published {kind}weights for {arch}, only for {sorted(kinds[weights])}.'
  hint = 'Choose other weights (', _WEIGHTS, ') or another ', _NAME, '.'
  refuse(_NAME.key, arch, message, *hint, allowed=sorted(kinds[weights]))


def published_files() -> dict[str, str]:
  """Return the URL of the published weights of each backbone that has any."""
  urls = {name: f'{TORCHVISION}/{file}' for name, file in FILES.items()}
  return urls | {name: f'{META}/{file}' for name, file in META_FILES.items()}


def cache_path(arch: str) -> Path:
  """Return the path at which published weights are cached."""
  return files.cache_dir() / 'weights' / published_files()[arch].rpartition('/')[2]


def expected_digest(arch: str) -> str:
  """Return what the SHA-256 of published weights must begin with.

  It is part of the names of torchvision's files; of others it is what `fetch_published` recorded,
  or '' if they were not used yet.
  """
  path = cache_path(arch)
  if arch in FILES:
    return path.stem.rpartition('-')[2]
  record = _record_path(path)
  return record.read_text()[:_DIGEST_LENGTH] if record.is_file() else ''


def _record_path(path: Path) -> Path:
  return path.with_name(f'{path.name}.sha256')  # As of the program sha256sum.


def fetch_published(arch: str) -> tuple[Path, str]:
  """Return the cached path and the URL of published weights, downloading them if necessary.

  A damaged file in the cache is downloaded again.

  Raises:
    ConfigError: the backbone has no published weights.
    WeightsError: the file cannot be downloaded.
  """
  _require_published(arch)
  path, url, digest = cache_path(arch), published_files()[arch], expected_digest(arch)
  if path.exists() and not files.sha256(path).startswith(digest):
    logging.LOG.warning('%s is damaged and will be downloaded again.', path)
    path.unlink()
  if not path.exists():
    download.fetch(url, path, digest)
  if not digest and not files.unwritable_reason(path.parent):
    files.write_text(_record_path(path), f'{files.sha256(path)}  {path.name}\n')
  return path, url


def _read_tensors(data: bytes, path: Path) -> formats.Tensors:
  try:
    return formats.read(data)
  except ValueError as error:
    hint = 'Pass a state_dict as .pth, .safetensors, .npz or .pdparams, or download the file again.'
    raise WeightsError(f'{path} is damaged or holds no weights: {error}.', hint=hint) from error


def _parse_variables(data: bytes, module: Backbone, path: Path) -> Variables:
  tensors = _read_tensors(data, path)
  try:
    if isinstance(module, vit.VisionTransformer):
      return _parse_transformer(tensors, module, path)
    return _parse_conv_net(tensors, module, path)
  except ValueError as error:
    network = f'{module.arch} with stages {list(module.stages)}'
    hint = 'Choose other ', _WEIGHTS, ', another ', _NAME, ' or other ', _LAYERS, '.'
    raise WeightsError(f'{path} does not fit {network}: {error}.', hint=hint) from None


def _parse_transformer(
  tensors: formats.Tensors, module: vit.VisionTransformer, path: Path
) -> Variables:
  """Return the variables of a vision transformer; ValueError if the tensors do not fit it."""
  tensors = {
    name: _to_float32(value, name, path) for name, value in vit_files.rename(tensors).items()
  }
  leaves = vit_files.to_leaves(tensors, module)
  return {'params': traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, leaves))}


def _parse_conv_net(tensors: formats.Tensors, module: ConvNet, path: Path) -> Variables:
  """Return the variables of a convolutional network; ValueError if the tensors do not fit it."""
  tensors = {
    key_mapping.to_torchvision_name(name, module.depths): value for name, value in tensors.items()
  }
  expected = key_mapping.expected_tensors(module)
  if mismatch := next(_mismatches(tensors, expected), ''):
    raise ValueError(mismatch)
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
  value = _to_float32(value, name, path)
  return jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)


def _to_float32(value: np.ndarray, name: str, path: Path) -> np.ndarray:
  if value.dtype.kind != 'f' and value.dtype != jnp.bfloat16:
    raise WeightsError(f'{path}: {name} has type {value.dtype}; weights must be floating point.')
  with np.errstate(over='ignore'):
    value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise WeightsError(f'{path} is damaged: {name} has values that are not finite.')
  return value
