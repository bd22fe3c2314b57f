"""Milliseconds per call of exported graphs, PyTorch modules and OpenVINO exports of anomalib.

  python experiments/inference_speed.py --anomalib_python PEER/bin/python padim=RUN/model \
    patchcore=RUN/model patchcore@large=RUN/model stfpm=RUN/model

A model is named by its detector; a text after an @ tells models of one detector apart.
Systems alternate over several rounds, each in a separate process, all in float32 on as many threads
as there are cores. Images are decoded and have network size. uadjax computes from bytes to map and
score; anomalib computes from normalized floats, without its pre- and post-processing. Its PatchCore
has as many memory bank rows as ours. Its arrays are random, which does not change the time. Its
environment needs anomalib and openvino.
"""

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

_BATCHES = 1, 8
NUM_CALLS, _MIN_CALLS, _MAX_SECONDS = 25, 5, 10.0
_UADJAX_RUNTIMES = 'jax', 'onnxruntime', 'openvino'
_ANOMALIB_RUNTIMES = 'torch', 'openvino'


def median_milliseconds(call: Any, num_calls: int = NUM_CALLS) -> float:
  """Return the median milliseconds of a call, without the first fifth of the calls.

  Slow calls are fewer than `num_calls`: as many as start within ten seconds, but at least five.
  """
  seconds, end_time = [], time.perf_counter() + _MAX_SECONDS
  while len(seconds) < num_calls:
    start_time = time.perf_counter()
    if start_time > end_time and len(seconds) >= _MIN_CALLS:
      break
    call()
    seconds.append(time.perf_counter() - start_time)
  warm_seconds = sorted(seconds[len(seconds) // 5 :])
  return 1e3 * warm_seconds[len(warm_seconds) // 2]


def time_uadjax(system: str, directory: Path) -> dict[int, float]:
  """Return the milliseconds of a uadjax model by batch size."""
  import jax
  import numpy as np

  from uadjax.export import cached_graph, runtimes
  from uadjax.model import model_dir

  if system == 'jax':
    model = model_dir.load(directory)
    ops = model.ops
    score_images: Any = lambda images: jax.device_get(model.score(model.fitted, images))  # noqa: E731
  else:
    info = model_dir.read_info(directory)
    score_images = runtimes.open_graph(cached_graph.get_or_export(info), system).run
    ops = info.ops
  rng = np.random.default_rng(0)
  shape = ops.height, ops.width, 3
  images = {n: rng.integers(0, 256, (n, *shape), np.uint8) for n in _BATCHES}
  return {n: median_milliseconds(lambda n=n: score_images(images[n])) for n in _BATCHES}


def time_anomalib(system: str, detector: str, rows: int) -> dict[int, float]:
  """Return the milliseconds of an anomalib model by batch size; runs in its environment."""
  import logging
  import warnings

  warnings.filterwarnings('ignore')
  logging.disable(logging.INFO)
  import timm  # pyright: ignore[reportMissingImports]
  import torch  # pyright: ignore[reportMissingImports]

  create_timm_model = timm.create_model  # Replaced to avoid downloads.
  timm.create_model = lambda *args, **kwargs: create_timm_model(
    *args, **{**kwargs, 'pretrained': False}
  )
  from anomalib import models  # pyright: ignore[reportMissingImports]

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  stages = ['layer1', 'layer2', 'layer3']
  if detector == 'patchcore':
    model = models.Patchcore('resnet18', stages[1:], pre_trained=False)
    model.model.memory_bank = torch.rand(rows, 384)
  elif detector == 'padim':
    model = models.Padim('resnet18', stages, pre_trained=False, n_features=100)
    model.model.gaussian.mean = torch.rand(100, 64 * 64)
    model.model.gaussian.inv_covariance = torch.rand(64 * 64, 100, 100)
  else:
    model = models.Stfpm('resnet18', stages)
  module, milliseconds = model.model.eval(), {}
  for n in _BATCHES:
    images = torch.rand(n, 3, 256, 256)
    if system == 'torch':
      with torch.inference_mode():
        milliseconds[n] = median_milliseconds(lambda images=images: module(images))
      continue
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / 'module.onnx'
      torch.onnx.export(module, (images,), path, input_names=['x'], opset_version=17, dynamo=False)
      config = {
        'INFERENCE_PRECISION_HINT': 'f32',
        'INFERENCE_NUM_THREADS': len(os.sched_getaffinity(0)),
      }
      request = openvino.compile_model(path, 'CPU', config).create_infer_request()
    milliseconds[n] = median_milliseconds(
      lambda images=images, request=request: request.infer({'x': images.numpy()})
    )
  return milliseconds


def matmul_gflops() -> float:
  """Return the GFLOP/s of a large float32 matrix product, timed in the same way."""
  import numpy as np

  a = np.random.default_rng(0).random((1536, 1536), np.float32)
  return 2 * 1536**3 / median_milliseconds(lambda: a @ a) / 1e6


def main() -> None:
  """Print the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('models', nargs='*', metavar='DETECTOR=DIR')
  parser.add_argument(
    '--anomalib_python', metavar='PYTHON', help='Python of the environment with anomalib'
  )
  parser.add_argument('--rounds', type=int, default=3)
  # Separate processes are started with this flag.
  parser.add_argument('--measure', nargs=4, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.measure:
    library, system, detector, argument = flags.measure
    if library == 'matmul':
      print(json.dumps({0: matmul_gflops()}))
    elif library == 'uadjax':
      print(json.dumps(time_uadjax(system, Path(argument))))
    else:
      print(json.dumps(time_anomalib(system, detector.partition('@')[0], int(argument))))
    return

  import subprocess_runs

  from uadjax.model import model_dir
  from uadjax.sweep import tables

  models = {name: Path(path) for name, _, path in (text.partition('=') for text in flags.models)}
  jobs = []
  for name, directory in models.items():
    rows = 0
    if name.startswith('patchcore'):
      rows = len(model_dir.load(directory).fitted.memory_bank.rows)
      print(f'PatchCore has {rows} rows.', file=sys.stderr)
    jobs += [
      (sys.executable, 'uadjax', system, name, str(directory)) for system in _UADJAX_RUNTIMES
    ]
    if flags.anomalib_python:
      jobs += [
        (flags.anomalib_python, 'anomalib', system, name, str(rows))
        for system in _ANOMALIB_RUNTIMES
      ]
  jobs.append((sys.executable, 'matmul', 'numpy', '', ''))
  times: dict[tuple[str, ...], list[dict[str, float]]] = {job[1:4]: [] for job in jobs}
  for round_index in range(flags.rounds):
    for python, *job in jobs:
      command = [python, __file__, '--measure', *job]
      process = subprocess.run(command, capture_output=True, text=True)
      output = process.stdout.strip().rpartition('\n')[2]
      if process.returncode:
        print(job, process.stderr.strip().rpartition('\n')[2], file=sys.stderr)
        continue
      times[tuple(job[:3])].append(json.loads(output))
      print(round_index + 1, job[:3], output, file=sys.stderr, flush=True)
  gflops = [record['0'] for record in times.pop(('matmul', 'numpy', ''))]
  table = []
  for (library, system, name), records in times.items():
    cells = [
      tables.format_cell(tables.center_and_range([record[str(n)] for record in records]), 1)
      for n in _BATCHES
      if records
    ]
    table.append([name, f'{library}, {system}', *cells])
  print(tables.markdown_table(['', 'runs on', *(f'batch {n}' for n in _BATCHES)], table))
  print(
    f'\nMilliseconds per call: median (range) over {flags.rounds} processes of the median of up '
    f'to {NUM_CALLS} calls. A matrix product reaches '
    f'{tables.format_cell(tables.center_and_range(gflops), 0)} GFLOP/s. '
    f'{subprocess_runs.describe_machine()}.'
  )


if __name__ == '__main__':
  main()
