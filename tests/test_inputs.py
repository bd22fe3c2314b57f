"""Laws of what users give: everything becomes images, and nothing hostile does harm."""

import collections
import contextlib
import io
import itertools
import os
from pathlib import Path
import socket
import struct
import subprocess
import threading
import zipfile
import zlib

from hypothesis import given, strategies as st
import numpy as np
from PIL import Image
import pytest

from uadjax.data import image_io, inputs, transforms
from uadjax.data.layouts import scanning, seglist
from uadjax.errors import DataError
from uadjax.system import http

RGB = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)


def encoded(kind: str = 'PNG') -> bytes:
  file = io.BytesIO()
  Image.fromarray(RGB).save(file, kind)
  return file.getvalue()


PNG = encoded()


def image(path: Path) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(PNG)
  return path


def names(what) -> list[str]:
  return [source.name for source in inputs.expand(what)]


def only(what) -> inputs.Source:
  (source,) = inputs.expand(what)
  return source


def refused(path: Path | np.ndarray, reason: str) -> None:
  """Alone, a bad file is refused at once; among others, when it is read."""
  with pytest.raises(DataError, match=reason):
    inputs.read(only(path))
  source, after = inputs.expand([path, RGB])
  with pytest.raises(DataError, match=reason):
    inputs.read(source)
  assert inputs.read(after) is not None


def test_the_same_image_is_the_same_pixels_however_it_is_given(tmp_path):
  path = image(tmp_path / 'deep' / 'a.png')
  opened = PNG, bytearray(PNG), memoryview(PNG)
  for image_input in (path, str(path), os.fsencode(path).decode(), tmp_path, RGB, *opened):
    for nested_input in (
      image_input,
      [image_input],
      ({'img': [image_input]},),
      {'img': {'img': image_input}},
      iter([image_input]),
    ):
      np.testing.assert_array_equal(inputs.read(only(nested_input)), RGB)


def test_a_folder_is_listed_as_a_dataset_is(tmp_path):
  for name in ('10.png', '2.PNG', 'b/1.jpeg', 'b/c/x.TIF', 'a10/1.bmp', 'a9/1.webp', 'a9/2.tiff'):
    image(tmp_path / name)
  for name in ('notes.txt', '.hidden.png', '.git/x.png', 'png', 'x.png.gz', 'a9/Thumbs.db'):
    image(tmp_path / name)
  image(tmp_path / 'z.png' / 'inside.jpg')  # A folder may be called so.
  (tmp_path / 'empty').mkdir()
  sources = list(inputs.expand(tmp_path))
  assert [source.origin for source in sources] == scanning.find_files(tmp_path)
  assert [source.name for source in sources] == [
    str(path) for path in scanning.find_files(tmp_path)
  ]
  assert len(sources) == 8
  for source in sources:
    assert tmp_path / source.subfolder / Path(source.name).name == source.origin


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path, caplog):
  for name in ('a.png', 'b/c.jpg'):
    image(tmp_path / name)
  assert len(list(inputs.expand(tmp_path))) == 2
  assert not caplog.records
  for name in ('d.heic', 'b/e.HEIC', 'b/scan', '.hidden', '@eaDir/f.png', 'Thumbs.db'):
    image(tmp_path / name)
  assert len(list(inputs.expand(tmp_path))) == 2
  assert f'Files below {tmp_path} that are not read' in caplog.text
  assert '.heic 2, no suffix 1.' in caplog.text
  caplog.clear()
  assert len(list(inputs.expand(tmp_path, warn=False))) == 2
  assert not caplog.records


def test_masks_beside_images_are_scored_with_a_warning(tmp_path, caplog):
  for name in ('a.png', 'b/a_mask.png', 'c_mask.png'):
    image(tmp_path / name)
  assert len(list(inputs.expand(tmp_path))) == 3
  assert not caplog.records  # No image lies beside them.
  for name in ('b/a.png', 'a_GT.png'):
    image(tmp_path / name)
  assert len(list(inputs.expand(tmp_path))) == 5
  (record,) = caplog.records
  assert 'scored as images: 2, such as' in record.getMessage()


def test_a_file_is_tried_whatever_its_name(tmp_path):
  for name in ('scan', 'a.dat', '.hidden', 'a.png.bak'):
    np.testing.assert_array_equal(inputs.read(only(image(tmp_path / name))), RGB)


