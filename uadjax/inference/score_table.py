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
from uadjax.inference.result import Result, UNREADABLE
from uadjax.model import model_dir
from uadjax.system import files, logging
from uadjax.system.progress import Progress

_INFO_FILE = '_table.json'


class Table(NamedTuple):
  """What a table is to be.

  Attributes:
    folder: of its parts.
    format: one of `table_shards.FORMATS`.
    part: which of them is this process's, and of how many.
  """

  folder: Path
  format: str
  shard: tuple[int, int]


class TableSummary(NamedTuple):
  """What came of a part.

  Attributes:
    counts: images by label, those that could not be read among them, of this time.
    before: the same of those given that were in the table before.
  """

  counts: collections.Counter[str]
  previous_counts: collections.Counter[str]

  @property
  def num_unreadable(self) -> int:
    """How many images could not be read, now or before."""
    return self.counts[UNREADABLE] + self.previous_counts[UNREADABLE]

  def __str__(self) -> str:
    current_text, previous_text = (
      f'{counts.total()} ({", ".join(f"{label} {counts[label]}" for label in sorted(counts))})'
      if counts
      else 'none'
      for counts in self
    )
    return f'judged {current_text}, before {previous_text}'


def score_images(
  model: predictor.Predictor,
  input: Any,
  table: Table,
  batch_size: int,
  progress: Progress,
  strict: bool = False,
) -> TableSummary:
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
  sources = inputs.expand(input, table.folder)  # Raises where there is nothing to read at all.
  shard_hashes = {
    path_hash for image in sources if _belongs_to(path_hash := _path_hash(image.name), table.shard)
  }
  _prepare_table(table, model)
  counts, previous_counts = collections.Counter[str](), collections.Counter[str]()
  with table_shards.open_shard(table.folder, table.shard) as shard_file:
    table_shards.take_over(table.folder, table.format, table.shard)
    pending_hashes, num_unrelated = set(shard_hashes), 0
    for path, label in table_shards.scored_paths(table.folder):
      if (path_hash := _path_hash(path)) in pending_hashes:
        pending_hashes.remove(path_hash)
        previous_counts[label or UNREADABLE] += 1
      else:
        num_unrelated += 1
    if num_unrelated and shard_hashes and not previous_counts:
      logging.LOG.warning(
        '%s tells of %d images, and of none of these: the same ones must be spelled as before.',
        table.folder, num_unrelated,
      )  # fmt: skip
    total = len(pending_hashes)
    pending_images = _pending(inputs.expand(input, table.folder), pending_hashes)
    # Closed, so that nothing is being read any more when a part is finished, or left.
    with contextlib.closing(model.predict_sources(pending_images, batch_size, strict)) as results:
      for result in progress(results, total, 'Judging'):
        counts[result.label or UNREADABLE] += 1
        shard_file.write(files.to_json(_table_row(result), None).encode() + b'\n')
        shard_file.flush()
    table_shards.finish_shard(Path(shard_file.name), table.format)
  return TableSummary(counts, previous_counts)


def _pending(
  images: Iterator[inputs.Source], pending_hashes: set[bytes]
) -> Iterator[inputs.Source]:
  """The images that are left, each once."""
  for image in images:
    if (path_hash := _path_hash(image.name)) in pending_hashes:
      pending_hashes.remove(path_hash)
      yield image


def _path_hash(path: str) -> bytes:
  """What a path is remembered by: of millions of them the paths would fill the memory."""
  return hashlib.blake2b(path.encode('utf-8', 'backslashreplace'), digest_size=12).digest()


def _belongs_to(path_hash: bytes, shard: tuple[int, int]) -> bool:
  """Whether it is this part's, however many images there are beside it."""
  index, count = shard
  return int.from_bytes(path_hash) % count == index


def _table_row(result: Result) -> dict[str, Any]:
  """A verdict as a row; thresholds are those of the whole table."""
  if result.error:
    return {**dict.fromkeys(table_shards.COLUMNS), 'path': result.input_path, 'error': result.error}
  row = result.summary()
  height, width = row['size']
  row |= {'path': result.input_path, 'height': height, 'width': width, 'error': None}
  return {name: row[name] for name in table_shards.COLUMNS}


def _prepare_table(table: Table, model: predictor.Predictor) -> None:
  """Tell what the table is of, or refuse to mix it with another's."""
  try:
    table.folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(
      f'{table.folder} cannot be a folder for a table ({error.strerror}); name another.'
    ) from None
  loaded_model, path = model.model, table.folder / _INFO_FILE
  info = {
    'model_name': loaded_model.name,
    'arrays_sha256': model_dir.read_info(loaded_model.directory).arrays_sha256,
    'image_threshold': loaded_model.thresholds.image_threshold,
    'review_threshold': loaded_model.thresholds.review_threshold,
    'pixel_threshold': loaded_model.thresholds.pixel_threshold,
    'format': table.format,
  }
  try:
    existing_info = json.loads(path.read_text())
  except FileNotFoundError:
    if table_shards.has_shards(table.folder):
      raise ConfigError(
        f'{table.folder} holds parts of a table, but not what they are of ({_INFO_FILE}); name another.'
      ) from None
    files.write_json(path, info)
    return
  except ValueError as error:
    raise ConfigError(f'{path} is damaged ({error}); name another folder.') from None
  for key, value in info.items():
    if existing_info.get(key) != value:
      raise ConfigError(
        f'{table.folder} holds a table whose {key} is {existing_info.get(key)!r}, not {value!r}; name '
        'another folder.'
      )
