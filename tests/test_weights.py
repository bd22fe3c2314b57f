"""Weights load from what the real tools write, and anything else is one clear error."""

import contextlib
import copy
import functools
import hashlib
import http.server
import io
import os
import pathlib
import pickle
import re
import struct
import threading
import tracemalloc
import zipfile

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from uadjax import backbones
from uadjax.backbones import weights as pretrained_weights
from uadjax.backbones.weights import download, formats, key_mapping
from uadjax.errors import ConfigError, WeightsError
from uadjax.system import logging
from uadjax.training import resolve_backbone, settings

MODULE = backbones.build('resnet18', ('layer1',))
NOWHERE = 'http://127.0.0.1:9'  # Nobody answers there.


# A writer of torch.save's files, byte for byte where it matters (compared with torch 2.13 by hand).


class Named:
  """A global of torch, by name alone: pickled as GLOBAL, as torch's own would be."""

  def __init__(self, name: str):
    self.module, _, self.name = name.rpartition('.')


class Call:
  """A REDUCE, with an optional BUILD."""

  def __init__(self, name: str, arguments: tuple, state: object = None):
    self.name, self.arguments, self.state = Named(name), arguments, state


class Stored:
  """A persistent id of a storage."""

  def __init__(self, key: str, numbers: np.ndarray, kind: str = 'FloatStorage'):
    self.key, self.numbers, self.kind = key, numbers, kind


class Writer:
  """Pickles plain data, Named, Call and Stored with protocol 2."""

  def __init__(self, legacy: bool = False):
    self.legacy, self.storages = legacy, {}

  def dumps(self, value) -> bytes:
    return b'\x80\x02' + self.dump(value) + b'.'

  def dump(self, value) -> bytes:
    match value:
      case Named():
        return f'c{value.module}\n{value.name}\n'.encode()
      case Call():
        state = b'' if value.state is None else self.dump(value.state) + b'b'
        return self.dump(value.name) + self.dump(value.arguments) + b'R' + state
      case Stored():
        self.storages[value.key] = value.numbers
        tail = (None,) if self.legacy else ()
        kind = Named(f'torch.{value.kind}')
        return self.dump(('storage', kind, value.key, 'cpu', value.numbers.size, *tail)) + b'Q'
      case tuple():
        return b'(' + b''.join(map(self.dump, value)) + b't'
      case dict():
        items = [self.dump(k) + self.dump(v) for k, v in value.items()]
        return b'}(' + b''.join(items) + b'u'
      case _:
        return pickle.dumps(value, 2)[2:-1]


def tensor(stored, shape, strides=None, offset=0):
  strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
  ordered = Call('collections.OrderedDict', ())
  return Call('torch._utils._rebuild_tensor_v2', (stored, offset, shape, strides, False, ordered))


def state_dict(tensors):
  return {name: tensor(Stored(str(i), x), x.shape) for i, (name, x) in enumerate(tensors.items())}


def torch_zip(content, compression=zipfile.ZIP_STORED) -> bytes:
  writer, out = Writer(), io.BytesIO()
  pickled = writer.dumps(content)
  with zipfile.ZipFile(out, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickled)
    archive.writestr('archive/byteorder', 'little')
    for key, numbers in writer.storages.items():
      archive.writestr(f'archive/data/{key}', numbers.tobytes())
    archive.writestr('archive/version', '3\n')
  return out.getvalue()


def torch_legacy(content) -> bytes:
  writer = Writer(legacy=True)
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
  head = [0x1950A86A20F9469CFC6C, 1001, system, content]
  out = b''.join(writer.dumps(x) for x in head)
  out += pickle.dumps(sorted(writer.storages), 2)
  for key in sorted(writer.storages):
    numbers = writer.storages[key]
    out += struct.pack('<q', numbers.size) + numbers.tobytes()
  return out


def npz(tensors) -> bytes:
  out = io.BytesIO()
  np.savez_compressed(out, **tensors)
  return out.getvalue()


def paddle(tensors, protocol=4) -> bytes:
  """As paddle.save writes a state_dict, with Paddle's own endings."""
  ends = {'running_mean': '_mean', 'running_var': '_variance'}
  renamed = {}
  for name, value in tensors.items():
    room, _, leaf = name.rpartition('.')
    renamed[f'{room}.{ends.get(leaf, leaf)}'] = value
  table = {'StructuredToParameterName@@': dict.fromkeys(renamed, 'conv2d_0.w_0')}
  return pickle.dumps(renamed | table, protocol)