def test_lists_keep_their_order_and_what_has_no_name_is_numbered(tmp_path):
  path, url = image(tmp_path / 'a.png'), 'http://example.com/a.png?x=1'
  nested = [RGB, [url, PNG, ({'img': path}, RGB)], (RGB for _ in range(2)), {'img': [PNG, RGB]}]
  expected = 'array_0000', url, 'bytes_0000', str(path), 'array_0001', 'array_0002', 'array_0003'
  assert names(nested) == [*expected, 'bytes_0001', 'array_0004']
  assert names([]) == names({'img': []}) == names([[], {'img': ()}]) == []
  assert only(RGB).origin is RGB


def test_inputs_are_expanded_lazily():
  endless = (RGB for _ in itertools.count())
  assert [source.name for source in itertools.islice(inputs.expand([endless]), 3)] == [
    'array_0000', 'array_0001', 'array_0002',
  ]  # fmt: skip


def test_folders_are_listed_lazily(tmp_path, monkeypatch):
  for name in ('a/1.png', 'a/2.png', 'b/1.png', 'c/1.png'):
    image(tmp_path / name)
  listed = []
  scan = os.scandir
  monkeypatch.setattr(os, 'scandir', lambda path: listed.append(path) or scan(path))
  sources = inputs.expand(tmp_path)
  assert next(sources).origin == tmp_path / 'a/1.png'
  assert listed == [tmp_path, tmp_path / 'a']


def listed(path: Path, *lines: str, encoding='utf-8') -> list[inputs.Source]:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes('\r\n'.join(lines).encode(encoding, 'surrogateescape'))
  return list(inputs.expand(path))


FILES = ('img/0.png', 'img/sub folder/1.png', 'img/größe 瓶.png')
SPELLINGS = {
  'as it is': lambda name: name,
  'backslashes': lambda name: name.replace('/', '\\'),
  'dot': lambda name: f'.\\{name}',
  'quotes': lambda name: f'"{name}"',
  'single quotes': lambda name: f"'{name}'",
  'blanks': lambda name: f'  {name} \t ',
  'quoted backslashes': lambda name: ' "{}"'.format(name.replace('/', '\\')),
  'mask after a tab': lambda name: f'{name}\tmasks/{name}',
  'quoted mask': lambda name: f'"{name}"\t"masks/{name}"',
}
SURROUNDINGS = ((), ('# made by hand', ''), ('FullName', '--------'), ('image\tmask',))


def test_lists_are_read_as_any_system_writes_them(tmp_path):
  expected = [image(tmp_path / name) for name in FILES]
  for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
    for spell, before in itertools.product(SPELLINGS, SURROUNDINGS):
      lines = [*before, *map(SPELLINGS[spell], FILES), '', '   ', '\t']
      sources = listed(tmp_path / 'LIST.TXT', *lines, encoding=encoding)
      paths = [Path(os.path.normpath(source.origin)) for source in sources]
      assert paths == expected, (encoding, spell, before)
      assert [source.location for source in sources] == [
        f'{tmp_path / "LIST.TXT"} line {number}' for number in range(1, 4 + len(before))
      ][len(before) :]
  absolute = listed(tmp_path / 'elsewhere/list.txt', *map(str, expected), '../img/0.png')
  assert [source.origin.resolve() for source in absolute] == [*expected, expected[0]]


def test_a_list_for_training_is_one_for_predict(tmp_path):
  for name in ('a.png', 'b.png'):
    image(tmp_path / name)
  for line in ('a.png b.png', 'a.png  "b.png" ', '.\\a.png .\\b.png', 'a.png\tb.png'):
    (source,) = listed(tmp_path / 'train.txt', line)
    assert source.origin == tmp_path / 'a.png'
    records, issues = seglist.read_list(tmp_path / 'train.txt')
    assert ([record.path for record in records], issues) == ([tmp_path / 'a.png'], [])


def test_a_name_that_exists_is_meant_literally(tmp_path):
  odd = (
    '#1.png',
    'a\\b.png',
    '"q".png',
    ' blank.png ',
    'a.png b.png',
    'C:\\x.png',
    'tab\t.png',
    'img',
  )
  for name in odd:
    image(tmp_path / name)
    (source,) = listed(tmp_path / 'list.txt', name)
    assert source.origin == tmp_path / name
    np.testing.assert_array_equal(inputs.read(source), RGB)


