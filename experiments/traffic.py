"""Cost of a batch per device and bytes between devices, read from the compiled programs.

  python experiments/traffic.py
  python experiments/traffic.py --devices=2 --batch=64

For every detector, with ResNet-18 at 256x256 pixels on 8 devices: extract features of a batch,
update the state with it (for STFPM a training step, its teacher included), and score it. Nothing is
run. Operations are XLA's count, megabytes are what XLA plans, and bytes between devices are the
results of collectives that each device receives. Weights are random, which changes none of it.
PatchCore's memory bank has 10,240 rows.
"""

import argparse
import os
from typing import Any

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

import jax
from jax import numpy as jnp
import numpy as np
from shards import collective_bytes, planned_mb
import subprocess_runs

from uadjax.detectors.base import Detector, RunContext
from uadjax.distributed import mesh as meshes
from uadjax.model import model_dir
from uadjax.numerics import neighbors
from uadjax.sweep import tables
from uadjax.training import loop, settings
from uadjax.types import Batch

_IMAGE_SIZE, _NUM_IMAGES, _NUM_BANK_ROWS = 256, 64, 10_240


def program_row(
  title: str, function: Any, arguments: tuple[Any, ...], images_per_device: int
) -> list[Any]:
  """Compile a function and return its table row, with costs per device."""
  compiled = jax.jit(function).lower(*arguments).compile()
  cost = compiled.cost_analysis()
  assert cost is not None
  flops = cost['flops']
  transfers = ', '.join(
    f'{k} {v / 1e6:.3g} MB' for k, v in sorted(collective_bytes(compiled).items())
  )
  row = [
    title,
    f'{flops / images_per_device / 1e9:.1f}',
    f'{planned_mb(compiled):.0f}',
    transfers or '—',
  ]
  print(*row, flush=True)
  return row


def detector_rows(name: str, mesh: meshes.Mesh, batch: int) -> list[list[Any]]:
  """Compile the functions of one detector and return their table rows."""
  config = settings.load(name)
  spec = RunContext(
    _IMAGE_SIZE,
    _IMAGE_SIZE,
    _NUM_IMAGES,
    shards=meshes.shards(mesh),
    max_extra_images_per_shard=batch // mesh.size,
  )
  backbone, detector = model_dir.build_detector(config, spec)
  variables = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, _IMAGE_SIZE, _IMAGE_SIZE, 3)))
  state = loop.initial_state(detector, variables, 0, mesh)
  images = np.zeros((batch, _IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8)
  index = np.arange(batch, dtype=np.int32)
  sharded_batch = meshes.shard_batch(mesh, Batch(images, np.ones(batch, bool), index))
  images_per_device, table_rows = batch // mesh.size, []
  if detector.leave_one_out:
    embed, extractor = detector.leave_one_out.embed, meshes.replicate(mesh, state.extractor, True)
    table_rows.append(
      program_row(f'{name}: features', embed, (extractor, sharded_batch), images_per_device)
    )
    features = meshes.shard_batch(mesh, jax.jit(embed)(extractor, sharded_batch))
    feature_batch = sharded_batch._replace(image=sharded_batch.image[:, :0, :0], features=features)
    table_rows.append(
      program_row(f'{name}: update', detector.update, (state, feature_batch), images_per_device)
    )
  else:
    table_rows.append(
      program_row(
        f'{name}: training step', detector.update, (state, sharded_batch), images_per_device
      )
    )
  fitted, images = _make_fitted(detector, state, mesh), sharded_batch.image
  return [
    *table_rows,
    program_row(f'{name}: score', detector.score, (fitted, images), images_per_device),
  ]


def _make_fitted(detector: Detector, state: Any, mesh: meshes.Mesh) -> Any:
  """Return the fitted arrays; PatchCore gets a random memory bank instead of a selected one."""
  if not hasattr(state, 'memory_bank'):
    return detector.finalize(state)
  rows = jax.random.normal(
    jax.random.key(0), (_NUM_BANK_ROWS, state.memory_bank.patches.embeddings.shape[-1])
  )
  index = neighbors.pad_index(neighbors.build_index(rows), mesh.size)
  sharding_specs = detector.sharding_specs
  assert sharding_specs is not None
  return meshes.put_on_mesh(
    mesh,
    sharding_specs.fitted._replace(backbone=state.extractor, memory_bank=index),
    sharding_specs.fitted,
  )


def main() -> None:
  """Compile all programs and print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--devices', type=int, default=8)
  parser.add_argument('--batch', type=int, default=32)
  flags = parser.parse_args()
  mesh = meshes.mesh_of(jax.devices()[: flags.devices])
  table_rows = [
    row
    for name in ('padim', 'patchcore', 'stfpm')
    for row in detector_rows(name, mesh, flags.batch)
  ]
  titles = ['', 'GFLOP per image', 'MB planned per device', 'received per device']
  print('\n' + tables.markdown_table(titles, table_rows))
  print(
    f'\nBatches of {flags.batch} on {flags.devices} devices; {subprocess_runs.describe_machine()}.'
  )


if __name__ == '__main__':
  main()
