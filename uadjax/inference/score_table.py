"""Verdicts on many images as one table in a folder, a part for each of several processes.

The processes need not know of each other: all list the same images, a hash of the path tells whose
each is, and none waits for another or is lost with it. Images that any part tells of are passed
over, so that a run that was cut off goes on where it was, and nothing is scored twice, on fewer or
more processes, too.
"""

import collections
from collections.abc import Iterator
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from uadjax.data import inputs
from uadjax.errors import ConfigError, UnknownName
from uadjax.inference import predictor, table_shards
from uadjax.inference.result import Result, UNREAD
from uadjax.model import model_dir
from uadjax.system import files, logging
from uadjax.system.progress import Progress

_ABOUT = '_table.json'


class Table(NamedTuple):
  """What a table is to be.

  Attributes:
    folder: of its parts.
    format: one of `table_shards.FORMATS`.
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
  one: predictor.Predictor,
  given: Any,
  table: Table,
  batch_size: int,
  track: Progress,
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
  if table.format not in table_shards.FORMATS:
    raise UnknownName(
      f'Unknown format of a table {table.format!r}; choose from {table_shards.FORMATS}.'
    )
  found = inputs.expand(given, table.folder)  # Raises where there is nothing to read at all.
  own = {mark for image in found if _falls(mark := _mark(image.name), table.part)}
  _begin(table, one)
  counts, before = collections.Counter[str](), collections.Counter[str]()
  with table_shards.growing(table.folder, table.part) as growing:
    table_shards.adopt(table.folder, table.format, table.part)
    left, others = set(own), 0
    for path, label in table_shards.told(table.folder):
      if (mark := _mark(path)) in left:
        left.remove(mark)
        before[label or UNREAD] += 1
      else:
        others += 1
    if others and own and not before:
      logging.LOG.warning(
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
    table_shards.finish(Path(growing.name), table.format)
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
    return {**dict.fromkeys(table_shards.COLUMNS), 'path': result.input_path, 'error': result.error}
  told = result.summary()
  height, width = told['size']
  told |= {'path': result.input_path, 'height': height, 'width': width, 'error': None}
  return {name: told[name] for name in table_shards.COLUMNS}


def _begin(table: Table, one: predictor.Predictor) -> None:
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
    'arrays_sha256': model_dir.read_info(model.directory).arrays_sha256,
    'threshold': model.thresholds.image_threshold,
    'review_threshold': model.thresholds.review_threshold,
    'pixel_threshold': model.thresholds.pixel_threshold,
    'format': table.format,
  }
  try:
    before = json.loads(path.read_text())
  except FileNotFoundError:
    if table_shards.any_in(table.folder):
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