def test_lines_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
  monkeypatch.setattr(http, 'get', lambda url, access: b'<html>')
  image(tmp_path / 'a.png')
  (tmp_path / 'bad.png').write_bytes(PNG[:-30])
  for line, reason in (
    ('no.png', r'no\.png: No such file or directory\.$'),
    ('no.png b.png', r'no\.png b\.png: No such file'),
    ('bad.png', 'truncated'),
    ('C:\\data\\0.png', r'C:\\data\\0\.png: No such .* It is a path of Windows; write it relative'),
    ('"D:/data/0.png" ', r'Cannot read D:/data/0\.png: .* path of Windows'),
    ('\\\\server\\share\\0.png', 'path of Windows'),
    ('gr\udcf6\udcdfe.png', r'The list is not valid text; save it as UTF-8\.$'),
    ('http://example.com/x.png', 'not a JPEG'),
    ('ftp://example.com/x.png', 'not a JPEG'),
    ('.', 'no images in or below it'),
  ):
    good, bad, after = listed(tmp_path / 'list.txt', 'a.png', line, 'a.png ')
    with pytest.raises(DataError, match=reason) as error:
      inputs.read(bad)
    assert str(error.value).startswith(f'{tmp_path / "list.txt"} line 2: '), line
    for other in (good, after):
      np.testing.assert_array_equal(inputs.read(other), RGB)
    loaded = inputs.load(bad, transforms.parse('resize(8)'))
    assert str(loaded.error) == str(error.value)


def test_files_that_are_no_lists_are_refused_at_once(tmp_path):
  path = tmp_path / 'list.txt'
  for content, reason in (
    (b'', 'lists no image'),
    (b'\r\n \n', 'lists no image'),
    ('\ufeff'.encode('utf-16-le'), 'lists no image'),
    (b'# only a comment', 'lists no image'),
    ('a.png\r\n'.encode('utf-16-le'), 'line 1 has a null character; save the list as UTF-8'),
    (bytes(99), 'line 1 has a null character'),
  ):
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
      inputs.expand(path)
  path.write_bytes('a.png'.encode('utf-16')[:-1])  # Cut off within a character.
  with pytest.raises(DataError, match=r'line 1: .*not valid text'):
    inputs.read(only(path))


def test_long_lists_are_read_lazily_and_ask_for_no_file(tmp_path, monkeypatch):
  (tmp_path / 'list.txt').write_text('img/0.png\n' * 100_000)
  monkeypatch.setattr(os.path, 'lexists', None)
  monkeypatch.setattr(os, 'stat', None)
  first = next(inputs._read_list(tmp_path / 'list.txt'))
  assert first.origin == tmp_path / 'img/0.png'


def test_lists_may_be_deep_but_not_endless():
  deep = [RGB]
  for _ in range(20_000):
    deep = [deep]
  assert names(deep) == ['array_0000']
  endless = [RGB]
  endless.append([endless])
  loop = {}
  loop['img'] = loop
  for what in (endless, loop):
    with pytest.raises(DataError, match='contains itself'):
      list(inputs.expand(what))
  twice = [RGB]
  assert len(names([twice, twice, [twice]])) == 3  # That is no loop.