@functools.cache
def weights(module=MODULE):
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, (_, shape) in key_mapping.expected_tensors(module).items()
  }


def few():
  rng = np.random.default_rng(1)
  return {'conv1.weight': rng.random((2, 1, 3, 3), np.float32), 'bn1.bias': np.ones(2, np.float32)}


WRITERS = {
  'zip': lambda tensors: torch_zip(state_dict(tensors)),
  'legacy': lambda tensors: torch_legacy(state_dict(tensors)),
  'safetensors': safetensors.save,
  'npz': npz,
  'paddle': paddle,
  'paddle, protocol 2': lambda tensors: paddle(tensors, 2),
  'pickle, protocol 5': lambda tensors: pickle.dumps(tensors, 5),
}


def place(folder, data: bytes) -> str:
  path = folder / 'weights.bin'  # The suffix says nothing: the content does.
  path.write_bytes(data)
  return str(path)


def refused(path, match, module=MODULE):
  with pytest.raises(WeightsError, match=match) as caught:
    pretrained_weights.load(str(path), module)
  assert str(path) in str(caught.value)


# What the real tools write.


@pytest.mark.parametrize('kind', WRITERS)
def test_every_format_loads_by_its_content(kind, tmp_path):
  data = WRITERS[kind](weights())
  variables, origin = pretrained_weights.load(place(tmp_path, data), MODULE)
  for name, (path, _) in key_mapping.expected_tensors(MODULE).items():
    leaf = functools.reduce(lambda tree, key: tree[key], path, variables)
    expected = weights()[name]
    expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
    np.testing.assert_array_equal(leaf, expected)
  assert origin.sha256 == hashlib.sha256(data).hexdigest()
  structs = jax.eval_shape(MODULE.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert jax.tree.structure(variables) == jax.tree.structure(structs)


@pytest.mark.parametrize('write', [torch_zip, torch_legacy])
def test_views_of_shared_storages_are_read_as_torch_reads_them(write):
  numbers = np.arange(24, dtype=np.float32)
  shared = Stored('0', numbers)
  parameter = Call(
    'torch._utils._rebuild_parameter',
    (tensor(shared, (2, 3)), True, Call('collections.OrderedDict', ())),
  )
  content = {
    'transposed': tensor(shared, (3, 2), (1, 3)),
    'offset': tensor(shared, (2, 2), (2, 1), offset=20),
    'expanded': tensor(shared, (4, 2), (0, 1)),
    'scalar': tensor(shared, (), (), offset=7),
    'empty': tensor(shared, (0, 5)),
    'parameter': parameter,
  }
  meta = Call('collections.OrderedDict', (), {'_metadata': {'': {'version': 1}}})
  tensors = formats.read(write({'state_dict': content, 'epoch': 3, 'other': meta}))
  np.testing.assert_array_equal(tensors['transposed'], numbers[:6].reshape(2, 3).T)
  np.testing.assert_array_equal(tensors['offset'], numbers[20:].reshape(2, 2))
  np.testing.assert_array_equal(tensors['expanded'], np.tile(numbers[:2], (4, 1)))
  assert tensors['scalar'] == 7
  assert tensors['empty'].shape == (0, 5)
  np.testing.assert_array_equal(tensors['parameter'], numbers[:6].reshape(2, 3))


@pytest.mark.parametrize(
  ('dtype', 'kind'),
  [(np.float16, 'HalfStorage'), (jnp.bfloat16, 'BFloat16Storage'), (np.float64, 'DoubleStorage')],
)
def test_other_floating_point_becomes_float32(dtype, kind, tmp_path):
  content = {
    f'module.{name}': tensor(Stored(str(i), x.astype(dtype), kind), x.shape)
    for i, (name, x) in enumerate(weights().items())
  }
  variables, _ = pretrained_weights.load(place(tmp_path, torch_zip({'model': content})), MODULE)
  mean = variables['batch_stats']['bn1']['mean']
  assert mean.dtype == jnp.float32
  np.testing.assert_array_equal(mean, weights()['bn1.running_mean'].astype(dtype).astype('f'))


def test_safetensors_whose_header_is_as_long_as_a_pickle_begins():
  for spaces in range(0, 256, 8):
    data = safetensors.save({'a': np.arange(3.0)}, {'padding': ' ' * spaces})
    if data[0] == 0x80:
      break
  else:
    pytest.fail('no header is so long')
  np.testing.assert_array_equal(formats.read(data)['a'], np.arange(3.0))


def test_safetensors_may_be_bfloat16():
  header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
  data = struct.pack('<Q', len(header)) + header + b'\x80\x3f\x00\x40'
  np.testing.assert_array_equal(formats.read(data)['a'].astype(np.float32), [1, 2])


def test_paddle_joins_what_it_cut(tmp_path):
  whole = np.arange(6, dtype=np.float32).reshape(2, 3)
  parts = {'a': {'OriginShape': (2, 3), 'slices': ['a@@.0', 'a@@.1']}}
  flat = whole.ravel()
  content = {'a@@.0': flat[:4], 'a@@.1': flat[4:], 'UnpackBigParamInfor@@': parts}
  tensors = formats.read(pickle.dumps(content, 2))
  assert list(tensors) == ['a']
  np.testing.assert_array_equal(tensors['a'], whole)


def test_names_of_paddle_become_those_of_torchvision():
  expected = {
    'stem.0.conv.weight': 'conv1.weight',
    'stem.0.bn._variance': 'bn1.running_var',
    'blocks.0.conv0.conv.weight': 'layer1.0.conv1.weight',
    'blocks.3.short.conv.weight': 'layer2.0.downsample.0.weight',
    'blocks.3.short.bn._mean': 'layer2.0.downsample.1.running_mean',
    'blocks.6.conv2.bn.bias': 'layer2.3.bn3.bias',
    'blocks.7.conv1.conv.weight': 'layer3.0.conv2.weight',
    'blocks.16.conv0.conv.weight': 'layer5.0.conv1.weight',
    'module.layer1.0.bn1.weight': 'layer1.0.bn1.weight',
    'layer1.0.downsample.1._mean': 'layer1.0.downsample.1.running_mean',
  }
  assert {
    name: key_mapping.to_torchvision_name(name, (3, 4, 6, 3)) for name in expected
  } == expected


def test_a_file_may_hold_more_stages_and_a_head(tmp_path):
  more = weights() | {
    'layer2.0.conv1.weight': np.ones((1, 1, 1, 1), np.float32),
    'fc.weight': np.ones((2, 2), np.float32),
    'bn1.num_batches_tracked': np.array(3),
  }
  pretrained_weights.load(place(tmp_path, npz(more)), MODULE)


def test_random_weights_are_the_same_each_time():
  (a, origin), (b, _) = (pretrained_weights.load('random', MODULE) for _ in range(2))
  assert origin.name == 'random'
  jax.tree.map(np.testing.assert_array_equal, a, b)


# What is wrong is one clear error.


def test_a_missing_stage_is_named_with_what_there_is(tmp_path):
  module = backbones.build('resnet18', ('layer1', 'layer2'))
  refused(place(tmp_path, npz(weights())), r"no layer2.*\['conv1', 'bn1', 'layer1'\]", module)


def test_another_network_is_refused(tmp_path):
  for change, match in (
    ({'conv1.weight': np.ones((64, 3, 3, 3), 'f')}, r'\(64, 3, 7, 7\).*\(64, 3, 3, 3\)'),
    ({'layer1.0.conv1.weight': None}, r'no tensor layer1\.0\.conv1\.weight'),
    ({'layer1.2.conv1.weight': np.ones(1, 'f')}, r'unexpected tensor layer1\.2'),
    ({'bn1.bias': np.full(64, np.nan, 'f')}, r'bn1\.bias has values that are not finite'),
    ({'bn1.bias': np.full(64, 1e300)}, r'bn1\.bias has values that are not finite'),
    ({'bn1.bias': np.ones(64, np.int8)}, r'bn1\.bias has type int8'),
  ):
    tensors = {k: v for k, v in (weights() | change).items() if v is not None}
    refused(place(tmp_path, npz(tensors)), match)


def test_files_without_weights_are_refused(tmp_path):
  for data in (
    b'',
    b'<html>Moved</html>',
    b'version https://git-lfs.github.com/spec/v1\n',
    b'\x80\x02}.',
    b'\x80\x02K\x01.',
    pickle.dumps([1, 2]),
    torch_zip({}),
    npz({})[:10],
    b'PK\x05\x06' + bytes(18),
  ):
    refused(place(tmp_path, data), 'has no conv1|holds no weights')


def test_a_path_that_is_no_file_is_refused(tmp_path):
  refused(
    tmp_path / 'absent.pth', "No such file.*'imagenet', 'published', 'embedded', 'random' or a file"
  )
  refused(tmp_path, 'directory')


HOSTILE = {
  'os.system': b'\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR.',
  'eval by stack': b'\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.',
  'inst': b'(S"true"\nios\nsystem\n.',
  'obj': b'\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.',
  'newobj': b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.',
  'extension': b'\x80\x02\x82\x01.',
  'dotted': b'\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.',
  'build on a global': b'\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.',
  'call of a result': b'\x80\x02ccollections\nOrderedDict\n)R)R.',
  'call of a storage': b'\x80\x02ctorch\nFloatStorage\n)R.',
  'huge memo': b'\x80\x02}r\xff\xff\xff\xff.',
  'huge bytes': b'\x80\x04\x8e' + struct.pack('<Q', 1 << 60) + b'x.',
  'deep key': b'\x80\x02})' + b'\x85' * 200_000 + b'K\x01s.',
  'object array': pickle.dumps({'a': np.array([None])}),
  'itself': b'\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.',
}


def zipped(pickled: bytes) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
  return out.getvalue()


WRAPPED = {
  'bare': lambda pickled: pickled,
  'zip': zipped,
  'legacy': lambda pickled: torch_legacy({}).replace(Writer().dumps({}), pickled),
}


@pytest.mark.parametrize(
  'wrap', ['bare', *(pytest.param(wrap, marks=pytest.mark.slow) for wrap in ('zip', 'legacy'))]
)
def test_hostile_pickles_are_refused_and_never_run(wrap, tmp_path, monkeypatch):
  called = []
  for name in ('os.system', 'builtins.eval'):
    monkeypatch.setattr(name, lambda *_, name=name: called.append(name))
  wrong = {}
  for kind, pickled in HOSTILE.items():
    message, path = 'nothing', place(tmp_path, WRAPPED[wrap](pickled))
    try:
      pretrained_weights.load(path, MODULE)
    except WeightsError as error:
      message = str(error)
    if called or path not in message or not re.search('holds no weights|has no conv1', message):
      wrong[kind] = message, [*called]
    called.clear()
  assert not wrong


@pytest.mark.parametrize('write', [torch_zip, torch_legacy])
def test_tensors_beyond_their_storage_are_refused(write):
  stored, accepted = Stored('0', np.zeros(4, np.float32)), []
  for shape, strides, offset in (
    ((1 << 40,), (1,), 0),
    ((2, 2), (1 << 62, 1), 0),
    ((4,), (1,), 1),
    ((4,), (1,), -1),
    ((4,), (-1,), 3),
    ((2, 2), (1,), 0),
    ((-4,), (1,), 0),
    (('4',), (1,), 0),
  ):
    arguments = (stored, offset, shape, strides, False, Call('collections.OrderedDict', ()))
    data, message = write({'a': Call('torch._utils._rebuild_tensor_v2', arguments)}), ''
    try:
      formats.read(data)
    except ValueError as error:
      message = str(error)
    if 'tensor a ' not in message:
      accepted.append((shape, strides, offset, message))
  assert not accepted


def test_archives_do_not_inflate_without_bound(monkeypatch):
  with pytest.raises(ValueError, match='compressed'):
    formats.read(torch_zip(state_dict(few()), zipfile.ZIP_DEFLATED))
  monkeypatch.setattr(formats, '_MAX_INFLATED_BYTES', 100)
  with pytest.raises(ValueError, match='inflates'):
    formats.read(npz(few()))


def overlapping() -> bytes:
  """An archive whose directory has the same entry under many names."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    with archive.open('0.npy', 'w') as file:
      np.save(file, np.zeros(1 << 17))
    first = archive.filelist[0]
    for i in range(1, 200):
      archive.filelist.append(copy.copy(first))
      archive.filelist[-1].filename = f'{i}.npy'
  return out.getvalue()


def with_one_npy(content: bytes, compression=zipfile.ZIP_STORED, told_size: int = 0) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', compression) as archive:
    archive.writestr('a.npy', content)
    archive.filelist[0].file_size = told_size or len(content)
  return out.getvalue()


def npy(shape: tuple[int, ...], num_bytes: int) -> bytes:
  out = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    out, {'shape': shape, 'fortran_order': False, 'descr': '<f4'}
  )
  return out.getvalue() + bytes(num_bytes)


def sliced(sizes, strides, count: int) -> bytes:
  """A file of Paddle whose slices are many views of one storage."""
  stored, names = Stored('0', np.zeros(1 << 18, np.float32)), [f'a@@.{i}' for i in range(count)]
  content = {name: tensor(stored, sizes, strides) for name in names}
  shape = (count * int(np.prod(sizes)),)
  return torch_zip(
    content | {'UnpackBigParamInfor@@': {'a': {'OriginShape': shape, 'slices': names}}}
  )


def safetensors_of(header: str) -> bytes:
  return struct.pack('<Q', len(header)) + header.encode()


COUNT = 20_000
ORDERED_DICT, ENCODE, TUPLE = (
  f'c{module}\n{name}\n'.encode()
  for module, name in (('collections', 'OrderedDict'), ('_codecs', 'encode'), ('builtins', 'tuple'))
)
TEXT = b'X' + struct.pack('<I', 1 << 20) + b'a' * (1 << 20)
NUMBERS = b'(' + b'K\x01' * COUNT + b'l'
BOMBS = {
  'no pairs': b'\x80\x02' + ORDERED_DICT + b'((' + NUMBERS + b'q\x00' + b'h\x00' * COUNT + b'ltR.',
  'triples': b'\x80\x02' + ORDERED_DICT + b'((' + b'K\x01K\x02K\x03\x87' * COUNT + b'ltR.',
  'texts as pairs': b'\x80\x02' + ORDERED_DICT + b'((' + b'U\x02ab' * COUNT + b'ltR.',
  'dictionaries': b'\x80\x02](' + b'}' * (20 * COUNT) + b'e.',
  'the same list as tuples': b'\x80\x02'
  + TUPLE
  + b'q\x010('
  + NUMBERS
  + b'q\x00'
  + b'h\x01h\x00\x85R' * COUNT
  + b't.',
  'the same text in bytes': b'\x80\x02'
  + ENCODE
  + b'q\x010('
  + TEXT
  + b'q\x00'
  + b'h\x01h\x00\x85R' * COUNT
  + b't.',
  'the same pairs': b'\x80\x02'
  + ORDERED_DICT
  + b'q\x010(('
  + b'J\x00\x01\x02\x03K\x01\x86' * COUNT
  + b'lq\x00'
  + b'h\x01h\x00\x85R' * COUNT
  + b't.',
  'one number as many': sliced((1 << 29,), (0,), 1),
  'numbers as more': sliced((1 << 18, 2), (1, 0), 1),
  'slices of the same storage': sliced((1 << 18,), (1,), 100),
  'entries at the same place': overlapping(),
  'entries without content': npz({str(i): np.zeros(0) for i in range(COUNT)}),
  'zeros, deflated': npz({'a': np.zeros(5_000_000)}),
  'a size that is told too small': with_one_npy(npy((1000,), 80 << 20), zipfile.ZIP_DEFLATED, 4096),
  'a shape without numbers': with_one_npy(npy((1 << 40,), 4)),
  'a shape of more numbers': with_one_npy(npy((1 << 20,), 4 << 10)),
  'a header of many entries': safetensors_of(
    '{'
    + ','.join(
      f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(2 * COUNT)
    )
    + '}'
  ),
  'a header of a long shape': safetensors_of(
    f'{{"a":{{"dtype":"F32","shape":[0{",1" * 40 * COUNT}],"data_offsets":[0,0]}}}}'
  ),
}


def peak_bytes(data: bytes) -> tuple[int, str]:
  """Of reading a file, in addition to the file; and why it was refused, or ''."""
  tracemalloc.start()
  try:
    formats.read(data)
    return tracemalloc.get_traced_memory()[1], ''
  except ValueError as error:
    return tracemalloc.get_traced_memory()[1], str(error)
  finally:
    tracemalloc.stop()


def test_bombs_are_refused_before_they_take_memory():
  wrong = {}
  for kind, data in BOMBS.items():
    peak, refusal = peak_bytes(data)
    if not refusal or peak > 2 * len(data) + 2 * formats.ALLOWANCE:
      wrong[kind] = len(data), peak, refusal
  assert not wrong


@pytest.mark.parametrize('kind', WRITERS)
def test_to_read_weights_takes_at_most_twice_their_size(kind):
  rng = np.random.default_rng(0)
  data = WRITERS[kind](
    {f'{i}.weight': rng.standard_normal((64, 1024), np.float32) for i in range(9)}
  )
  peak, refusal = peak_bytes(data)
  assert not refusal
  assert peak <= 2 * len(data) + formats.ALLOWANCE


def test_a_path_that_gives_bytes_for_ever_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  for path in (tmp_path / 'fifo', pathlib.Path('/dev/zero')):
    refused(path, 'Not a regular file')


SMALL = {kind: write(few()) for kind, write in WRITERS.items()}


@pytest.mark.parametrize('kind', SMALL)
def test_a_file_cut_anywhere_is_refused_or_whole(kind):
  data = SMALL[kind]
  for end in range(len(data)):
    try:
      tensors = formats.read(data[:end])
    except ValueError:
      continue
    for name, value in formats.read(data).items():
      np.testing.assert_array_equal(tensors[name], value)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.sampled_from(sorted(SMALL)), st.data())
def test_damage_is_at_worst_one_error(kind, draw):
  data = bytearray(SMALL[kind])
  for _ in range(draw.draw(st.integers(1, 4))):
    data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
  with contextlib.suppress(ValueError):
    formats.read(bytes(data))


# Downloads.


class Server(http.server.ThreadingHTTPServer):
  """Has `content` under every name; `mode` is how badly it serves it."""

  content = b''
  mode = 'well'
  base = ''
  target = part = pathlib.Path()

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.ranges: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server = self.server
    assert isinstance(server, Server)
    server.ranges.append(self.headers.get('Range'))
    if server.mode == 'absent':
      self.send_error(404)
      return
    body, begin = server.content, 0
    if (range_header := self.headers.get('Range')) and server.mode != 'no ranges':
      begin = int(range_header.removeprefix('bytes=').rstrip('-'))
      if begin >= len(body):
        self.send_error(416)
        return
      self.send_response(206)
      self.send_header('Content-Range', f'bytes {begin}-{len(body) - 1}/{len(body)}')
    else:
      self.send_response(200)
    self.send_header('Content-Length', str(len(body) - begin))
    self.end_headers()
    self.wfile.write(body[begin : len(body) // 2] if server.mode == 'breaks' else body[begin:])

  def log_message(self, format, *args):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A server on loopback that has the weights of MODULE under the name that will be asked for."""
  content = npz(weights())
  name = f'resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth'
  monkeypatch.setitem(pretrained_weights.FILES, 'resnet18', name)
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  with Server() as server:
    server.content = content
    server.target = tmp_path / 'weights' / name
    server.part = server.target.with_name(name + '.part')
    server.base = f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setattr(pretrained_weights, 'TORCHVISION', server.base)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def offline(tmp_path, monkeypatch):
  """No server answers, and nothing is cached."""
  monkeypatch.setattr(pretrained_weights, 'TORCHVISION', NOWHERE)
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))


