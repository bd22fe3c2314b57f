"""Verdicts on many images as one table in a folder, a part for each of several processes.

The processes need not know of each other: all list the same images, a hash of the path tells whose
each is, and none waits for another or is lost with it. A part grows as JSON lines, so that a run
that was cut off has all that it was told; it becomes whole, as Parquet or as JSON lines, in the
end. Images that any part tells of are passed over, so that going on scores nothing twice, on fewer
or more processes, too.
"""

import collections
from collections.abc import Iterable, Iterator
import contextlib
import hashlib
import itertools
import json
import os
from pathlib import Path
import re
from typing import Any, BinaryIO, NamedTuple

from uadjax import bundle, files, inputs, predict, telemetry
from uadjax.result import Result, UNREAD
from uadjax.types import ConfigError, DataError, Track, UnknownName

FORMATS = ('parquet', 'jsonl')
# Readers of whole folders, such as pandas and Arrow, pass over names that begin with _.
_ABOUT, _GROWING = '_table.json', '_'
_PART = re.compile(r'_?part-(\d+)-of-(\d+)')
_AT_ONCE = 10_000  # Rows that are held in memory.
# Of an image that could not be read all are null but the path and why.
_COLUMNS = 'path', 'score', 'label', 'height', 'width', 'marked_pixels', 'regions', 'error'


class Table(NamedTuple):
  """What a table is to be.

  Attributes:
    folder: of its parts.
    format: one of FORMATS.
    part: which of them is this process's, and of how many.
  """

  folder: Path
  format: str
  part: tuple[int, int]


class Told(NamedTuple):
  """What came of a part.

  Attributes:
    counts: images by label, those that could not be read among them, of this time.
    before: the same of those given that were in the table before.
  """

  counts: collections.Counter[str]
  before: collections.Counter[str]

  @property
  def unread(self) -> int:
    """How many images could not be read, now or before."""
    return self.counts[UNREAD] + self.before[UNREAD]

  def __str__(self) -> str:
    now, before = (
      f'{some.total()} ({", ".join(f"{label} {some[label]}" for label in sorted(some))})'
      if some
      else 'none'
      for some in self
    )
    return f'judged {now}, before {before}'


def judge(
  one: predict.Predictor,
  given: Any,
  table: Table,
  batch_size: int,
  track: Track,
  strict: bool = False,
) -> Told:
  """Judge this process's share of the images that are not in the table yet.

  Args:
    one: the model.
    given: as `Predictor.predict` takes it; listed twice, so no generator.
    table: where rows go: path, score, label, height, width, marked_pixels, regions and error.
    batch_size: images at once.
    track: shows progress.
    strict: stop at the first image that cannot be read.

  Raises:
    ConfigError: the table is of another model, or another process is at this part.
    UnknownName: no such format.
    DataError: as `Predictor.predict`.
  """
  if table.format not in FORMATS:
    raise UnknownName(f'Unknown format of a table {table.format!r}; choose from {FORMATS}.')
  found = inputs.expand(given, table.folder)  # Raises where there is nothing to read at all.
  own = {mark for image in found if _falls(mark := _mark(image.name), table.part)}
  _begin(table, one)
  counts, before = collections.Counter[str](), collections.Counter[str]()
  with _growing(table) as growing:
    _adopt(table)
    left, others = set(own), 0
    for path, label in _told(table.folder):
      if (mark := _mark(path)) in left:
        left.remove(mark)
        before[label or UNREAD] += 1
      else:
        others += 1
    if others and own and not before:
      telemetry.LOG.warning(
        '%s tells of %d images, and of none of these: the same ones must be spelled as before.',
        table.folder, others,
      )  # fmt: skip
    total = len(left)
    fresh = _these(inputs.expand(given, table.folder), left)
    # Closed, so that nothing is being read any more when a part is finished, or left.
    with contextlib.closing(one.judge(fresh, batch_size, strict)) as results:
      for result in track(results, total, 'Judging'):
        counts[result.label or UNREAD] += 1
        growing.write(files.to_json(_row(result), None).encode() + b'\n')
        growing.flush()
    _finish(Path(growing.name), table.format)
  return Told(counts, before)


def _these(images: Iterator[inputs.Source], left: set[bytes]) -> Iterator[inputs.Source]:
  """The images that are left, each once."""
  for image in images:
    if (mark := _mark(image.name)) in left:
      left.remove(mark)
      yield image


def _mark(path: str) -> bytes:
  """What a path is remembered by: of millions of them the paths would fill the memory."""
  return hashlib.blake2b(path.encode('utf-8', 'backslashreplace'), digest_size=12).digest()


def _falls(mark: bytes, part: tuple[int, int]) -> bool:
  """Whether it is this part's, however many images there are beside it."""
  index, count = part
  return int.from_bytes(mark) % count == index


def _row(result: Result) -> dict[str, Any]:
  """A verdict as a row; thresholds are those of the whole table."""
  if result.error:
    return {**dict.fromkeys(_COLUMNS), 'path': result.input_path, 'error': result.error}
  told = result.summary()
  height, width = told['size']
  told |= {'path': result.input_path, 'height': height, 'width': width, 'error': None}
  return {name: told[name] for name in _COLUMNS}


