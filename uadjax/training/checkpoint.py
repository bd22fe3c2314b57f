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

_KEEP = {'rolling': 5, 'best': 2}  # Until the next rolling one, the best before may be wanted.


class Saved(NamedTuple):
  """A checkpoint read back: a state, its step, and what was noted beside it."""

  step: int
  state: Any
  notes: dict[str, Any]


Manager = ocp.CheckpointManager


@contextlib.contextmanager
def manager(directory: Path, kind: str) -> Iterator[Manager]:
  """Open `directory/kind`, `kind` being rolling or best."""
  options = ocp.CheckpointManagerOptions(
    preservation_policy=ocp.checkpoint_managers.LatestN(_KEEP[kind]),
    # Synchronous: the next update donates the very buffers that would still be being written.
    enable_async_checkpointing=False,
  )
  with ocp.CheckpointManager((directory / kind).resolve(), options=options) as opened:
    yield opened


def steps(directory: Path, kind: str) -> list[int]:
  """The steps at which there is a whole checkpoint, ascending."""
  return sorted(int(p.name) for p in (directory / kind).glob('*') if p.name.isdigit())


def save(opened: Manager, step: int, state: Any, notes: Mapping[str, Any]) -> None:
  """Write a state with notes.

  What is there of this step or later ones is of a run that was cut off or taken up again from an
  earlier step: this one rewrites it.
  """
  for old in opened.all_steps():
    if old >= step:
      opened.delete(old)
  opened.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(dict(notes))
    ),
    force=True,
  )


def restore(opened: Manager, step: int, like: Any) -> Saved:
  """Read a step back, with the shapes, types and placement of `like`."""
  if step not in opened.all_steps():
    raise ModelError(
      f'No checkpoint of step {step} in {opened.directory}; there are {sorted(opened.all_steps())}.'
    )
  template = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  try:
    read = opened.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(template), notes=ocp.args.JsonRestore()
      ),
    )
  except (ValueError, KeyError, FileNotFoundError) as error:
    raise ModelError(
      f'The checkpoint of step {step} in {opened.directory} is not of this configuration: {error}'
    ) from error
  return Saved(step, read['state'], dict(read['notes']))
