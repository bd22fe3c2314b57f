"""A run on disk: checkpoints to go on from, and the weights to ship."""

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path
import sys
from typing import Any

from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from distill import losses, student
from uadjax.backbones import compact
from uadjax.system import files

_FOLDER, _NOTES = 'checkpoint', 'notes.json'
_EPSILON = 1e-5  # BatchNorm's.


def save(directory: Path, state: student.State, scales: losses.Scales, notes: Mapping) -> None:
  """Write a checkpoint, whole or not at all; the last one is replaced.

  Few files and none large: some machines give back no others.
  """
  with files.atomic_directory(directory / _FOLDER) as fresh:
    for name, part in _parts(state, scales).items():
      leaves: Any = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(part))}
      np.savez(fresh / f'{name}.npz', **leaves)
    files.write_json(fresh / _NOTES, notes)


def load(directory: Path) -> tuple[student.Recipe, student.State, losses.Scales]:
  """Read the checkpoint back; ends the script where there is none."""
  folder = directory / _FOLDER
  if not folder.is_dir():
    sys.exit(f'{directory} holds no checkpoint; leave out --resume.')
  recipe = student.Recipe(**json.loads((folder / _NOTES).read_text())['recipe'])
  scales = {
    stage: losses.Scale(jnp.zeros(plan.channels), jnp.zeros(plan.channels))
    for stage, plan in compact.STAGE_CONFIGS.items()
  }
  like = jax.eval_shape(lambda: student.initial(recipe, scales))
  read = {}
  for name, part in _parts(like, scales).items():
    with np.load(folder / f'{name}.npz') as file:
      leaves = [jnp.asarray(file[str(i)]) for i in range(len(file.files))]
    read[name] = jax.tree.unflatten(jax.tree.structure(part), leaves)
  stats, step, scales = read.pop('rest')
  return recipe, student.State(stats=stats, step=step, **read), scales


def _parts(state: student.State, scales: losses.Scales) -> dict[str, Any]:
  parts = state._asdict()
  rest = parts.pop('stats'), parts.pop('step'), scales
  return {**parts, 'rest': rest}


def tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The network as files have it: torchvision's names and axes, half precision, norms folded.

  Every BatchNorm is there, but only adds: what it multiplied by is in the convolution before it.
  """
  params: Any = traverse_util.flatten_dict(variables['params'])
  stats: Any = traverse_util.flatten_dict(variables['batch_stats'])
  found = {}
  for path, kernel in params.items():
    if path[-1] != 'kernel':
      continue
    unit = path[:-2]
    place = '.'.join(unit).replace('_', '.')
    factor = params[*unit, 'bn', 'scale'] / jnp.sqrt(stats[*unit, 'bn', 'var'] + _EPSILON)
    bias = params[*unit, 'bn', 'bias'] - stats[*unit, 'bn', 'mean'] * factor
    found[f'{place}.conv.weight'] = (kernel * factor[None, None, None]).transpose(3, 2, 0, 1)
    # The folded one must change nothing: its variance and BatchNorm's epsilon make one.
    norm = {'weight': jnp.ones_like(bias), 'bias': bias}
    norm |= {'running_mean': jnp.zeros_like(bias), 'running_var': jnp.ones_like(bias) - _EPSILON}
    found |= {f'{place}.bn.{leaf}': value for leaf, value in norm.items()}
  return {name: np.ascontiguousarray(value, np.float16) for name, value in found.items()}


def export(path: Path, state: student.State, card: Mapping[str, Any]) -> dict[str, Any]:
  """Write the averaged weights, and beside them a card that tells where they come from."""
  found = tensors(state.average)
  data = safetensors.save(found, {'format': 'uadjax compact'})
  with files.atomic_write(path) as file:
    file.write(data)
  count = sum(x.size for name, x in found.items() if not name.endswith(('mean', 'var')))
  told = {**card, 'sha256': hashlib.sha256(data).hexdigest(), 'bytes': len(data)}
  told |= {'parameters': count, 'step': int(state.step)}
  files.write_json(path.with_suffix('.json'), told)
  return told