def _begin(table: Table, one: predict.Predictor) -> None:
  """Tell what the table is of, or refuse to mix it with another's."""
  try:
    table.folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f'{table.folder} cannot be a folder for a table ({error.strerror}); name another.'
    ) from None
  model, path = one.model, table.folder / _ABOUT
  about = {
    'model_name': model.name,
    'arrays_sha256': bundle.about(model.directory).arrays_sha256,
    'threshold': model.limits.image,
    'review_threshold': model.limits.review,
    'pixel_threshold': model.limits.pixel,
    'format': table.format,
  }
  try:
    before = json.loads(path.read_text())
  except FileNotFoundError:
    if any(_PART.match(name.name) for name in table.folder.iterdir()):
      raise ConfigError(
        f'{table.folder} holds parts of a table, but not what they are of ({_ABOUT}); name another.'
      ) from None
    files.write_json(path, about)
    return
  except ValueError as error:
    raise ConfigError(f'{path} is damaged ({error}); name another folder.') from None
  for key, value in about.items():
    if before.get(key) != value:
      raise ConfigError(
        f'{table.folder} holds a table whose {key} is {before.get(key)!r}, not {value!r}; name '
        'another folder.'
      )


@contextlib.contextmanager
def _growing(table: Table) -> Iterator[BinaryIO]:
  """Open this process's part where it ends; without a line that was cut off."""
  index, count = table.part
  path = table.folder / f'{_GROWING}part-{index:05d}-of-{count:05d}.jsonl'
  with path.open('a+b') as file:
    if not _mine(file):
      raise ConfigError(
        f'Another process is at part {index}/{count} of {table.folder}; give each its own --shard.'
      )
    _mend(file)
    try:
      yield file
    finally:
      with contextlib.suppress(FileNotFoundError):
        if not path.stat().st_size:
          path.unlink()


def _mine(file: BinaryIO) -> bool:
  """Whether no other process has it open; it is ours then, until it is closed."""
  try:
    # Not one that was finished while we opened it, and has another name now, or none.
    there = os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())
  except FileNotFoundError:
    return False
  return files.locked(file) and there


def _mend(file: BinaryIO) -> None:
  """Cut off a last line that has no end."""
  file.seek(0)
  end = 0
  for line in file:
    end += len(line) if line.endswith(b'\n') else 0
  file.truncate(end)
  file.seek(end)


def _adopt(table: Table) -> None:
  """Finish what processes left that there are no more: parts of another number of them."""
  index, count = table.part
  for path in sorted(table.folder.glob(f'{_GROWING}part-*')):
    found = _PART.match(path.name)
    if found and int(found[2]) != count and int(found[1]) % count == index:
      with contextlib.suppress(FileNotFoundError), path.open('r+b') as file:
        if _mine(file):
          _mend(file)
          _finish(path, table.format)


def _finish(growing: Path, form: str) -> None:
  """Make a part whole, under the first name that is free; an empty one vanishes."""
  if not growing.stat().st_size:
    growing.unlink()
    return
  stem = growing.stem.removeprefix(_GROWING)
  names = itertools.chain([stem], (f'{stem}.{number}' for number in itertools.count(2)))
  whole = next(path for name in names if not (path := growing.with_name(f'{name}.{form}')).exists())
  if form == 'jsonl':
    growing.replace(whole)
    return
  with files.written(whole) as file:
    _write_parquet(_lines(growing), file)
  growing.unlink()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
  with path.open('rb') as file:
    for line in file:
      if line.endswith(b'\n'):  # Another process may be writing the last one.
        yield json.loads(line)


def _write_parquet(rows: Iterable[dict[str, Any]], file: BinaryIO) -> None:
  import pyarrow
  from pyarrow import parquet

  schema = _schema(pyarrow)
  rows = iter(rows)
  with parquet.ParquetWriter(file, schema) as writer:
    while some := list(itertools.islice(rows, _AT_ONCE)):
      writer.write_table(pyarrow.Table.from_pylist(some, schema))


def _schema(pyarrow: Any) -> Any:
  text, whole, real = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
  region = {'box': pyarrow.list_(whole), 'area': whole, 'peak': real, 'at': pyarrow.list_(whole)}
  regions = pyarrow.list_(pyarrow.struct(list(region.items())))
  types = text, real, text, whole, whole, whole, regions, text
  return pyarrow.schema(list(zip(_COLUMNS, types, strict=True)))


def _told(folder: Path) -> Iterator[tuple[str, str | None]]:
  """The images that any part tells of, and their labels; None where they could not be read."""
  read: set[Path] = set()
  # A part that becomes whole meanwhile vanishes, and is found under its other name.
  while fresh := sorted(set(folder.glob('*part-*')) - read):
    for path in fresh:
      read.add(path)
      with contextlib.suppress(FileNotFoundError):
        yield from _told_in(path)


def _told_in(part: Path) -> Iterator[tuple[str, str | None]]:
  from pyarrow import parquet

  try:
    if part.suffix == '.parquet':
      for some in parquet.ParquetFile(part).iter_batches(_AT_ONCE, columns=['path', 'label']):
        yield from zip(*(some.column(name).to_pylist() for name in ('path', 'label')), strict=True)
    elif part.suffix == '.jsonl':
      yield from ((row['path'], row['label']) for row in _lines(part))
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f'{part} is no part of a table: {error}. Remove it, or mend it.') from None
