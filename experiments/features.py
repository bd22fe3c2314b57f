"""Milliseconds per image in the backbone, with one CPU device and with one device per core.

  python experiments/features.py

ResNet-18 up to layer3 at 256x256 pixels with random weights, batches of 16, inference. Settings
alternate, each in a separate process. The rate of a plain matrix product in the same process shows
the speed of the machine at that moment.
"""

import argparse
import os
import subprocess
import sys
import time

import jax
from jax import numpy as jnp
import numpy as np

from uadjax import backbones
from uadjax.distributed import mesh as meshes

_BATCH = 16


def min_seconds(call, repeats: int = 5) -> float:
  """Return the seconds of the fastest call; the first call, which compiles, is excluded."""
  jax.block_until_ready(call())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def measure() -> None:
  """Measure with the devices of this process and print a line."""
  mesh = meshes.make_mesh('cpu', -1, _BATCH)
  backbone = backbones.build('resnet18', ('layer2', 'layer3'))
  variables = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
  variables = meshes.replicate(mesh, variables)
  images = np.random.default_rng(0).integers(0, 256, (_BATCH, 256, 256, 3), np.uint8)
  images = meshes.shard_batch(mesh, images)
  extract_features = jax.jit(lambda v, x: backbone.apply(v, backbones.normalize(x)))
  a, b = jnp.ones((256, 384)), jnp.ones((4096, 384))
  product = jax.jit(lambda a, b: [a @ (b + i).T for i in range(20)])
  flops_per_s = 20 * 2 * 256 * 4096 * 384 / min_seconds(lambda: product(a, b))
  seconds_per_image = min_seconds(lambda: extract_features(variables, images)) / _BATCH
  print(
    f'{mesh.size} devices: {1e3 * seconds_per_image:.1f} ms per image; '
    f'product {flops_per_s / 1e9:.0f} GFLOP/s'
  )


def main() -> None:
  """Measure alternating settings, each in a separate process."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--in_process', action='store_true', help='measure in this process')
  flags = parser.parse_args()
  if flags.in_process:
    measure()
    return
  for _ in range(flags.rounds):
    for num_devices in (1, os.cpu_count() or 1):
      environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(num_devices)}
      subprocess.run([sys.executable, __file__, '--in_process'], env=environment, check=True)


if __name__ == '__main__':
  main()
