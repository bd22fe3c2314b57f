"""Checkpoints, the only module that reads and writes them with Orbax.

`rolling/` holds the last five steps that were saved, `best/` the step of the lowest held-out loss
and the best step before it. A checkpoint is complete or absent: Orbax writes a temporary directory
and renames it.
"""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from typing import NamedTuple

import jax
from orbax import checkpoint as ocp

from uadjax.errors import ModelError
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
    preservation_policy=policy, enable_async_checkpointing=False
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
  manager.save(step, args=ocp.args.Composite(**items), force=True)


def restore(manager: Manager, step: int, target: PyTree) -> tuple[PyTree, Mapping[str, float]]:
  """Return the state and metadata of a step, with the shapes, dtypes and sharding of `target`.

  Raises:
    ModelError: the step has no checkpoint, or its arrays do not match `target`.
  """
  steps = sorted(manager.all_steps())
  if step not in steps:
    raise ModelError(f'{manager.directory} has no checkpoint of step {step}; choose from {steps}.')
  abstract_state = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
  items = {'state': ocp.args.StandardRestore(abstract_state), 'notes': ocp.args.JsonRestore()}
  try:
    restored = manager.restore(step, args=ocp.args.Composite(**items))
  except (ValueError, KeyError, FileNotFoundError) as error:
    name = f'The checkpoint of step {step} in {manager.directory}'
    raise ModelError(f'{name} does not match the configuration: {error}') from error
  return restored['state'], restored['notes']