def fetch():
  return pretrained_weights.load('imagenet', MODULE)


def test_imagenet_is_downloaded_once(server):
  _, origin = fetch()
  fetch()
  assert server.ranges == [None]
  assert server.target.read_bytes() == server.content
  assert not server.part.exists()
  assert origin.source == f'{server.base}/{server.target.name}'
  assert origin.license == 'BSD-3-Clause'


def test_auto_is_imagenet_where_it_can_be_had(server, monkeypatch):
  choice = pretrained_weights.choose('resnet18', 'auto', ('layer2',))
  assert choice == ('resnet18', 'imagenet', '')
  # Now it is cached: no network is needed.
  monkeypatch.setattr(pretrained_weights, 'TORCHVISION', NOWHERE)
  assert pretrained_weights.choose('resnet18', 'auto', ('layer2',)) == choice


def test_auto_is_embedded_elsewhere_and_says_why(offline):
  choice = pretrained_weights.choose('resnet18', 'auto', ('layer2', 'layer3'))
  assert choice[:2] == ('compact', 'embedded')
  assert 'Could not download' in choice.fallback_reason
  assert 'backbone.weights=FILE' in choice.fallback_reason


@pytest.mark.parametrize(
  ('name', 'stages'), [('resnet50', ('layer2',)), ('resnet18', ('layer3', 'layer4'))]
)
def test_the_embedded_backbone_replaces_no_other_network(offline, name, stages):
  with pytest.raises(WeightsError, match='Could not download'):
    pretrained_weights.choose(name, 'auto', stages)
  with pytest.raises(
    ConfigError, match=r"support stages \['layer1', 'layer2', 'layer3'\] of resnet18"
  ):
    pretrained_weights.choose(name, 'embedded', stages)


