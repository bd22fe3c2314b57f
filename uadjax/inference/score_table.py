"""Table of verdicts on many images, sharded over independent processes.

The processes do not communicate. All list the same images, and a hash of the path decides which
process scores an image, so that none waits for another or fails with it. Images that any shard
contains are skipped. So an interrupted run resumes, and no image is scored twice, even on fewer or
more processes.
"""

import collections
from collections.abc import Iterator
import contextlib
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from uadjax.data import inputs
from uadjax.errors import ConfigError, UnknownName
from uadjax.inference import parts, table_shards
from uadjax.inference.predictor import Predictor
from uadjax.inference.result import Result, UNREADABLE
from uadjax.model import calibration
from uadjax.model.model_dir import ModelInfo
from uadjax.system import files, logging
from uadjax.system.progress import Progress

_INFO_FILE = '_table.json'


class Table(NamedTuple):
  """Location and format of a table.

  Attributes:
    folder: folder of the shards.
    format: one of `table_shards.FORMATS`.
    shard: index of this process's shard, and number of shards.
    part_pattern: pattern of `parts.part_of`, or '' if images are not grouped.
  """

  folder: Path
  format: str
  shard: tuple[int, int]
  part_pattern: str = ''


class TableSummary(NamedTuple):
  """Number of images by label in a process's shard, UNREADABLE included.

  Attributes:
    counts: images scored in this run.
    previous_counts: images that earlier runs had scored.
    part_verdicts: verdicts on the parts of all these images; none without a pattern.
  """

  counts: collections.Counter[str]
  previous_counts: collections.Counter[str]
  part_verdicts: parts.PartVerdicts

  @property
  def num_unreadable(self) -> int:
    """Number of unreadable images, in this run and earlier ones."""
    return self.counts[UNREADABLE] + self.previous_counts[UNREADABLE]

  def __str__(self) -> str:

    def describe(counts: collections.Counter[str]) -> str:
      labels = ', '.join(f'{label} {count}' for label, count in sorted(counts.items()))
      return f'{counts.total()} ({labels})' if counts else 'none'

    return f'scored {describe(self.counts)}, previously scored {describe(self.previous_counts)}'


def score_images(
  predictor: Predictor,
  input: object,
  table: Table,
  batch_size: int,
  progress: Progress,
  strict: bool = False,
) -> TableSummary:
  """Score the images of this process's shard that are not in the table yet.

  Args:
    predictor: predictor of the model.
    input: images in any form that `Predictor.predict` takes, except a generator, since they are
      listed twice.
    table: table for the rows, which have the columns `table_shards.COLUMNS`.
    batch_size: images per call of the detector.
    progress: function that wraps the results to show progress.
    strict: whether to raise an error at the first unreadable image.

  Raises:
    ConfigError: the table belongs to another model, another process is writing this shard, or the
      part of an image is unknown.
    UnknownName: unknown table format.
    DataError: there are no images, a shard is damaged, or with `strict` an image is unreadable.
  """
  if table.format not in table_shards.FORMATS:
    raise UnknownName(f'Unknown table format {table.format!r}; choose from {table_shards.FORMATS}.')
  # Raises an error if there is nothing to read.
  sources = inputs.expand(input, table.folder, warn=False)
  pending_hashes = _shard_hashes(sources, table)
  _prepare_table(table, predictor.model)
  counts = collections.Counter[str]()
  part_verdicts = parts.PartVerdicts(table.part_pattern)
  with table_shards.open_shard(table.folder, table.shard) as shard_file:
    table_shards.take_over(table.folder, table.format, table.shard)
    previous_counts = _remove_scored(table, pending_hashes, part_verdicts)
    total = len(pending_hashes)
    pending_images = _pending(inputs.expand(input, table.folder), pending_hashes)
    results = predictor.predict_sources(pending_images, batch_size, strict)
    # Closing stops the reading threads before the shard is finished, or abandoned after an error.
    with contextlib.closing(results):
      for result in progress(results, total, 'Scoring'):
        counts[result.label or UNREADABLE] += 1
        part = part_verdicts.add_image(result.input_path, result.label)
        shard_file.write(files.to_json(_table_row(result, part), None).encode() + b'\n')
        shard_file.flush()
    table_shards.finish_shard(Path(shard_file.name), table.format)
    if table.part_pattern:
      _write_parts(table, part_verdicts)
  return TableSummary(counts, previous_counts, part_verdicts)


