"""Time of an STFPM update with XLA's or our gradients, and with or without retained pages.

  python experiments/cpu_step.py

The four settings alternate, each in a separate process. An update covers ResNet-18's layer1-3 on 32
images of 256x256 pixels, with cached teacher features. Gradients are XLA's or those of
`backbones/convolution.py`. glibc runs with its defaults or retains freed pages (`system.memory`).
Weights and images are random, which does not change the time.
"""

import argparse
import statistics
import subprocess
import sys
import time

import jax
from jax import numpy as jnp
import numpy as np

from uadjax import backbones
from uadjax.backbones import convolution
from uadjax.detectors import stfpm
from uadjax.detectors.base import RunContext
from uadjax.detectors.settings import StfpmSettings
from uadjax.system import memory
from uadjax.types import Batch


def measure_update_seconds(gradients: str, page_policy: str, num_updates: int = 5) -> float:
  """Return the median seconds per update in this process."""
  if page_policy == 'retained':
    memory.retain_freed_pages()
  if gradients == 'xla':
    convolution.conv_custom_grad, convolution.max_pool_custom_grad = (
      convolution.conv,
      convolution.max_pool,
    )
  backbone = backbones.build('resnet18', ('layer1', 'layer2', 'layer3'))
  context = RunContext(256, 256, 32, learning_rate=lambda step: 0.4)
  detector = stfpm.make(backbone, context, StfpmSettings())
  variables = jax.jit(backbone.init)(jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
  state = detector.init(jax.random.key(1), variables)
  images = np.random.default_rng(0).integers(0, 256, (32, 256, 256, 3), np.uint8)
  batch = Batch(images, np.ones(32, bool), np.arange(32, dtype=np.int32))
  assert detector.precompute is not None
  batch = batch._replace(features=jax.block_until_ready(jax.jit(detector.precompute)(state, batch)))
  update = jax.jit(detector.update)
  times = []
  for _ in range(num_updates + 1):  # The first update compiles.
    start_time = time.perf_counter()
    state, _ = jax.block_until_ready(update(state, batch))
    times.append(time.perf_counter() - start_time)
  return statistics.median(times[1:])


def main() -> None:
  """Print a table, or with two arguments the seconds of one setting."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    'setting', nargs='*', help='xla|uadjax as_is|retained: measure in this process'
  )
  parser.add_argument('--rounds', type=int, default=2)
  flags = parser.parse_args()
  if flags.setting:
    print(measure_update_seconds(*flags.setting))
    return
  settings = [
    (gradients, page_policy)
    for gradients in ('xla', 'uadjax')
    for page_policy in ('as_is', 'retained')
  ]
  durations_by_setting: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
  for _ in range(flags.rounds):
    for setting in settings:
      command = [sys.executable, __file__, *setting]
      process = subprocess.run(command, check=True, capture_output=True, text=True)
      durations_by_setting[setting].append(float(process.stdout))
  for (gradients, page_policy), times in durations_by_setting.items():
    print(
      f'{gradients:>6} gradients, pages {page_policy:>8}: ' + '  '.join(f'{t:.2f} s' for t in times)
    )


if __name__ == '__main__':
  main()
