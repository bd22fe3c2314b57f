"""Cost of a sharded memory bank per device: memory, seconds and bytes between devices.

  python experiments/shards.py
  python experiments/shards.py --rows=214016 --devices=1 --share=0.1   # for example on a GPU

A coreset is selected from n random patches of 384 dimensions, and the patches of 8 images search
for their nearest neighbor in n rows. Both run on 1, 2, 4 and 8 devices. On a CPU these are
simulated: they share its cores and its memory, so seconds show what sharding costs, not what it
gains. Megabytes are what XLA plans per device: its shard of inputs and outputs, and temporary
memory. Bytes between devices are those of the collectives in the compiled program that each device
receives; for a selection, per pass, of which it makes many.

Figures are medians (range) over three rounds. The table is printed, and drawn as shards.png.
"""

import argparse
from collections.abc import Callable, Sequence
import functools
import math
import os
from pathlib import Path
import re
import time
from typing import Any, NamedTuple

os.environ.setdefault('JAX_NUM_CPU_DEVICES', '8')

import jax
from jax import numpy as jnp
from jax.sharding import PartitionSpec as P
from matplotlib import figure, ticker
import numpy as np
import subprocess_runs

from uadjax.distributed import mesh as meshes
from uadjax.numerics import coreset, neighbors
from uadjax.sweep import tables

_DIM, _NUM_QUERIES = 384, 8 * 1024
_TYPE_BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'pred': 1, 'u8': 1, 'bf16': 2}
_COLLECTIVE = re.compile(r' (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')


class Cost(NamedTuple):
  """Cost of one function on a number of devices.

  Attributes:
    seconds: seconds of each round.
    megabytes: MB that XLA plans per device.
    collective_bytes: bytes that a device receives, by kind of collective, in one execution.
  """

  seconds: Sequence[float]
  megabytes: float
  collective_bytes: dict[str, int]


def collective_bytes(compiled: Any) -> dict[str, int]:
  """Return the bytes that each device receives in the collectives of a program, by kind."""
  bytes_by_kind: dict[str, int] = {}
  for line in compiled.as_text().splitlines():
    result = line.partition(' = ')[2]
    if match := _COLLECTIVE.search(result):
      size = sum(
        _TYPE_BYTES.get(kind, 4) * math.prod(int(n) for n in shape.split(',') if n)
        for kind, shape in _SHAPE.findall(result[: match.start()])
      )
      bytes_by_kind[match[1]] = bytes_by_kind.get(match[1], 0) + size
  return bytes_by_kind


def planned_mb(compiled: Any) -> float:
  """Return the MB that XLA plans per device."""
  analysis = compiled.memory_analysis()
  total_bytes = (
    analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
  )
  return (total_bytes - analysis.alias_size_in_bytes) / 2**20


def measure(compiled: Any, make_arguments: Callable[[], Sequence[Any]], rounds: int) -> Cost:
  """Time a compiled function; arguments are made anew for each call, as it may donate them."""
  seconds = []
  for _ in range(rounds):
    arguments = jax.block_until_ready(make_arguments())
    start_time = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - start_time)
  return Cost(seconds, planned_mb(compiled), collective_bytes(compiled))


def random_points(mesh: meshes.Mesh, n: int) -> jax.Array:
  """Return random patches in a few thousand clusters, sharded over the mesh."""
  sharding = meshes.batch_sharding(mesh)

  @functools.partial(jax.jit, out_shardings=sharding)
  def generate() -> jax.Array:
    key, cluster_key, noise_key = jax.random.split(jax.random.key(0), 3)
    cluster_centers = jax.random.normal(key, (4096, _DIM))
    cluster_ids = jax.random.randint(cluster_key, (n,), 0, 4096)
    return cluster_centers[cluster_ids] + 0.5 * jax.random.normal(noise_key, (n, _DIM))

  return generate()