def _remove_scored(
  table: Table, pending_hashes: set[bytes], part_verdicts: parts.PartVerdicts
) -> collections.Counter[str]:
  """Remove the hashes of images in the table, count them by label, and add them to their parts."""
  counts, num_pending, num_unrelated = collections.Counter[str](), len(pending_hashes), 0
  for path, label in table_shards.scored_paths(table.folder):
    if (path_hash := _path_hash(path)) in pending_hashes:
      pending_hashes.remove(path_hash)
      counts[label or UNREADABLE] += 1
      part_verdicts.add_image(path, label)
    else:
      num_unrelated += 1
  if num_unrelated and num_pending and not counts:
    logging.LOG.warning(
      'None of these images are in %s (%d others are). Are paths spelled as in earlier runs?',
      table.folder, num_unrelated,
    )  # fmt: skip
  return counts


def _shard_hashes(sources: Iterator[inputs.Source], table: Table) -> set[bytes]:
  """Return the hashes of the images that this process scores: all images of a part, or none."""
  (index, num_shards), pattern = table.shard, table.part_pattern
  hashes = set[bytes]()
  for source in sources:
    part = parts.part_of(source.name, pattern) if pattern else source.name
    if int.from_bytes(_path_hash(part)) % num_shards == index:
      hashes.add(_path_hash(source.name))
  return hashes


def _write_parts(table: Table, part_verdicts: parts.PartVerdicts) -> None:
  """Write the verdicts on the parts of this shard, and remove those of other shardings."""
  index, num_shards = table.shard
  for path in table.folder.glob('_parts-*-of-*.csv'):
    if not path.stem.endswith(f'-of-{num_shards:05d}'):
      path.unlink(missing_ok=True)
  path = table.folder / f'_parts-{index:05d}-of-{num_shards:05d}.csv'
  files.write_csv(path, part_verdicts.table())


def _pending(images: Iterator[inputs.Source], hashes: set[bytes]) -> Iterator[inputs.Source]:
  """Yield the images whose paths have these hashes, each once."""
  for image in images:
    if (path_hash := _path_hash(image.name)) in hashes:
      hashes.remove(path_hash)
      yield image


def _path_hash(path: str) -> bytes:
  """Return a short hash of a path, since millions of paths would fill the memory."""
  return hashlib.blake2b(path.encode('utf-8', 'backslashreplace'), digest_size=12).digest()


def _table_row(result: Result, part: str | None) -> dict[str, object]:
  """Return a result as a row, which has only the codes of its warnings.

  The thresholds are not in it, because they are the same for the whole table.
  """
  row: dict[str, object] = {**dict.fromkeys(table_shards.COLUMNS), **result.summary()}
  row |= {'path': result.input_path, 'part': part}
  if not result.error:
    row['height'], row['width'] = result.size
    row['warnings'] = result.warning_codes
  return {name: row[name] for name in table_shards.COLUMNS}


def _prepare_table(table: Table, model: ModelInfo) -> None:
  """Record the model and the thresholds of a table, or check that they match.

  Raises:
    ConfigError: the folder cannot be created, or holds a table of another model, other thresholds
      or another format.
  """
  try:
    table.folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    message = f'{table.folder} cannot be a folder for a table ({error.strerror}); choose another.'
    raise ConfigError(message) from None
  path = table.folder / _INFO_FILE
  info = {
    'model_name': model.name,
    'arrays_sha256': model.arrays_sha256,
    **calibration.by_name(model.thresholds),
    'format': table.format,
    'part_pattern': table.part_pattern,
  }
  try:
    existing_info = json.loads(path.read_text())
  except FileNotFoundError:
    if any(map(table_shards.is_shard, table.folder.glob('*part-*'))):
      raise ConfigError(
        f'{table.folder} holds shards of a table, but not {_INFO_FILE}, which names their model; '
        'choose another folder.'
      ) from None
    files.write_json(path, info)
    return
  except ValueError as error:
    raise ConfigError(f'{path} is damaged ({error}); choose another folder.') from None
  for key, value in info.items():
    if existing_info.get(key) != value:
      raise ConfigError(
        f'{table.folder} holds a table whose {key} is {existing_info.get(key)!r}, not {value!r}; '
        'choose another folder.'
      )
