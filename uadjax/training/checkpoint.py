"""Checkpoints, the only module that reads and writes them with Orbax.

`rolling/` holds the last five steps that were saved, `best/` the step of the lowest held-out loss
and the best step before it. A checkpoint is complete or absent: Orbax writes a temporary directory
and renames it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import shutil
from typing import NamedTuple

import jax
from orbax import checkpoint as ocp

from uadjax.errors import ModelError, Setting
from uadjax.system import files
from uadjax.types import PyTree

Manager = ocp.CheckpointManager
# Two best steps: until the next rolling checkpoint is written, resuming may need the older one.
_NUM_ROLLING, _NUM_BEST = 5, 2


class Managers(NamedTuple):
  """Checkpoint managers of a run: of its last steps, and of its best steps."""

  rolling: Manager
  best: Manager


@contextlib.contextmanager
def open_managers(directory: Path) -> Iterator[Managers]:
  """Open the checkpoint managers of `directory/rolling` and `directory/best`."""
  with (
    _open(directory / 'rolling', _NUM_ROLLING) as rolling,
    _open(directory / 'best', _NUM_BEST) as best,
  ):
    yield Managers(rolling, best)


def _open(directory: Path, max_to_keep: int) -> Manager:
  policy = ocp.checkpoint_managers.LatestN(max_to_keep)
  # Synchronous, because the next update donates the buffers that are being written.
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy, enable_async_checkpointing=False, cleanup_tmp_directories=True
  )
  return ocp.CheckpointManager(directory.resolve(), options=options)


def announce_size(directory: Path, state: PyTree) -> None:
  """Log how much disk space all checkpoints of a state take, as `files.announce_size` does."""
  num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  files.announce_size('checkpoints', directory, (_NUM_ROLLING + _NUM_BEST) * num_bytes)


def saved_steps(directory: Path, kind: str) -> list[int]:
  """Return the steps that have a complete checkpoint, in ascending order."""
  return sorted(int(path.name) for path in (directory / kind).glob('*') if path.name.isdigit())


def save(manager: Manager, step: int, state: PyTree, metadata: Mapping[str, float]) -> None:
  """Save a state with metadata, and delete existing checkpoints of this step and later ones.

  Those come from a run that was interrupted, or resumed from an earlier step.
  """
  for existing_step in manager.all_steps():
    if existing_step >= step:
      manager.delete(existing_step)
  items = {'state': ocp.args.StandardSave(state), 'notes': ocp.args.JsonSave(dict(metadata))}
  with _full_disk_named(Path(manager.directory), step):
    manager.save(step, args=ocp.args.Composite(**items), force=True)


@contextlib.contextmanager
def _full_disk_named(directory: Path, step: int) -> Iterator[None]:
  """Name path and bytes in the error of a full disk, and remove the unfinished checkpoint."""
  try:
    yield
  except Exception as error:
    number = _disk_error_number(error)
    if number is None:
      raise
    checkpoint_dir = directory / str(step)
    unfinished = next(directory.glob(f'{step}.*'), checkpoint_dir)
    disk_error = files.full_disk_error(number, checkpoint_dir, unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    raise disk_error from error


def _disk_error_number(error: Exception) -> int | None:
  """Return the number of the error of a full disk or quota; None for any other error.

  Orbax raises errors of several classes. Some have the reason in their text only.
  """
  if isinstance(error, OSError) and error.errno in files.DISK_FULL:
    return error.errno
  return next((number for number in files.DISK_FULL if os.strerror(number) in str(error)), None)


def restore(
  manager: Manager,
  step: int,
  target: PyTree,
  rolling_steps: Sequence[int],
  metadata_keys: Collection[str] = (),
) -> tuple[PyTree, Mapping[str, float]]:
  """Return the state and metadata of a step, with the shapes, dtypes and sharding of `target`.

  Args:
    manager: where the checkpoint was saved.
    step: the step.
    target: tree of arrays.
    rolling_steps: steps to resume from instead, of which the error names the earlier ones.
    metadata_keys: keys that the metadata must have, each with a number.

  Raises:
    ModelError: the step has no checkpoint, it is corrupt, or its arrays do not match `target`.
  """
  steps = sorted(manager.all_steps())
  if step not in steps:
    raise ModelError(f'{manager.directory} has no checkpoint of step {step}; choose from {steps}.')
  abstract_state = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
  items = {'state': ocp.args.StandardRestore(abstract_state), 'notes': ocp.args.JsonRestore()}
  name = f'The checkpoint of step {step} in {manager.directory}'
  try:
    restored = manager.restore(step, args=ocp.args.Composite(**items))
  except Exception as error:  # Damaged files raise errors of many classes.
    if _has_other_arrays(manager, step, abstract_state):
      raise ModelError(f'{name} does not match the configuration: {error}') from error
    raise _corrupt(name, step, rolling_steps, error) from error
  metadata = restored['notes']
  for key in metadata_keys:
    if not isinstance(metadata, dict) or not isinstance(metadata.get(key), float):
      error = ValueError(f'its metadata have no {key}')
      raise _corrupt(name, step, rolling_steps, error)
  return restored['state'], metadata


def _has_other_arrays(manager: Manager, step: int, abstract_state: PyTree) -> bool:
  """Return whether a checkpoint is readable, but of arrays with other names or shapes."""

  def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True): tuple(x.shape) for path, x in leaves}

  try:
    saved_state = manager.item_metadata(step)['state'].tree
    return shapes(saved_state) != shapes(ocp.utils.serialize_tree(abstract_state))
  except Exception:  # As above.
    return False


def _corrupt(name: str, step: int, rolling_steps: Sequence[int], error: Exception) -> ModelError:
  """Return the error for a corrupt checkpoint; it names the earlier ones."""
  reason = str(error).partition('\n')[0].partition('. ')[0] or type(error).__name__
  message = f'{name} is corrupt ({reason[:120]}).'
  earlier_steps = sorted((s for s in rolling_steps if s < step), reverse=True)
  if not earlier_steps:
    hint = 'There is no earlier one; start over with ', Setting('fit.overwrite', True), '.'
  else:
    others = f'; there are checkpoints of the steps {", ".join(map(str, earlier_steps))}.'
    hint = 'Resume from an earlier one with ', Setting('fit.resume', earlier_steps[0]), others
  return ModelError(message, key='fit.resume', value=step, allowed=earlier_steps, hint=hint)
