"""Checkpoints, the only module that reads and writes them with Orbax.

`rolling/` holds the last five steps that were saved, `best/` the step of the lowest held-out loss
and the best step before it. A checkpoint is complete or absent: Orbax writes a temporary directory
and renames it.
"""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax import checkpoint as ocp

from uadjax.errors import ModelError

# Two best steps: until the next rolling checkpoint is written, resuming may need the older one.
_MAX_TO_KEEP = {'rolling': 5, 'best': 2}


class RestoredCheckpoint(NamedTuple):
  """Training state read from a checkpoint, with its step and the metadata saved with it."""

  step: int
  state: Any
  metadata: dict[str, Any]


Manager = ocp.CheckpointManager


@contextlib.contextmanager
def open_manager(directory: Path, kind: str) -> Iterator[Manager]:
  """Open the checkpoint manager of `directory/kind`, where `kind` is 'rolling' or 'best'."""
  options = ocp.CheckpointManagerOptions(
    preservation_policy=ocp.checkpoint_managers.LatestN(_MAX_TO_KEEP[kind]),
    # Synchronous, because the next update donates the buffers that are being written.
    enable_async_checkpointing=False,
  )
  with ocp.CheckpointManager((directory / kind).resolve(), options=options) as manager:
    yield manager


def saved_steps(directory: Path, kind: str) -> list[int]:
  """Return the steps that have a complete checkpoint, in ascending order."""
  return sorted(int(path.name) for path in (directory / kind).glob('*') if path.name.isdigit())


def save(manager: Manager, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
  """Save a state with metadata, and delete existing checkpoints of this step and later ones.

  Those come from a run that was interrupted, or resumed from an earlier step.
  """
  for existing_step in manager.all_steps():
    if existing_step >= step:
      manager.delete(existing_step)
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(dict(metadata))
    ),
    force=True,
  )


def restore(manager: Manager, step: int, target: Any) -> RestoredCheckpoint:
  """Read the checkpoint of a step, with the shapes, dtypes and sharding of `target`.

  Raises:
    ModelError: the step has no checkpoint, or its arrays do not match `target`.
  """
  if step not in manager.all_steps():
    raise ModelError(
      f'{manager.directory} has no checkpoint of step {step}; choose from '
      f'{sorted(manager.all_steps())}.'
    )
  abstract_state = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
  try:
    items = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state), notes=ocp.args.JsonRestore()
      ),
    )
  except (ValueError, KeyError, FileNotFoundError) as error:
    raise ModelError(
      f'The checkpoint of step {step} in {manager.directory} does not match the configuration: '
      f'{error}'
    ) from error
  return RestoredCheckpoint(step, items['state'], dict(items['notes']))