def measure_selection(mesh: meshes.Mesh, n: int, share: float, rounds: int) -> Cost:
  """Measure the selection of a share of n patches."""
  shards, num_centers = meshes.shards(mesh), round(share * n)
  x, sharding = random_points(mesh, n), meshes.batch_sharding(mesh)
  point_ids = jax.device_put(np.arange(n, dtype=np.int32), sharding)
  valid = jax.device_put(np.ones(n, bool), sharding)
  center_and_sketch = shards.shard_map(
    coreset.center_and_sketch, (P('data'),) * 3, coreset.CENTER_AND_SKETCH_SPECS
  )
  center, sketch = jax.jit(center_and_sketch)(x, valid, point_ids)
  point_set = coreset.PointSet(x, point_ids, center, sketch)
  init_selection = functools.partial(coreset.init, max_centers=num_centers)
  init = jax.jit(
    shards.shard_map(init_selection, (P(), P('data'), P('data')), coreset.SELECTION_SPECS)
  )
  select = jax.jit(
    shards.shard_map(
      coreset.select_until,
      (coreset.POINT_SET_SPECS, coreset.SELECTION_SPECS, P()),
      coreset.SELECTION_SPECS,
    ),
    donate_argnums=1,
  )

  def make_arguments() -> Sequence[Any]:
    return point_set, init(jax.random.key(0), valid, point_ids), jnp.int32(num_centers)

  return measure(select.lower(*make_arguments()).compile(), make_arguments, rounds)


def measure_search(mesh: meshes.Mesh, n: int, share: float, rounds: int) -> Cost:
  """Measure the search for the nearest of n rows for the patches of eight images."""
  del share
  shards = meshes.shards(mesh)
  index = neighbors.pad_index(
    neighbors.build_index(random_points(meshes.single_device_mesh(mesh), n)), mesh.size
  )
  index = meshes.put_on_mesh(mesh, index, neighbors.INDEX_SPECS)
  queries = random_points(mesh, _NUM_QUERIES)

  def find_nearest(index: neighbors.Index, x: jax.Array, axis: str | None) -> neighbors.Neighbors:
    return neighbors.nearest_sharded(x, index, 1, False, axis)

  search = jax.jit(shards.shard_map(find_nearest, (neighbors.INDEX_SPECS, P('data')), P('data')))
  return measure(search.lower(index, queries).compile(), lambda: (index, queries), rounds)


OPERATIONS = {'selection': measure_selection, 'search': measure_search}


def draw(costs: dict[tuple[str, int, int], Cost], path: Path) -> None:
  """Draw memory per device and seconds over the rows, a line for each number of devices."""
  fig = figure.Figure(figsize=(9, 7), layout='constrained')
  panels = fig.subplots(2, 2)
  device_counts = sorted({devices for _, _, devices in costs})
  rows = sorted({n for _, n, _ in costs})
  for panel_row, operation in zip(panels, OPERATIONS, strict=True):
    for devices in device_counts:
      device_costs = [costs[operation, n, devices] for n in rows]
      label = f'{devices} device{"s" if devices > 1 else ""}'
      panel_row[0].plot(rows, [cost.megabytes for cost in device_costs], 'o-', label=label)
      panel_row[1].plot(rows, [np.median(cost.seconds) for cost in device_costs], 'o-', label=label)
    panel_row[0].set(title=f'{operation}: MB per device')
    panel_row[1].set(title=f'{operation}: seconds')
    for panel in panel_row:
      panel.set(xscale='log', yscale='log', xlabel='rows')
      panel.set_xticks(rows, [f'{n:,}' for n in rows])
      # Plain numbers, even if the axis contains no power of ten.
      panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      panel.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
      panel.minorticks_off()
      panel.grid(alpha=0.3)
  panels[0][0].legend()
  fig.savefig(path, dpi=110)


def main() -> None:
  """Measure, print the table and draw the plot."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', default='12800,25600,51200,102400')
  parser.add_argument('--devices', default='1,2,4,8')
  parser.add_argument('--share', type=float, default=0.01)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--plot', type=Path, default=Path(__file__).with_suffix('.png'))
  flags = parser.parse_args()
  sizes, device_counts = ([int(n) for n in text.split(',')] for text in (flags.rows, flags.devices))
  costs, rows = {}, []
  for operation, measure_cost in OPERATIONS.items():
    for n in sizes:
      for devices in device_counts:
        mesh = meshes.mesh_of(jax.devices()[:devices])
        cost = costs[operation, n, devices] = measure_cost(mesh, n, flags.share, flags.rounds)
        transfers = ', '.join(
          f'{k} {v / 1e6:.3g} MB' for k, v in sorted(cost.collective_bytes.items())
        )
        seconds = tables.format_cell(tables.center_and_range(cost.seconds), 2)
        rows.append([operation, n, devices, f'{cost.megabytes:.0f}', seconds, transfers or '—'])
        print(*rows[-1], flush=True)
  titles = ['operation', 'rows', 'devices', 'MB per device', 's', 'received per device']
  print('\n' + tables.markdown_table(titles, rows))
  print(f'\n{jax.devices()[0].device_kind}; {subprocess_runs.describe_machine()}.')
  draw(costs, flags.plot)


if __name__ == '__main__':
  main()
