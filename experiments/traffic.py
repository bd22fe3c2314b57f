"""What a batch costs each device, and what passes between them: read off the compiled programs.

  python experiments/traffic.py
  python experiments/traffic.py --devices=2 --batch=64

For every detector, of ResNet-18 at 256x256 pixels: features of a batch, folding it in (of STFPM a
training step, its teacher included), and scoring it, on 8 devices. Nothing is run: operations are
XLA's count, megabytes what it plans, bytes between devices those of the collectives' results, what
each device receives. Random weights: they change none of it. PatchCore's bank has 10,240 rows.
"""

import argparse
import os
from typing import Any

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

import fresh
import jax
from jax import numpy as jnp
import numpy as np
from shards import moved, planned_mb

from uadjax import config as configs
from uadjax.detectors.base import Detector, RunContext
from uadjax.distributed import mesh as meshes
from uadjax.model import model_dir
from uadjax.numerics import neighbors
from uadjax.sweep import tables
from uadjax.training import loop
from uadjax.types import Batch

_SIDE, _IMAGES, _ROWS = 256, 64, 10_240


def described(title: str, function: Any, given: tuple[Any, ...], each: int) -> list[Any]:
  """A row of the table: per device."""
  compiled = jax.jit(function).lower(*given).compile()
  found = compiled.cost_analysis()
  assert found is not None
  flops = found['flops']
  between = ', '.join(f'{k} {v / 1e6:.3g} MB' for k, v in sorted(moved(compiled).items()))
  row = [title, f'{flops / each / 1e9:.1f}', f'{planned_mb(compiled):.0f}', between or '—']
  print(*row, flush=True)
  return row


def rows(name: str, mesh: meshes.Mesh, batch: int) -> list[list[Any]]:
  """Of one detector."""
  config = configs.load(name)
  spec = RunContext(
    _SIDE, _SIDE, _IMAGES, shards=meshes.shards(mesh), max_extra_images_per_shard=batch // mesh.size
  )
  backbone, detector = model_dir.build_detector(config, spec)
  variables = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, _SIDE, _SIDE, 3)))
  state = loop.initial_state(detector, variables, 0, mesh)
  images = np.zeros((batch, _SIDE, _SIDE, 3), np.uint8)
  index = np.arange(batch, dtype=np.int32)
  whole = meshes.shard_batch(mesh, Batch(images, np.ones(batch, bool), index))
  each, found = batch // mesh.size, []
  if once := detector.one_pass:
    embedder = meshes.replicate(mesh, once.feature_extractor(state), copy=True)
    found.append(described(f'{name}: features', once.embed, (embedder, whole), each))
    features = meshes.shard_batch(mesh, jax.jit(once.embed)(embedder, whole))
    folded = whole._replace(image=whole.image[:, :0, :0], features=features)
    found.append(described(f'{name}: fold in', detector.update, (state, folded), each))
  else:
    found.append(described(f'{name}: training step', detector.update, (state, whole), each))
  fitted, images = _fitted(detector, state, mesh), whole.image
  return [*found, described(f'{name}: score', detector.score, (fitted, images), each)]


def _fitted(detector: Detector, state: Any, mesh: meshes.Mesh) -> Any:
  """What scoring needs; a bank of so many rows is not selected but made up."""
  if not hasattr(state, 'bank'):
    return detector.to_fitted(state)
  rows = jax.random.normal(jax.random.key(0), (_ROWS, state.bank.patches.rows.shape[-1]))
  index = neighbors.pad_index(neighbors.build_index(rows), mesh.size)
  split = detector.sharding_specs
  assert split is not None
  return meshes.put_on_mesh(
    mesh, split.fitted._replace(backbone=state.backbone, bank=index), split.fitted
  )


def main() -> None:
  """Compile and tell."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--devices', type=int, default=8)
  parser.add_argument('--batch', type=int, default=32)
  flags = parser.parse_args()
  mesh = meshes.mesh_of(jax.devices()[: flags.devices])
  found = [row for name in ('padim', 'patchcore', 'stfpm') for row in rows(name, mesh, flags.batch)]
  titles = ['', 'GFLOP per image', 'MB planned for each', 'moved to each']
  print('\n' + tables.markdown_table(titles, found))
  print(f'\nBatches of {flags.batch} on {flags.devices} devices; {fresh.machine()}.')


if __name__ == '__main__':
  main()
