"""Several processes as one run, on loopback: what they leave, and what is said when one is gone."""

import csv
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import numpy as safetensors

from uadjax import config, hosts
from uadjax.types import ConfigError

# Runs of several detectors by the same processes, which start but once.
PROGRAM = """
import json, sys
from uadjax import main
for flags in json.loads(sys.argv[1]):
  if main.main(flags):
    sys.exit(1)
"""
SMALL = [
  '--config.data.ops=resize(32, 48)',
  '--config.data.category=disc',
  '--config.detector.layers=layer1',
  '--config.backbone.weights=random',
  '--config.evaluate.save_pictures=0',
  '--config.hosts.wait_s=60',
  '--config.hosts.heartbeat_s=10',
]
UNJUDGED = '--config.evaluate.do_eval=false'
OWN = {
  'padim': ['--config.detector.channels=9'],
  'patchcore': ['--config.detector.ratio=0.1', UNJUDGED],
  'stfpm': ['--config.fit.steps=2', '--config.fit.batch_size=4', UNJUDGED],
}


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def started(count, runs):
  """So many processes, each with one device."""
  port, processes = free_port(), []
  for index in range(count):
    several = ['--config.hosts.coordinator=none']
    if count > 1:
      several = [
        f'--config.hosts.coordinator=127.0.0.1:{port}',
        f'--config.hosts.count={count}',
        f'--config.hosts.index={index}',
      ]
    told = json.dumps([[*flags, *SMALL, *several] for flags in runs])
    environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}
    command = [sys.executable, '-c', PROGRAM, told]
    processes.append(
      subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
      )
    )
  return processes


def ended(processes):
  """What each exited with and said."""
  try:
    said = [process.communicate(timeout=240)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def close(found, wanted, keys):
  for key in keys:
    a, b = ([float(row[key]) for row in rows] for rows in (found, wanted))
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.fixture(scope='module')
def runs(drawn, tmp_path_factory):
  """Gives the folder of a detector's run by so many processes; all detectors run together."""
  folder, done = tmp_path_factory.mktemp('runs'), set()

  def run(name, count):
    if count not in done:
      flags = [
        [f'--config={one}', f'--workdir={folder / f"{one}_{count}"}', *own]
        for one, own in OWN.items()
      ]
      root = f'--config.data.root={drawn}'
      for code, said in ended(started(count, [[*some, root] for some in flags])):
        assert code == 0, said
      done.add(count)
    return folder / f'{name}_{count}'

  return run


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('name', ['padim', 'patchcore'])
def test_any_number_of_processes_leaves_the_same_model(runs, name, count):
  one, many = runs(name, 1), runs(name, count)
  arrays, wanted = (
    safetensors.load_file(at / 'model' / 'fitted.safetensors') for at in (many, one)
  )
  assert arrays.keys() == wanted.keys()
  for key, value in wanted.items():
    if name == 'patchcore':  # The very same picks.
      np.testing.assert_array_equal(arrays[key], value)
    else:
      np.testing.assert_allclose(arrays[key], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
  close(*(rows(at / 'model' / 'calibration.csv') for at in (many, one)), ('score', 'peak'))


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_verdicts_and_metrics_are_the_same(runs, count):
  one, many = runs('padim', 1), runs('padim', count)
  found, expected = (rows(at / 'scores.csv') for at in (many, one))
  close(found, expected, ['score'])
  assert [row['label'] for row in found] == [row['label'] for row in expected]
  metrics, told = (
    config.flat(json.loads((at / 'evaluate_result.json').read_text())['metrics'])
    for at in (many, one)
  )
  assert metrics.keys() == told.keys()
  for key, value in told.items():
    number = isinstance(value, float)
    assert metrics[key] == (pytest.approx(value, rel=1e-4) if number else value), key


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_two_steps_of_stfpm_by_several_processes_are_those_of_one(runs, count):
  arrays, wanted = (
    safetensors.load_file(runs('stfpm', n) / 'model' / 'fitted.safetensors') for n in (count, 1)
  )
  for key, value in wanted.items():
    np.testing.assert_allclose(arrays[key], value, rtol=1e-3, atol=2e-5, err_msg=key)


@pytest.mark.slow
def test_only_the_first_process_writes(runs):
  for name in OWN:
    left = {path.name for path in runs(name, 2).iterdir()}
    assert left == {path.name for path in runs(name, 1).iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize('count', [3, 4])
def test_when_one_is_killed_the_others_say_so_and_fewer_go_on(count, drawn, tmp_path):
  flags = [f'--workdir={tmp_path / "run"}', f'--config.data.root={drawn}', '--config=stfpm']
  flags += [
    f'--config.fit.batch_size={count * (count - 1)}',
    '--config.fit.checkpoint_every_s=1',
    UNJUDGED,
  ]
  processes = started(count, [[*flags, '--config.fit.steps=100000']])
  saved = tmp_path / 'run' / 'checkpoints' / 'rolling'
  end = time.monotonic() + 120
  while not (saved.is_dir() and any(path.name.isdigit() for path in saved.iterdir())):
    assert time.monotonic() < end
    assert all(process.poll() is None for process in processes)
    time.sleep(0.1)
  processes[1].kill()
  (_, told), _, *others = ended(processes)
  for code, said in ((1, told), *others):
    assert code == 1
    assert 'Lost: A process of this run is gone' in said
    assert 'Traceback' not in said
  result = json.loads((tmp_path / 'run' / 'train_result.json').read_text())
  assert result['err_type'] == 'Lost'
  step = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
  more = ['--config.fit.resume=latest', f'--config.fit.steps={step + 2}']
  for code, said in ended(started(count - 1, [[*flags, *more]])):
    assert code == 0, said
    assert f'Going on from step {step}' in said


@pytest.mark.parametrize(('count', 'index'), [(0, -1), (2, 2), (2, -1)])
def test_a_coordinator_without_the_rest_is_refused(count, index):
  options = config.base().hosts
  options.update({'coordinator': '127.0.0.1:1', 'count': count, 'index': index})
  with pytest.raises(ConfigError, match=f'got {count}.*got {index}'):
    hosts.join(options)


def test_other_errors_are_left_as_they_are():
  error = ValueError('closed by peer')
  assert hosts.told(error) is error  # Of one process alone.