def test_the_named_weights_are_chosen():
  for weights in ('random', 'imagenet', 'some/file.pth'):
    assert pretrained_weights.choose('resnet50', weights, ('layer1',)) == ('resnet50', weights, '')


def test_the_compact_network_has_no_weights_of_imagenet():
  assert pretrained_weights.choose('compact', 'auto', ('layer1',)) == ('compact', 'embedded', '')
  with pytest.raises(ConfigError, match='no published ImageNet weights for compact'):
    pretrained_weights.choose('compact', 'imagenet', ('layer1',))


@pytest.mark.parametrize('mode', ['well', 'no ranges'])
def test_a_broken_download_goes_on_from_where_it_was(server, mode):
  server.mode = 'breaks'
  with pytest.raises(WeightsError, match='broke off after'):
    fetch()
  half = len(server.content) // 2
  assert server.part.read_bytes() == server.content[:half]
  server.mode = mode
  fetch()
  assert server.ranges == [None, f'bytes={half}-']
  assert server.target.read_bytes() == server.content


def test_a_part_that_is_complete_is_used(server):
  server.part.parent.mkdir()
  server.part.write_bytes(server.content)
  fetch()


def test_a_part_of_something_else_is_removed(server):
  server.part.parent.mkdir()
  server.part.write_bytes(b'x' * 10)
  with pytest.raises(WeightsError, match=r'damaged.*removed'):
    fetch()
  assert not server.part.exists()
  fetch()


