"""The model directory: what scoring needs, as `manifest.json` and `fitted.safetensors`.

Everything downstream of fitting opens one of these and nothing else. The arrays may take gigabytes:
they are written from where they lie, and read into the memory that they then stay in.
"""

from collections.abc import Callable, Iterator, Mapping
import csv
import hashlib
import itertools
import json
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import uadjax
from uadjax import backbones, calibrate, config as configs, detectors, score
from uadjax.backbones import pretrained
from uadjax.data import transforms
from uadjax.detectors.base import Detector, Spec
from uadjax.distributed import mesh
from uadjax.errors import ConfigError, ModelError
from uadjax.system import files
from uadjax.types import Config, Scores

_VERSION = 2
_ARRAYS, _MANIFEST = 'fitted.safetensors', 'manifest.json'
_CALIBRATION = 'calibration.csv'

# The types of arrays in fitted models, by safetensors' names.
_TYPES = {'F32': np.dtype('f4'), 'I32': np.dtype('i4'), 'U8': np.dtype('u1'), 'BOOL': np.dtype('?')}
_ALIGNED = 64  # Bytes: JAX takes memory of the host as its own, uncopied, where it is aligned so.
_PIECE = 1 << 20  # Bytes hashed while they are in the processor's cache, being copied.


class Model(NamedTuple):
  """An opened model directory.

  Attributes:
    name: the detector's, such as STFPM.
    config: the resolved configuration that it was fitted with.
    ops: the pixel path from files to network size.
    fitted: the arrays.
    score: jitted (fitted, uint8 images [b h w 3]) -> Scores.
    limits: the calibrated thresholds.
    weights: where the backbone's weights came from.
    directory: where it lies.
    split: what of `fitted` lies split over devices, see `mesh.place`; None where it is whole.
  """

  name: str
  config: Config
  ops: transforms.Ops
  fitted: Any
  score: Callable[[Any, Any], Scores]
  limits: calibrate.Limits
  weights: pretrained.Provenance
  directory: Path
  split: Any = None


class About(NamedTuple):
  """What a model directory says of itself; see `Model`."""

  name: str
  config: Config
  limits: calibrate.Limits
  weights: pretrained.Provenance
  arrays_sha256: str


def assemble(config: Config, spec: Spec) -> tuple[backbones.Backbone, Detector]:
  """Make the backbone and the detector of a configuration, without any array."""
  backbone = backbones.build(config.backbone.name, tuple(config.detector.layers))
  return backbone, detectors.build(config.detector.to_dict(), backbone, spec)


def save(
  directory: Path,
  config: Config,
  fitted: Any,
  limits: calibrate.Limits,
  normals: score.Peaks,
  weights: pretrained.Provenance,
) -> None:
  """Write a model directory, whole or not at all; one that is there is replaced."""
  with files.replacing(directory) as fresh:
    sha256 = save_arrays(fresh, fitted)
    save_manifest(fresh, config, limits, normals, weights, {}, sha256)


def save_arrays(folder: Path, fitted: Any) -> str:
  """Write the fitted arrays into the folder of a model; the manifest comes after them.

  The file is as safetensors has it: 8 bytes that tell the length of a JSON header, the header, the
  raw little-endian arrays. It is written and hashed piece by piece, from where the arrays lie.

  Returns:
    The SHA-256 of the file.
  """
  leaves, type_names = _named(fitted), {dtype: name for name, dtype in _TYPES.items()}
  # All that fill whole units of alignment first, so that each of them begins with one.
  names = sorted(leaves, key=lambda name: (leaves[name].nbytes % _ALIGNED != 0, name))
  header, end = {}, 0
  for name in names:
    begin, end = end, end + leaves[name].nbytes
    about = {'dtype': type_names[leaves[name].dtype], 'shape': leaves[name].shape}
    header[name] = {**about, 'data_offsets': [begin, end]}
  text = json.dumps(header).encode()
  text += b' ' * (-(8 + len(text)) % _ALIGNED)
  digest = hashlib.sha256()
  with (folder / _ARRAYS).open('wb') as file:
    pieces = itertools.chain.from_iterable(_pieces(leaves[name]) for name in names)
    for piece in itertools.chain([len(text).to_bytes(8, 'little'), text], pieces):
      digest.update(piece)
      file.write(piece)
  return digest.hexdigest()


