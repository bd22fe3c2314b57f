"""Checkpoints: the only room that knows Orbax.

`rolling/` holds the last five steps; `best/` that of the lowest held-out loss, and the best before.
Each is whole or not there: Orbax writes beside and renames.
"""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax import checkpoint as ocp

from uadjax.errors import ModelError

_MAX_TO_KEEP = {
  'rolling': 5,
  'best': 2,
}  # Until the next rolling one, the best before may be wanted.


class RestoredCheckpoint(NamedTuple):
  """A checkpoint read back: a state, its step, and what was noted beside it."""

  step: int
  state: Any
  metadata: dict[str, Any]


Manager = ocp.CheckpointManager


@contextlib.contextmanager
def open_manager(directory: Path, kind: str) -> Iterator[Manager]:
  """Open `directory/kind`, `kind` being rolling or best."""
  options = ocp.CheckpointManagerOptions(
    preservation_policy=ocp.checkpoint_managers.LatestN(_MAX_TO_KEEP[kind]),
    # Synchronous: the next update donates the very buffers that would still be being written.
    enable_async_checkpointing=False,
  )
  with ocp.CheckpointManager((directory / kind).resolve(), options=options) as manager:
    yield manager


def saved_steps(directory: Path, kind: str) -> list[int]:
  """The steps at which there is a whole checkpoint, ascending."""
  return sorted(int(path.name) for path in (directory / kind).glob('*') if path.name.isdigit())


def save(manager: Manager, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
  """Write a state with notes.

  What is there of this step or later ones is of a run that was cut off or taken up again from an
  earlier step: this one rewrites it.
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
  """Read a step back, with the shapes, types and placement of `like`."""
  if step not in manager.all_steps():
    raise ModelError(
      f'No checkpoint of step {step} in {manager.directory}; there are {sorted(manager.all_steps())}.'
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
      f'The checkpoint of step {step} in {manager.directory} is not of this configuration: {error}'
    ) from error
  return RestoredCheckpoint(step, items['state'], dict(items['notes']))
