"""Model directories that are damaged or hostile: one ModelError, no crash, no score."""

import copy
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import struct
import threading
from typing import Any

import jax
import numpy as np
import pytest

from uadjax import create_model
from uadjax.errors import ModelError
from uadjax.model import array_file, incremental_state, manifest as manifests, model_dir

ARRAYS, MANIFEST = 'fitted.safetensors', 'manifest.json'
DEEP = '[' * 100_000 + ']' * 100_000
HOSTILE = (
  None, True, '', 'high', -1, -0.5, 10**400, 1e300, float('nan'), float('inf'), [], [1], {},
  {'a': 1},
)  # fmt: skip
SETTINGS = ('data', 'backbone', 'detector')


@pytest.fixture(scope='module')
def model(fitted):
  return fitted('padim')


TEMPLATES: dict[Any, Any] = {}


@pytest.fixture(autouse=True)
def templates_are_computed_once(monkeypatch):
  """As it takes most of the time to open a small model."""
  compute = model_dir._fitted_template

  def template(info):
    if info.config not in TEMPLATES:
      TEMPLATES[info.config] = compute(info)
    return TEMPLATES[info.config]

  monkeypatch.setattr(model_dir, '_fitted_template', template)


@pytest.fixture(scope='module')
def opened(model):
  return model_dir.load(model)


@pytest.fixture
def directory(model, tmp_path):
  return shutil.copytree(model, tmp_path / 'model')


def read_manifest(directory: Path) -> Any:
  return json.loads((directory / MANIFEST).read_text())


def write_manifest(directory: Path, manifest: object) -> None:
  (directory / MANIFEST).write_text(json.dumps(manifest))