def save_manifest(
  folder: Path,
  config: Config,
  limits: calibrate.Limits,
  normals: score.Peaks,
  weights: pretrained.Provenance,
  facts: Mapping[str, int | float],
  arrays_sha256: str,
) -> None:
  """Write what the arrays are: configuration, thresholds, origin and hash.

  The scores of good images that the thresholds stand on go into a table beside it.
  """
  rows = zip(normals.path, normals.image.tolist(), normals.map.tolist(), strict=True)
  files.write_csv(folder / _CALIBRATION, [('path', 'score', 'peak'), *rows])
  manifest = {
    'format': _VERSION,
    'model_name': detectors.title(config.detector.name),
    'uadjax': uadjax.__version__,
    'jax': jax.__version__,
    'thresholds': limits._asdict(),
    'weights': weights._asdict(),
    'facts': dict(facts),
    'arrays_sha256': arrays_sha256,
    'config': configs.plain(config),
  }
  files.write_json(folder / _MANIFEST, manifest)


def calibration(directory: Path) -> score.Peaks | None:
  """The good images that a model's thresholds stand on; None where that is not there."""
  try:
    with (directory / _CALIBRATION).open(newline='', encoding='utf-8') as file:
      rows = [
        (row['path'], float(row['score']), float(row['peak'])) for row in csv.DictReader(file)
      ]
  except (OSError, KeyError, ValueError):
    return None  # A model can do without.
  paths, images, maps = zip(*rows, strict=True) if rows else ((), (), ())
  return score.Peaks(paths, np.array(images), np.array(maps))


