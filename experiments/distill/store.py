"""Files of a run: the checkpoint to resume from, and the weights to ship."""

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

_CHECKPOINT_DIR, _METADATA_FILE = 'checkpoint', 'metadata.json'
_EPSILON = 1e-5  # Epsilon of BatchNorm.


def save(directory: Path, state: student.State, scales: losses.Scales, metadata: Mapping) -> None:
  """Write a checkpoint atomically; it replaces the last one.

  It has few files, all small: some machines give back no larger ones.
  """
  with files.atomic_directory(directory / _CHECKPOINT_DIR) as temporary_dir:
    for name, tree in _state_trees(state, scales).items():
      leaves: Any = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}
      np.savez(temporary_dir / f'{name}.npz', **leaves)
    files.write_json(temporary_dir / _METADATA_FILE, metadata)


def load(directory: Path) -> tuple[student.Recipe, student.State, losses.Scales]:
  """Read the checkpoint; exit if there is none."""
  folder = directory / _CHECKPOINT_DIR
  if not folder.is_dir():
    sys.exit(f'{directory} contains no checkpoint to resume from; run without --resume.')
  recipe = student.Recipe(**json.loads((folder / _METADATA_FILE).read_text())['recipe'])
  scales = {
    stage: losses.Scale(jnp.zeros(plan.channels), jnp.zeros(plan.channels))
    for stage, plan in compact.STAGE_CONFIGS.items()
  }
  abstract_state = jax.eval_shape(lambda: student.init_state(recipe, scales))
  trees = {}
  for name, tree in _state_trees(abstract_state, scales).items():
    with np.load(folder / f'{name}.npz') as file:
      leaves = [jnp.asarray(file[str(i)]) for i in range(len(file.files))]
    trees[name] = jax.tree.unflatten(jax.tree.structure(tree), leaves)
  batch_stats, step, scales = trees.pop('stats_and_scales')
  return recipe, student.State(batch_stats=batch_stats, step=step, **trees), scales


def _state_trees(state: student.State, scales: losses.Scales) -> dict[str, Any]:
  trees = state._asdict()
  stats_and_scales = trees.pop('batch_stats'), trees.pop('step'), scales
  return {**trees, 'stats_and_scales': stats_and_scales}


def export_tensors(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Return the network's tensors with torchvision's names and axes, in half precision.

  Every BatchNorm is kept but only adds: its factor is folded into the preceding convolution.
  """
  params: Any = traverse_util.flatten_dict(variables['params'])
  batch_stats: Any = traverse_util.flatten_dict(variables['batch_stats'])
  tensors = {}
  for path, kernel in params.items():
    if path[-1] != 'kernel':
      continue
    module_path = path[:-2]
    tensor_prefix = '.'.join(module_path).replace('_', '.')
    factor = params[*module_path, 'bn', 'scale'] / jnp.sqrt(
      batch_stats[*module_path, 'bn', 'var'] + _EPSILON
    )
    bias = params[*module_path, 'bn', 'bias'] - batch_stats[*module_path, 'bn', 'mean'] * factor
    tensors[f'{tensor_prefix}.conv.weight'] = (kernel * factor[None, None, None]).transpose(
      3, 2, 0, 1
    )
    # A folded BatchNorm must not scale: its variance plus BatchNorm's epsilon is one.
    batch_norm = {'weight': jnp.ones_like(bias), 'bias': bias}
    batch_norm |= {
      'running_mean': jnp.zeros_like(bias),
      'running_var': jnp.ones_like(bias) - _EPSILON,
    }
    tensors |= {f'{tensor_prefix}.bn.{leaf}': value for leaf, value in batch_norm.items()}
  return {name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}


def export(path: Path, state: student.State, card: Mapping[str, Any]) -> dict[str, Any]:
  """Write the averaged weights, and next to them a card with their origin; return the card."""
  tensors = export_tensors(state.average_variables)
  data = safetensors.save(tensors, {'format': 'uadjax compact'})
  with files.atomic_write(path) as file:
    file.write(data)
  num_parameters = sum(x.size for name, x in tensors.items() if not name.endswith(('mean', 'var')))
  full_card = {**card, 'sha256': hashlib.sha256(data).hexdigest(), 'bytes': len(data)}
  full_card |= {'parameters': num_parameters, 'step': int(state.step)}
  files.write_json(path.with_suffix('.json'), full_card)
  return full_card