def leaves(value: object, path: tuple = ()):
  """Paths to the values of nested objects and lists, the inner nodes included."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, item in items:
    yield (*path, key)
    if isinstance(item, dict | list):
      yield from leaves(item, (*path, key))


def replaced(manifest: Any, path: tuple, value: object) -> Any:
  manifest = copy.deepcopy(manifest)
  node = manifest
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value
  return manifest


def refusal(directory: Path) -> ModelError | None:
  """Why a model is not opened; None if it is."""
  try:
    model_dir.load(directory)
  except ModelError as error:
    return error
  return None


def split_arrays(directory: Path) -> tuple[Any, bytes]:
  """Header and arrays of the file."""
  content = (directory / ARRAYS).read_bytes()
  end = 8 + int.from_bytes(content[:8], 'little')
  return json.loads(content[8:end]), content[end:]


def join_arrays(header: object, data: bytes) -> bytes:
  text = header if isinstance(header, str) else json.dumps(header)
  return struct.pack('<Q', len(text)) + text.encode() + data


def write_arrays(directory: Path, content: bytes) -> None:
  """Write arrays with the hash that they have."""
  (directory / ARRAYS).write_bytes(content)
  digest = hashlib.sha256(content).hexdigest()
  write_manifest(directory, {**read_manifest(directory), 'arrays_sha256': digest})


# Manifests.


def is_allowed(path: tuple, value: object) -> bool:
  """Whether a value of the pool is one that may be at a place of a manifest."""
  name = path[-1]
  if (path[0] == 'summary' and len(path) == 2) or str(name).endswith(('_rate', '_rate_bound')):
    is_number = type(value) in (int, float) and abs(value) < 1e301
    return value is None or (is_number and path[0] == 'summary')
  texts = 'uadjax', 'jax', 'name', 'source', 'license'
  if name in texts or (path[0] == 'weights' and name == 'sha256' and value == ''):
    return isinstance(value, str)
  return path == ('summary',) and value in ({}, {'a': 1})


def test_every_value_of_a_manifest_has_a_type_and_a_range(directory):
  manifest, wrong, count = read_manifest(directory), [], 0
  for path in leaves(manifest):
    if path[0] == 'config' and len(path) > 1:
      continue
    for value in HOSTILE:
      write_manifest(directory, replaced(manifest, path, value))
      error = None
      try:
        model_dir.read_info(directory)
      except ModelError as caught:
        error = caught
      count += 1
      is_json = not (isinstance(value, float) and abs(value) not in (0.5, 1e300))
      key = '.'.join(map(str, path))
      names_key = error is not None and (not is_json or (error.key or key).startswith(key))
      if names_key == is_allowed(path, value) or (error and str(directory) not in str(error)):
        wrong.append((key, value, str(error)))
  assert not wrong
  assert count > 300


def test_a_missing_value_is_named(directory):
  manifest = read_manifest(directory)
  optional = {('uadjax',), ('jax',), ('summary',)}
  for path in leaves(manifest):
    if isinstance(path[-1], int) or path[0] in ('config', 'summary') or path in optional:
      continue
    changed = replaced(manifest, path, None)
    node = changed
    for key in path[:-1]:
      node = node[key]
    del node[path[-1]]
    write_manifest(directory, changed)
    error = refusal(directory)
    assert error, path
    key = '.'.join(path)
    assert key in str(error)
    if key != 'format':
      assert error.key == key


def test_settings_of_a_model_have_types_and_ranges(directory):
  manifest, wrong = read_manifest(directory), []
  for path in leaves({name: manifest['config'][name] for name in SETTINGS}):
    for value in (None, {'a': 1}, [[]], DEEP[:10] + DEEP[-10:]):
      if isinstance(value, str) and path in (('data', 'root'), ('data', 'category'),
                                             ('data', 'roi'), ('backbone', 'weights')):  # fmt: skip
        continue
      write_manifest(directory, replaced(manifest, ('config', *path), value))
      error = refusal(directory)
      if error is None or not str(error.key).startswith('config') or MANIFEST not in str(error):
        wrong.append((path, value, str(error)))
  assert not wrong


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    (('config', 'data', 'ops'), 'resize(100000)'),
    (('config', 'data', 'ops'), f'resize({"9" * 5000})'),
    (('config', 'data', 'ops'), 'resize(16384)'),
    (('config', 'data', 'ops'), 'resize(9000, 9000)'),
    (('config', 'backbone', 'name'), 'resnet50'),
    (('config', 'detector', 'channels'), 10**9),
    (('config', 'detector', 'channels'), 8),
    (('config', 'detector', 'layers'), ['layer9']),
    (('config', 'detector', 'layers'), []),
    (('config', 'detector', 'name'), 'patchcore'),
    (('config', 'fit'), [[[[[[[1]]]]]]]),
    (('model_name',), 5),
    (('model_name',), 'STFPM'),
    (('format',), [1]),
    (('thresholds', 'review_threshold'), 1e9),
    (('thresholds', 'num_missed'), 1),
    (('image_statistics', 'width'), [60, 59]),
    (('threshold_changes',), [{'time': 1}]),
    (('threshold_changes',), {}),
  ],
)
def test_values_that_contradict_others_are_refused(directory, path, value):
  write_manifest(directory, replaced(read_manifest(directory), path, value))
  error = refusal(directory)
  assert error
  assert str(directory) in str(error) or error.key == 'review_threshold'


@pytest.mark.parametrize(
  'text',
  [
    DEEP, DEEP.replace('[', '{"a":').replace(']', '}'), '{"format": 5, "format": 5}', 'null',
    '{"format": NaN}', '{"format": 1' + '0' * 5000 + '}', '\ufeff{}', '\0', '',
  ],
)  # fmt: skip
def test_manifests_that_are_no_json_are_refused(directory, text):
  (directory / MANIFEST).write_text(text)
  error = refusal(directory)
  assert error
  assert str(directory / MANIFEST) in str(error)


def test_names_that_are_repeated_are_refused(directory):
  text = (directory / MANIFEST).read_text()
  (directory / MANIFEST).write_text(text.replace('"method"', '"pixel_threshold": 1.0, "method"', 1))
  assert "'pixel_threshold' is repeated" in str(refusal(directory))


# Files that are none.


def no_file(path: Path, kind: str) -> None:
  path.unlink(missing_ok=True)
  if kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  elif kind == 'sparse':
    with path.open('wb') as file:
      file.truncate(1 << 42)
  else:
    path.symlink_to(kind)


@pytest.mark.parametrize('kind', ['fifo', 'folder', 'sparse', '/dev/zero', '/dev/null', 'absent'])
def test_pipes_and_devices_in_a_model_are_refused_without_waiting(directory, opened, kind):
  outcomes = {}

  def open_model():
    for name in (MANIFEST, ARRAYS, 'calibration.csv'):
      content = (directory / name).read_bytes()
      no_file(directory / name, kind)
      outcomes[name] = refusal(directory), model_dir.load_calibration_scores(directory)
      if name == ARRAYS and kind != 'sparse':  # Whose hash takes an hour.
        with pytest.raises(ModelError):
          model_dir.verify_arrays(opened.info._replace(directory=directory))
      (directory / name).rmdir() if kind == 'folder' else (directory / name).unlink()
      (directory / name).write_bytes(content)

  thread = threading.Thread(target=open_model, daemon=True)
  thread.start()
  thread.join(120)
  assert not thread.is_alive()
  for name in (MANIFEST, ARRAYS):
    assert str(directory) in str(outcomes[name][0])
  error, scores = outcomes['calibration.csv']
  assert (error, scores) == (None, None)  # A model works without them.


# Arrays.


def test_no_array_is_read_from_outside_of_its_file(directory):
  header, data = split_arrays(directory)
  name, size = 'mean', len(data)
  begin, end = header[name]['data_offsets']
  wrong = []
  for offsets in (
    [-(10**12), 0], [-1_000_000, 0], [begin - 64, end - 64], [begin + 4, end + 4], [begin, end - 4],
    [begin, end + 4], [end, begin], [0, end - begin], [size, size + end - begin], [size - 4, size],
    [10**30, 10**30 + 1], [begin], [begin, end, end], [None, end], [float(begin), end], 'ab', {},
    [True, end], [str(begin), end],
  ):  # fmt: skip
    write_arrays(directory, join_arrays(replaced(header, (name, 'data_offsets'), offsets), data))
    error = refusal(directory)
    if not error or 'is damaged' not in str(error):
      wrong.append((offsets, str(error)))
  assert not wrong


def test_arrays_have_the_shapes_and_types_of_the_configuration(directory):
  header, data = split_arrays(directory)
  wrong = []
  h, w, d = header['mean']['shape']
  for shape in (
    [], [h * w * d], [w, h, d], [d, w, h], [1, h, w, d], [h, w, d, 1], [0, w, d], [-h, -w, d],
    [h, w, d + 1], [2**62, w, d], [10**30], [h, w, float(d)], [True] * 3, 'abc', None,
  ):  # fmt: skip
    if shape != [h, w, d]:
      write_arrays(directory, join_arrays(replaced(header, ('mean', 'shape'), shape), data))
      error = refusal(directory)
      if not error or error.key != 'mean':
        wrong.append((shape, str(error)))
  for dtype in ('I32', 'F64', 'F16', 'U8', 'x', None, [], 5):
    write_arrays(directory, join_arrays(replaced(header, ('mean', 'dtype'), dtype), data))
    error = refusal(directory)
    if not error or error.key != 'mean':
      wrong.append((dtype, str(error)))
  assert not wrong


def test_all_rows_of_a_memory_bank_are_there(fitted):
  directory = fitted('patchcore')
  assert refusal(directory) is None
  header, data = split_arrays(directory)
  n, d = header['memory_bank/rows']['shape']
  for name, shape in (
    ('memory_bank/rows', [n - 1, d]), ('memory_bank/squared_norms', [n - 1]),
    ('memory_bank/rows', [n * d]), ('memory_bank/rows', [0, d]), ('memory_bank/rows', [d, n]),
    ('memory_bank/center', [d - 1]),
  ):  # fmt: skip
    write_arrays(directory, join_arrays(replaced(header, (name, 'shape'), shape), data))
    error = refusal(directory)
    assert error
    assert str(error.key).startswith('memory_bank/')


def test_no_array_has_values_that_are_not_finite(directory):
  header, data = split_arrays(directory)
  floats = [name for name, entry in header.items() if entry['dtype'] == 'F32']
  assert len(floats) > 9
  rng = np.random.default_rng(0)
  for name in floats:
    begin, end = header[name]['data_offsets']
    value = rng.choice([np.nan, np.inf, -np.inf])
    place = begin + 4 * rng.integers((end - begin) // 4)
    harmed = data[:place] + np.float32(value).tobytes() + data[place + 4 :]
    write_arrays(directory, join_arrays(header, harmed))
    error = refusal(directory)
    assert error
    assert (error.key, 'not finite' in str(error)) == (name, True)


@pytest.mark.parametrize(
  'name',
  [
    'mean', 'n', 'images_pixels', 'images_sizes', 'images_num_tiles', 'images_groups', 'state.json'
  ],
)  # fmt: skip
def test_states_are_checked_like_models(fitted, name):
  folder = incremental_state.state_folder(fitted('padim'))
  images = incremental_state.load(folder).images
  harms: dict[str, list[Any]] = {
    'mean': [np.full((2, 2), np.nan, np.float32), 'shape', 'fifo'],
    'n': [np.float32(np.inf), 'fifo'],
    'images_pixels': [images.pixels[:-1], images.pixels.astype(np.float32), 'shape'],
    'images_sizes': [images.sizes + 1, -images.sizes, images.sizes[:, :1], images.sizes[:-1]],
    'images_num_tiles': [images.num_tiles + 1, 0 * images.num_tiles, images.num_tiles[:-1]],
    'images_groups': [images.groups + 10**6, images.groups - 10**6, images.groups[:-1]],
    'state.json': ['{"arrays": ["../model/x"]}', '{"arrays": "mean"}', '{"arrays": [1]}', DEEP],
  }
  path = folder / (name if name == 'state.json' else f'{name}.npy')
  content = path.read_bytes()
  for harm in harms[name]:
    if name == 'state.json':
      path.write_text(harm)
    elif not isinstance(harm, str):
      np.save(path, harm)
    elif harm == 'fifo':
      no_file(path, harm)
    else:  # A header that claims more than there is.
      path.write_bytes(re.sub(rb'\((\d+)', rb'(9\1', content, count=1))
    with pytest.raises(ModelError, match='does not hold a complete incremental state'):
      incremental_state.load(folder)
    path.unlink()
  path.write_bytes(content)
  incremental_state.load(folder)


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    (('data', 'ops'), 'resize(64,64)'),
    (('detector', 'image_score'), 'max'),
    (('detector', 'ridge'), 0.02),
    (('backbone', 'weights'), 'weights.pth'),
  ],
)
def test_settings_that_scores_depend_on_are_those_of_the_fit(directory, path, value):
  """The values are of the right type and range, but scores would differ from the thresholds."""
  manifest = read_manifest(directory)
  write_manifest(directory, replaced(manifest, ('config', *path), value))
  error = refusal(directory)
  assert error
  assert error.key == 'config_sha256'
  assert '.'.join(('config', *path[:1])) in str(error)
  others = {'root': 'elsewhere', 'category': 'other'}
  write_manifest(
    directory, replaced(manifest, ('config', 'data'), manifest['config']['data'] | others)
  )
  assert model_dir.read_info(directory).config.data.root == 'elsewhere'


# Random edits.


def edit_manifest(rng: np.random.Generator, directory: Path) -> None:
  """Replace, remove, move or repeat random values."""
  manifest = read_manifest(directory)
  for _ in range(rng.integers(1, 4)):
    paths = list(leaves(manifest))
    path = paths[rng.integers(len(paths))]
    value = HOSTILE[rng.integers(len(HOSTILE))]
    if rng.random() < 0.2:
      other = paths[rng.integers(len(paths))]
      value = manifest
      for key in other:
        value = value[key]
    manifest = replaced(manifest, path, copy.deepcopy(value))
  write_manifest(directory, manifest)


def edit_manifest_text(rng: np.random.Generator, directory: Path) -> None:
  path = directory / MANIFEST
  path.write_bytes(harm_bytes(rng, path.read_bytes()))


def edit_arrays(rng: np.random.Generator, directory: Path) -> None:
  path = directory / ARRAYS
  path.write_bytes(harm_bytes(rng, path.read_bytes()))


def edit_header(rng: np.random.Generator, directory: Path) -> None:
  """Replace random values of the header, with the right hash."""
  header, data = split_arrays(directory)
  for _ in range(rng.integers(1, 3)):
    paths = list(leaves(header))
    path = paths[rng.integers(len(paths))]
    numbers = (-1, 0, 1, 64, len(data), -(10**12), 1 << 62)
    pool = (*HOSTILE, *numbers, 'F32', 'I32', [0, 64], [2, 2])
    header = replaced(header, path, pool[rng.integers(len(pool))])
  write_arrays(directory, join_arrays(header, data))


def edit_header_text(rng: np.random.Generator, directory: Path) -> None:
  content = (directory / ARRAYS).read_bytes()
  end = 8 + int.from_bytes(content[:8], 'little')
  write_arrays(directory, harm_bytes(rng, content[:end]) + content[end:])


def harm_bytes(rng: np.random.Generator, content: bytes) -> bytes:
  """Change, remove or insert some bytes."""
  harmed = bytearray(content)
  for _ in range(rng.integers(1, 5)):
    place, length = rng.integers(max(len(harmed), 1)), rng.integers(1, 9)
    noise = rng.bytes(int(length))
    match rng.integers(4):
      case 0:
        harmed[place : place + 1] = noise[:1]
      case 1:
        harmed[place : place + len(noise)] = noise
      case 2:
        del harmed[place : place + length]
      case _:
        harmed[place:place] = noise
  return bytes(harmed)


EDITS = (edit_manifest, edit_manifest_text, edit_arrays, edit_header, edit_header_text)


def scoring_settings(model: model_dir.Model) -> tuple:
  return model.ops, model.config.backbone, model.config.detector


@pytest.mark.parametrize(
  'seeds', [range(200), pytest.param(range(200, 2200), marks=pytest.mark.slow)], ids=len
)
def test_random_edits_give_a_model_error_or_the_same_model(seeds, model, opened, tmp_path):
  original = array_file.leaves_by_path(opened.fitted)
  counts, wrong = {'refused': 0, 'opened': 0}, []
  for seed in seeds:
    rng = np.random.default_rng(seed)
    directory = shutil.copytree(model, tmp_path / 'model')
    edit = EDITS[seed % len(EDITS)]
    edit(rng, directory)
    try:
      got = model_dir.load(directory)
    except ModelError as error:
      counts['refused'] += 1
      if not str(error):
        wrong.append((seed, edit.__name__, 'no message'))
    except Exception as error:
      wrong.append((seed, edit.__name__, repr(error)))
    else:
      counts['opened'] += 1
      arrays = array_file.leaves_by_path(got.fitted)
      is_same = arrays.keys() == original.keys() and all(
        np.array_equal(arrays[name], original[name]) for name in original
      )
      is_same &= scoring_settings(got) == scoring_settings(opened)
      if not is_same or not manifests.THRESHOLD.allow(got.thresholds.image_threshold):
        wrong.append((seed, edit.__name__, 'opened'))
    shutil.rmtree(directory)
  print(counts)
  assert not wrong
  assert counts['refused'] > 0.5 * len(seeds)


def test_a_damaged_model_gives_no_score(directory, drawn):
  """Through the interface that users have."""
  image = next(drawn.rglob('test/good/*.png'))
  header, data = split_arrays(directory)
  write_arrays(directory, join_arrays(replaced(header, ('mean', 'data_offsets'), [-64, 0]), data))
  with pytest.raises(ModelError, match='damaged'):
    next(iter(create_model(model_dir=directory).predict(image)))
  write_arrays(directory, join_arrays(header, data))
  assert np.isfinite(next(iter(create_model(model_dir=directory).predict(image))).score)
  assert jax.tree.leaves(model_dir.load(directory).fitted)