def test_a_wrong_checksum_is_refused_and_removed(server):
  server.content = b'<html>sign in</html>'
  with pytest.raises(WeightsError, match=r'SHA-256.*removed.*backbone\.weights=FILE'):
    fetch()
  assert list(server.target.parent.iterdir()) == []


def test_a_damaged_cache_is_downloaded_again(server):
  server.target.parent.mkdir()
  server.target.write_bytes(b'x')
  fetch()
  assert server.target.read_bytes() == server.content


def test_without_the_file_the_ways_out_are_named(server):
  server.mode = 'absent'
  with pytest.raises(WeightsError, match=r'404') as caught:
    fetch()
  for way in (server.base, str(server.target), 'backbone.weights=FILE'):
    assert way in str(caught.value)


def test_without_a_network_the_ways_out_are_named(offline):
  with pytest.raises(WeightsError, match=r'refused.*backbone\.weights=FILE'):
    fetch()


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(WeightsError, match=r'Cannot write .*UADJAX_CACHE'):
    download.fetch('http://127.0.0.1:9/a', tmp_path / 'file' / 'a', '00')


def test_published_names_carry_their_checksum():
  for arch, name in pretrained_weights.FILES.items():
    stem, _, digest = pathlib.Path(name).stem.rpartition('-')
    assert stem == arch
    assert len(bytes.fromhex(digest)) == 4


def test_missing_weights_are_reported_in_two_lines_once_per_process(tmp_path, monkeypatch, caplog):
  def fail(url, target, digest):
    raise WeightsError('No network.')

  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  monkeypatch.setattr(download, 'fetch', fail)
  monkeypatch.setattr(logging, '_logged_once', set())
  config = settings.load('patchcore')
  for _ in range(2):
    assert resolve_backbone.resolve_backbone(config, tmp_path).backbone.weights == 'embedded'
  (message,) = (r.getMessage() for r in caplog.records if r.levelname == 'WARNING')
  first, second = message.splitlines()
  assert max(len(first), len(second)) <= 100
  assert 'uadjax weights resnet18' in second
