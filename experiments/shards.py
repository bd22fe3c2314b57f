"""What a bank that is split costs each device: memory, seconds and bytes between devices.

  python experiments/shards.py
  python experiments/shards.py --rows=214016 --devices=1 --share=0.1   # on a GPU, say

A coreset is selected from n random patches of 384 dimensions, a share of them, and patches of 8
images look for their nearest in a bank of n rows; on 1, 2, 4 and 8 devices, which on a CPU are
simulated: they share its cores and its memory, so that seconds tell what splitting costs and
nothing of what it gains. Megabytes are what XLA plans for each device: its part of what goes in and
comes out, and what is needed between. Bytes between devices are those of the collectives in the
compiled program, what each device receives; of a selection for each pass, of which it makes many.

The medians of three rounds (range); the tables are printed, and drawn as shards.png.
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

import fresh
import jax
from jax import numpy as jnp
from matplotlib import figure, ticker
import numpy as np

from uadjax.distributed import mesh as meshes
from uadjax.numerics import coreset, neighbors
from uadjax.sweep import tables

_DIM, _QUERIES = 384, 8 * 1024
_TYPES = {'f32': 4, 's32': 4, 'u32': 4, 'pred': 1, 'u8': 1, 'bf16': 2}
_MOVED = re.compile(r' (all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(')
_SHAPE = re.compile(r'(\w+)\[([\d,]*)\]')


class Cost(NamedTuple):
  """Of one function on some devices.

  Attributes:
    seconds: of each round.
    megabytes: that XLA plans for each device.
    moved: bytes by kind of collective, in the program once.
  """

  seconds: Sequence[float]
  megabytes: float
  moved: dict[str, int]


def moved(compiled: Any) -> dict[str, int]:
  """Bytes that each device receives in every collective of a program, by kind."""
  found: dict[str, int] = {}
  for line in compiled.as_text().splitlines():
    result = line.partition(' = ')[2]
    if match := _MOVED.search(result):
      size = sum(
        _TYPES.get(kind, 4) * math.prod(int(n) for n in shape.split(',') if n)
        for kind, shape in _SHAPE.findall(result[: match.start()])
      )
      found[match[1]] = found.get(match[1], 0) + size
  return found


def planned_mb(compiled: Any) -> float:
  """What XLA plans for one device."""
  found = compiled.memory_analysis()
  inside = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
  return (inside - found.alias_size_in_bytes) / 2**20


def measured(compiled: Any, given: Callable[[], Sequence[Any]], rounds: int) -> Cost:
  """Call it; what is given is made anew each time, for it may be donated."""
  seconds = []
  for _ in range(rounds):
    arguments = jax.block_until_ready(given())
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds.append(time.perf_counter() - began)
  return Cost(seconds, planned_mb(compiled), moved(compiled))


def points(mesh: meshes.Mesh, n: int) -> jax.Array:
  """Random patches in a few thousand clusters, on their devices."""
  where = meshes.batch_sharding(mesh)

  @functools.partial(jax.jit, out_shardings=where)
  def made() -> jax.Array:
    key, other, near = jax.random.split(jax.random.key(0), 3)
    centers = jax.random.normal(key, (4096, _DIM))
    chosen = jax.random.randint(other, (n,), 0, 4096)
    return centers[chosen] + 0.5 * jax.random.normal(near, (n, _DIM))

  return made()


def selection(mesh: meshes.Mesh, n: int, share: float, rounds: int) -> Cost:
  """Select a share of n patches."""
  over, count = meshes.shards(mesh), round(share * n)
  x, where = points(mesh, n), meshes.batch_sharding(mesh)
  number = jax.device_put(np.arange(n, dtype=np.int32), where)
  valid = jax.device_put(np.ones(n, bool), where)
  cloud = jax.jit(
    over.shard_map(coreset.make_point_set, (True, True, True), coreset.POINT_SET_SPECS)
  )(x, valid, number)
  first = functools.partial(coreset.init, centers=count)
  begin = jax.jit(over.shard_map(first, (False, True, True), coreset.SELECTION_SPECS))
  advance = jax.jit(
    over.shard_map(
      coreset.select_until,
      (coreset.POINT_SET_SPECS, coreset.SELECTION_SPECS, False),
      coreset.SELECTION_SPECS,
    ),
    donate_argnums=1,
  )

  def given() -> Sequence[Any]:
    return cloud, begin(jax.random.key(0), valid, number), jnp.int32(count)

  return measured(advance.lower(*given()).compile(), given, rounds)


def search(mesh: meshes.Mesh, n: int, share: float, rounds: int) -> Cost:
  """Find the nearest of n rows for the patches of eight images."""
  del share
  over = meshes.shards(mesh)
  index = neighbors.pad_index(
    neighbors.build_index(points(meshes.single_device_mesh(mesh), n)), mesh.size
  )
  index = meshes.put_on_mesh(mesh, index, neighbors.INDEX_SPECS)
  queries = points(mesh, _QUERIES)

  def nearest(index: neighbors.Index, x: jax.Array, axis: str | None) -> neighbors.Neighbors:
    return neighbors.nearest_sharded(x, index, 1, False, axis)

  found = jax.jit(over.shard_map(nearest, (neighbors.INDEX_SPECS, True), True))
  return measured(found.lower(index, queries).compile(), lambda: (index, queries), rounds)


WORK = {'selection': selection, 'search': search}


def draw(costs: dict[tuple[str, int, int], Cost], path: Path) -> None:
  """Memory of a device and seconds over the rows, a line for each number of devices."""
  canvas = figure.Figure(figsize=(9, 7), layout='constrained')
  panels = canvas.subplots(2, 2)
  numbers = sorted({devices for _, _, devices in costs})
  rows = sorted({n for _, n, _ in costs})
  for line, work in zip(panels, WORK, strict=True):
    for devices in numbers:
      own = [costs[work, n, devices] for n in rows]
      name = f'{devices} device{"s" if devices > 1 else ""}'
      line[0].plot(rows, [cost.megabytes for cost in own], 'o-', label=name)
      line[1].plot(rows, [np.median(cost.seconds) for cost in own], 'o-', label=name)
    line[0].set(title=f'{work}: MB of each device')
    line[1].set(title=f'{work}: seconds')
    for panel in line:
      panel.set(xscale='log', yscale='log', xlabel='rows')
      panel.set_xticks(rows, [f'{n:,}' for n in rows])
      # Plain numbers, also where there is no power of ten in sight.
      panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      panel.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
      panel.minorticks_off()
      panel.grid(alpha=0.3)
  panels[0][0].legend()
  canvas.savefig(path, dpi=110)


def main() -> None:
  """Measure, print and draw."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rows', default='12800,25600,51200,102400')
  parser.add_argument('--devices', default='1,2,4,8')
  parser.add_argument('--share', type=float, default=0.01)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--plot', type=Path, default=Path(__file__).with_suffix('.png'))
  flags = parser.parse_args()
  sizes, numbers = ([int(n) for n in text.split(',')] for text in (flags.rows, flags.devices))
  costs, rows = {}, []
  for work, cost in WORK.items():
    for n in sizes:
      for devices in numbers:
        mesh = meshes.mesh_of(jax.devices()[:devices])
        found = costs[work, n, devices] = cost(mesh, n, flags.share, flags.rounds)
        between = ', '.join(f'{k} {v / 1e6:.3g} MB' for k, v in sorted(found.moved.items()))
        seconds = tables.format_cell(tables.center_and_range(found.seconds), 2)
        rows.append([work, n, devices, f'{found.megabytes:.0f}', seconds, between or '—'])
        print(*rows[-1], flush=True)
  titles = ['work', 'rows', 'devices', 'MB of each', 's', 'moved to each, once']
  print('\n' + tables.markdown_table(titles, rows))
  print(f'\n{jax.devices()[0].device_kind}; {fresh.machine()}.')
  draw(costs, flags.plot)


if __name__ == '__main__':
  main()