@given(st.recursive(st.just(RGB), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_nesting_changes_nothing(what):
  def count(item) -> int:
    return 1 if isinstance(item, np.ndarray) else sum(map(count, item))

  assert names(what) == [f'array_{number:04d}' for number in range(count(what))]


class HasArray:
  __array__ = RGB.__array__


def test_wrong_types_are_named():
  for what, reason in (
    (None, 'type NoneType'),
    (3.5, 'type float'),
    ({1, 2}, 'type set'),
    (object(), r"An input must be a path or URL .*, \{'img': any of these\}, or a list"),
    ('', 'an empty path'),
    ({'image': RGB}, r"key 'img'; this one has the keys \['image'\]"),
    (HasArray(), r'type HasArray as an image\. Pass numpy\.asarray\(\) of it\.'),
    (io.BytesIO(PNG), r'type BytesIO as an image\. Pass what its read\(\) returns\.'),
  ):
    for wrong in (what, [what], [RGB, (what,)]):
      with pytest.raises(DataError, match=reason):
        list(inputs.expand(wrong))


def test_gray_arrays_are_repeated_and_strides_do_not_matter():
  gray = RGB[..., 1]
  for array in (gray, gray[..., None], np.asfortranarray(gray)):
    np.testing.assert_array_equal(inputs.read(only(array)), np.stack([gray] * 3, -1))
  turned = RGB[::-1, ::2]
  np.testing.assert_array_equal(inputs.read(only(turned)), turned)


def test_other_arrays_are_refused_with_the_way_out():
  for array, way in (
    (RGB > 99, r'bool; .* Scale its values'),
    (np.array([['x']], object), r'object; .* Scale its values'),
    (RGB[None], r'\(1, 23, 31, 3\) .* list\(array\)'),
    (np.zeros((9, 9, 4), np.uint8), r'array\[\.\.\., :3\]'),
    (np.zeros((3, 9, 9), np.uint8), r'transpose\(1, 2, 0\)'),
    (np.zeros((9, 9, 2), np.uint8), 'Pass an array of one of these shapes'),
    (np.zeros((9, 0, 3), np.uint8), 'Pass an array of one of these shapes'),
    (np.zeros((0, 9), np.uint8), 'Pass an array of one of these shapes'),
    (np.zeros((1, 1, 9, 9, 3), np.uint8), 'Pass an array of one of these shapes'),
    (np.zeros(9, np.uint8), 'Pass an array of one of these shapes'),
    (np.zeros((), np.uint8), 'Pass an array of one of these shapes'),
  ):
    refused(array, rf'^Cannot read array_0000: its shape is .*{way}')


def test_a_single_absent_input_is_refused_at_once(tmp_path):
  for path in (tmp_path / 'no.png', str(tmp_path / 'no.png'), {'img': tmp_path / 'no'}):
    with pytest.raises(DataError, match=r'Cannot read .*no.*: No such file or directory\.'):
      inputs.expand(path)
  refused(tmp_path / 'no.png', r'no\.png: No such file')
  assert names({'img': [tmp_path / 'no.png']}) == [str(tmp_path / 'no.png')]
  refused(tmp_path / 'a\0b.png', 'null')
  refused(tmp_path / '\ud800.png', r'ud800\.png: ')
  refused(tmp_path / ('x' * 300), 'name too long')
  (tmp_path / 'sub').mkdir()
  refused(tmp_path, r'no images in or below it; image files must end in \.jpg, ')


def test_a_bad_file_in_a_folder_loses_no_other(tmp_path):
  for name in ('1.png', '3.png', '9/1.png'):
    image(tmp_path / name)
  (tmp_path / '2.png').write_bytes(PNG[:-30])
  (tmp_path / '4.png').touch()
  (tmp_path / '5.png').symlink_to('nowhere')
  (tmp_path / '6.png').symlink_to('6.png')
  os.mkfifo(tmp_path / '7.png')
  good, bad = [], {}
  for source in inputs.expand(tmp_path):
    try:
      np.testing.assert_array_equal(inputs.read(source), RGB)
      good.append(source.name.removeprefix(f'{tmp_path}/'))
    except DataError as error:
      bad[source.origin.name] = str(error)
  assert good == ['1.png', '3.png', '9/1.png']
  assert list(bad) == ['2.png', '4.png', '5.png', '6.png', '7.png']
  reasons = 'truncated', 'empty', 'No such file', 'symbolic links', 'it is a pipe'
  for (name, message), reason in zip(bad.items(), reasons, strict=True):
    assert f'{tmp_path / name}: ' in message
    assert reason in message


def test_a_file_that_becomes_a_pipe_does_not_hang(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  os.mkfifo(path)
  monkeypatch.setattr('stat.S_ISREG', lambda mode: True)
  with pytest.raises(DataError, match=r'a\.png: '):
    inputs.read(inputs.Source(str(path), path))


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
  for name in ('a/1.png', 'b/1.png', 'c/1.png'):
    image(tmp_path / name)
  scan = os.scandir

  def guarded(path):
    if Path(path).name == 'b':
      raise PermissionError(13, 'Permission denied')
    return scan(path)

  monkeypatch.setattr(os, 'scandir', guarded)
  sources = list(inputs.expand(tmp_path))
  assert [source.origin for source in sources] == [
    tmp_path / 'a/1.png', tmp_path / 'b', tmp_path / 'c/1.png',
  ]  # fmt: skip
  with pytest.raises(DataError, match='b'):
    inputs.read(sources[1])


def test_loops_of_links_are_walked_once(tmp_path):
  folders = [tmp_path / name for name in 'abcdefgh']
  for folder in folders:
    image(folder / f'{folder.name}.png')
  for folder, other_folder in itertools.permutations(folders, 2):  # 8! ways to go around.
    (folder / f'to_{other_folder.name}').symlink_to(other_folder)
  (tmp_path / 'up').symlink_to(tmp_path)
  (tmp_path / 'itself').symlink_to('itself')
  sources = [source.origin.name for source in inputs.expand(tmp_path)]
  assert sorted(sources) == [f'{folder.name}.png' for folder in folders]


HOSTILE = (
  b'line\nbreak.png', b'-rf.png', '📷 ü.png'.encode(), b'\xff\xfe latin.png', b'x' * 246 + b'.png',
  b'%s {0} $HOME `id`.png', b'..png', b' .png', b"'quote\".png", b'back\\slash.png', b'[a-z]*?.png',
  b'\x1b[31mred.png', b'http:.png', '\u202egnp.exe.png'.encode(),
)  # fmt: skip


def assert_is_a_name(folder: Path, name: bytes) -> None:
  folder.mkdir()
  path = Path(os.fsdecode(os.fsencode(folder) + b'/' + name))
  path.write_bytes(PNG)
  source = only(path)
  assert source.name.encode('utf-8')  # Can be written and printed.
  np.testing.assert_array_equal(inputs.read(source), RGB)
  path.write_bytes(b'damaged')
  with pytest.raises(DataError) as error:
    inputs.read(source)
  assert source.name in str(error.value)
  assert str(error.value).encode('utf-8')
  if not name.startswith(b'.'):
    assert only(folder) == source


def test_unusual_file_names_are_read_literally(tmp_path):
  wrong = {}
  for number, name in enumerate(HOSTILE):
    try:
      assert_is_a_name(tmp_path / f'{number}', name)
    except Exception as error:  # Whatever it is, the other names are tried too.
      wrong[name] = error
  assert not wrong


def test_names_that_can_be_written_are_as_they_are(tmp_path):
  assert only(image(tmp_path / '📷 ü\n\\.png')).name == str(tmp_path / '📷 ü\n\\.png')


def test_devices_are_not_read():
  devices = '/dev/zero', '/dev/null', '/dev/tty', '/proc/self/mem'
  existing_devices = [path for path in devices if Path(path).exists()]
  if not existing_devices:
    pytest.skip(f'has none of {devices}')
  for path in existing_devices:
    refused(Path(path), f'Cannot read {path}: ')


def test_a_pipe_is_not_even_opened(tmp_path, monkeypatch):
  os.mkfifo(tmp_path / 'pipe.png')
  monkeypatch.setattr(os, 'open', None)
  refused(tmp_path / 'pipe.png', 'it is a pipe')


def test_pipes_and_sockets_do_not_hang(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  refused(tmp_path / 'pipe.png', 'it is a pipe')
  with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(tmp_path):
    sock.bind('socket.png')  # A whole path may be too long for one.
    refused(tmp_path / 'socket.png', r'socket\.png: .*it is a pipe')


def archive() -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as packed:
    packed.writestr('a.png', PNG)
  return file.getvalue()


def test_other_contents_with_an_image_suffix_are_refused(tmp_path):
  path = tmp_path / 'a.png'
  reason = f'not a {image_io.FORMAT_NAMES} image'
  for content in (
    archive(),
    zlib.compress(PNG, wbits=31),
    b'%!PS-Adobe-3.0 EPSF-3.0\n',
    b'\xd7\xcd\xc6\x9a\0\0' + bytes(40),
    b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    b'%PDF-1.7',
    bytes(999),
  ):
    path.write_bytes(content)
    for what, message in (
      (path, f'Cannot read {path}: {reason}.'),
      (content, f'bytes_0000: Cannot read the image: {reason}.'),
    ):
      with pytest.raises(DataError) as error:
        inputs.read(only(what))
      assert str(error.value) == message, content[:20]


def test_truncated_images_are_refused(tmp_path):
  path, accepted = tmp_path / 'a.png', []
  for kind in ('PNG', 'JPEG', 'BMP', 'TIFF', 'WEBP'):
    content = encoded(kind)
    for length in (0, 1, 20, len(content) // 2):
      path.write_bytes(content[:length])
      for what, name in ((path, 'a.png'), (content[:length], 'bytes_0000')):
        message = ''
        try:
          inputs.read(only(what))
        except DataError as error:
          message = str(error)
        if f'{name}: ' not in message:
          accepted.append((kind, length, name, message))
  assert not accepted


def claiming(width: int, height: int) -> bytes:
  """A PNG of a few bytes that says it is large."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  parts = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(bytes(99))), chunk(b'IEND', b'')
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  monkeypatch.setattr('PIL.ImageFile.ImageFile.load', None)
  for size in ((60_000, 60_000), (178_956_971, 1), (2**31 - 1, 2**31 - 1)):
    path.write_bytes(claiming(*size))
    for what in (path, path.read_bytes()):
      with pytest.raises(DataError, match=r'(a\.png|bytes_0000): .*178956970'):
        inputs.read(only(what))


def test_urls_are_fetched_as_access_allows(monkeypatch):
  calls = []
  monkeypatch.setattr(http, 'get', lambda url, access: calls.append((url, access)) or PNG)
  access = http.Access(private=True)
  source = only('HTTPS://Example.com/a.png')
  np.testing.assert_array_equal(inputs.read(source, access), RGB)
  np.testing.assert_array_equal(inputs.read(source), RGB)
  assert calls == [(source.name, access), (source.name, http.PUBLIC_ONLY)]


@pytest.mark.parametrize('read', [inputs.read, lambda url: inputs.read(inputs.fetch(url))])
def test_a_url_that_is_no_image_is_named_without_its_secrets(monkeypatch, read):
  monkeypatch.setattr(http, 'get', lambda url, access: b'<html>')
  with pytest.raises(
    DataError, match=r'^http://example\.com/a\.png\?\.\.\.: .*not a JPEG'
  ) as error:
    read(only('http://example.com/a.png?token=secret'))
  assert 'secret' not in str(error.value)


def test_other_schemes_are_no_paths():
  for url in ('file:///etc/passwd', 'ftp://a/b.png', 's3://a/b', 'data:,x'):
    with pytest.raises(DataError, match='only http and https'):
      inputs.read(only(url))


def test_many_threads_read_the_same(tmp_path):
  sources = list(inputs.expand([image(tmp_path / 'a.png'), PNG, RGB] * 20))
  images = collections.deque()
  threads = [
    threading.Thread(target=lambda part=part: images.extend(map(inputs.read, part)))
    for part in (sources[::2], sources[1::2])
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(images) == 60
  assert all(np.array_equal(pixels, RGB) for pixels in images)


@pytest.mark.real
def test_real_images_are_the_same_from_path_folder_array_and_bytes(shared: Path):
  folder = shared / 'data/mvtec_ad/screw/test/good'
  first = next(inputs.expand(folder))
  expected = image_io.decode(first.origin)
  for what in (first.origin, first.origin.read_bytes(), expected):
    np.testing.assert_array_equal(inputs.read(only(what)), expected)


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 1), (3, 4, 3)])
def test_a_masked_array_without_masked_pixels_is_its_image(shape):
  values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
  expected = inputs.read(only(values))
  no_mask = np.zeros(shape, bool)
  for mask in (np.ma.nomask, no_mask):
    pixels = inputs.read(only(np.ma.masked_array(values, mask)))
    assert type(pixels) is np.ndarray
    np.testing.assert_array_equal(pixels, expected)
  no_mask[0, 0] = True
  refused(np.ma.masked_array(values, no_mask), 'some of its pixels are masked')


def test_a_matrix_is_a_gray_image():
  values = np.arange(6, dtype=np.uint8).reshape(2, 3)
  expected = inputs.read(only(values))
  np.testing.assert_array_equal(inputs.read(only(values.view(np.matrix))), expected)


@pytest.fixture
def nested(tmp_path):
  """Returns a function that makes nested folders with an image in the innermost one."""

  def make(depth):
    innermost = tmp_path / 'root'
    innermost.mkdir()
    for _ in range(depth):
      innermost /= 'd'
      innermost.mkdir()
    image(innermost / 'a.png')
    return tmp_path / 'root'

  yield make
  subprocess.run(['rm', '-rf', str(tmp_path / 'root')], check=True)  # shutil would recurse.


@pytest.mark.parametrize('depth', [1, 100, 101, 1500])
def test_folders_may_be_nested_but_not_endlessly(depth, nested):
  folder = nested(depth)
  for list_files in (scanning.find_files, lambda folder: list(inputs.expand(folder))):
    if depth <= 100:
      assert len(list_files(folder)) == 1
    else:
      with pytest.raises(DataError, match='nested more than 100 deep'):
        list_files(folder)