def about(directory: Path | str) -> About:
  """Read what a model directory is, without its arrays.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  manifest = _manifest(directory)
  try:
    config = configs.from_plain(manifest['config'], str(directory / _MANIFEST))
    limits = calibrate.Limits(**manifest['thresholds'])
    weights = pretrained.Provenance(**manifest['weights'])
  except (ConfigError, TypeError, AttributeError) as error:
    raise ModelError(f'{directory / _MANIFEST} is not of this version of uadjax: {error}') from None
  return About(manifest['model_name'], config, limits, weights, manifest['arrays_sha256'])


def described(directory: Path, score: Callable[[Any, Any], Scores]) -> Model:
  """A model directory without its arrays, for what scores by other means."""
  name, config, limits, weights, _ = about(directory)
  ops = transforms.parse(config.data.ops)
  return Model(name, config, ops, None, score, limits, weights, directory)


def check(directory: Path) -> None:
  """Raise ModelError where the arrays are not those that were saved."""
  path = directory / _ARRAYS
  try:
    with path.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  _same(directory, digest, about(directory).arrays_sha256)


def _same(directory: Path, digest: str, wanted: str) -> None:
  if digest != wanted:
    raise ModelError(
      f'{directory / _ARRAYS} is damaged: its SHA-256 is {digest[:12]}…, the manifest says '
      f'{wanted[:12]}…. Fit the model again, or restore the file.'
    )


def load(directory: Path | str, apart: mesh.Mesh | None = None) -> Model:
  """Open a model directory.

  Args:
    directory: where it lies.
    apart: devices to split what is learned over, which may be too large for one; then batches are
      split over them as well. None, or one device: not split.

  Raises:
    ModelError: it is not there, not whole, or of another format.
  """
  directory = Path(directory)
  name, config, limits, weights, sha256 = about(directory)
  ops = transforms.parse(config.data.ops)
  backbone, detector = assemble(config, Spec(ops.height, ops.width))
  memory, digest = _read(directory / _ARRAYS)
  _same(directory, digest, sha256)
  # Structure alone: no array is made but the file's own.
  template = jax.eval_shape(lambda: detector.finish(_initial(backbone, detector, ops)))
  stored = _arrays(memory)
  named = _named(template)
  if named.keys() != stored.keys():
    odd = sorted(named.keys() ^ stored.keys())
    raise ModelError(f'{directory / _ARRAYS} does not fit its manifest: see {odd[:3]}.')
  fitted = jax.tree.unflatten(jax.tree.structure(template), [stored[name] for name in named])
  if apart is not None and apart.size > 1:
    _, detector = assemble(config, Spec(ops.height, ops.width, shards=mesh.shards(apart)))
  split = detector.split
  if split and apart is not None:
    fitted, split = mesh.place(apart, split.fill(fitted), split.fitted), split.fitted
  else:
    fitted = jax.device_put(fitted)  # Not jax.numpy.asarray, which copies always.
  score = jax.jit(detector.score)
  return Model(name, config, ops, fitted, score, limits, weights, directory, split)


def _initial(backbone: Any, detector: Detector, ops: transforms.Ops) -> Any:
  images = jax.numpy.zeros((1, ops.height, ops.width, 3))
  return detector.init(jax.random.key(0), backbone.init(jax.random.key(0), images))


def _manifest(directory: Path) -> dict[str, Any]:
  path = directory / _MANIFEST
  try:
    manifest = json.loads(path.read_text())
  except FileNotFoundError:
    if (directory / 'model' / _MANIFEST).is_file():
      way = f'The model of this run is {directory / "model"}.'
    else:
      way = 'A run leaves one in <workdir>/model, or <workdir>/<category>/model; name that.'
    what = f'it has no {_MANIFEST}' if directory.is_dir() else 'there is no such folder'
    raise ModelError(f'{directory} is no model directory: {what}. {way}') from None
  except (OSError, ValueError) as error:
    raise ModelError(f'{path} cannot be read: {error}') from None
  if not isinstance(manifest, dict):
    raise ModelError(f'{path} cannot be read: expected an object.')
  if manifest.get('format') != _VERSION:
    raise ModelError(
      f'{path} is of format {manifest.get("format")!r}; this uadjax reads {_VERSION}.'
    )
  for key in ('model_name', 'thresholds', 'weights', 'arrays_sha256', 'config'):
    if key not in manifest:
      raise ModelError(f'{path} lacks {key!r}; fit the model again, or restore the file.')
  return manifest


def _named(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _pieces(leaf: Any) -> Iterator[memoryview]:
  """The bytes of an array, from where they lie."""
  data = np.asarray(leaf).reshape(-1).view(np.uint8).data
  return (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))


def _read(path: Path) -> tuple[mmap.mmap, str]:
  """Read a file for arrays to lie in, and take its SHA-256.

  Read and not mapped: what is opened stays as it was hashed, whatever becomes of the file. Pages of
  its own rather than malloc's: they are aligned, and return to the system with the last array.
  """
  digest = hashlib.sha256()
  try:
    with path.open('rb') as file:
      size = path.stat().st_size
      memory = mmap.mmap(-1, max(size, 1), access=mmap.ACCESS_COPY)
      for at in range(0, size, _PIECE):
        piece = memoryview(memory)[at : min(at + _PIECE, size)]
        file.readinto(piece)
        digest.update(piece)
  except OSError as error:
    raise ModelError(f'{path} cannot be read: {error.strerror}.') from None
  return memory, digest.hexdigest()


def _arrays(memory: mmap.mmap) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file, where they lie."""
  first = 8 + int.from_bytes(memory[:8], 'little')
  header = json.loads(memory[8:first])
  header.pop('__metadata__', None)
  return {
    name: np.ndarray(
      about['shape'], _TYPES[about['dtype']], memory, first + about['data_offsets'][0]
    )
    for name, about in header.items()
  }
