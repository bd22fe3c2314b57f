"""Several processes as one run, on loopback: what they leave, and what is said when one is gone."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import small_runs

from uadjax import config
from uadjax.data import demo
from uadjax.distributed import processes
from uadjax.distributed.settings import HostSettings
from uadjax.errors import ConfigError

SMALL = [
  '--config.data.ops=resize(32, 48)',
  '--config.data.category=disc',
  '--config.detector.layers=layer1',
  '--config.backbone.weights=embedded',
  '--config.evaluate.save_pictures=0',
  '--config.hosts.wait_s=240',
  '--config.hosts.heartbeat_s=30',
]
UNJUDGED = '--config.evaluate.do_eval=false'
DETECTOR_FLAGS = {
  'padim': ['--config.detector.channels=9'],
  'patchcore': ['--config.detector.ratio=0.1', UNJUDGED],
  'subspace': [UNJUDGED],
  'stfpm': ['--config.fit.steps=2', '--config.fit.batch_size=4', UNJUDGED],
}


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def started(count, flags):
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
    environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}
    command = [sys.executable, '-m', 'uadjax.main', *flags, *SMALL, *several]
    processes.append(
      subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
      )
    )
  return processes


def ended(processes):
  """Exit status and output of each process."""
  try:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def close(actual, expected, keys):
  for key in keys:
    a, b = ([float(row[key]) for row in rows] for rows in (actual, expected))
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.fixture(scope='module')
def runs(drawn, tmp_path_factory):
  """Gives the folder of a detector's run by so many processes."""
  folder, done = tmp_path_factory.mktemp('runs'), set()

  def run(name, count):
    workdir = folder / f'{name}_{count}'
    if workdir not in done:
      where = f'--config={name}', f'--workdir={workdir}', f'--config.data.root={drawn}'
      for code, output in ended(started(count, [*where, *DETECTOR_FLAGS[name]])):
        assert code == 0, output
      done.add(workdir)
    return workdir

  return run


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('name', ['padim', 'patchcore', 'subspace'])
def test_any_number_of_processes_leaves_the_same_model(runs, name, count):
  single, many = runs(name, 1), runs(name, count)
  arrays, expected = (
    safetensors.load_file(at / 'model' / 'fitted.safetensors') for at in (many, single)
  )
  assert arrays.keys() == expected.keys()
  for key, value in expected.items():
    if name == 'patchcore':  # The very same picks.
      np.testing.assert_array_equal(arrays[key], value)
      continue
    actual = arrays[key]
    if key == 'subspace/complement':  # Its rows may be turned.
      actual, value = actual.T @ actual, value.T @ value
    np.testing.assert_allclose(actual, value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
  close(*(rows(at / 'model' / 'calibration.csv') for at in (many, single)), ('score', 'peak'))


def numbered(value):
  """Lists become mappings from positions, so that `flatten` reaches every number in them."""
  if isinstance(value, list):
    value = {str(i): item for i, item in enumerate(value)}
  return {k: numbered(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_verdicts_and_metrics_are_the_same(runs, count):
  single, many = runs('padim', 1), runs('padim', count)
  actual, expected = (rows(at / 'scores.csv') for at in (many, single))
  close(actual, expected, ['score'])
  assert [row['label'] for row in actual] == [row['label'] for row in expected]
  metrics, expected_metrics = (
    config.flatten(numbered(json.loads((at / 'evaluate_result.json').read_text())['metrics']))
    for at in (many, single)
  )
  assert metrics.keys() == expected_metrics.keys()
  for key, value in expected_metrics.items():
    number = isinstance(value, float)
    assert metrics[key] == (pytest.approx(value, rel=1e-4) if number else value), key


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_two_steps_of_stfpm_by_several_processes_are_those_of_one(runs, count):
  arrays, expected = (
    safetensors.load_file(runs('stfpm', n) / 'model' / 'fitted.safetensors') for n in (count, 1)
  )
  for key, value in expected.items():
    np.testing.assert_allclose(arrays[key], value, rtol=1e-3, atol=2e-5, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['padim', 'patchcore', 'stfpm'])
def test_only_the_first_process_writes(runs, name):
  left = {path.name for path in runs(name, 2).iterdir()}
  assert left == {path.name for path in runs(name, 1).iterdir()}


def wait_for_checkpoint(folder, processes):
  """Wait until a run has saved a rolling checkpoint in a folder; else kill its processes."""
  end = time.monotonic() + 240
  try:
    while not (folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())):
      assert time.monotonic() < end
      assert all(process.poll() is None for process in processes)
      time.sleep(0.1)
  except BaseException:
    for process in processes:
      process.kill()
    raise


@pytest.mark.slow
@pytest.mark.parametrize(('stopped', 'number'), [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_gives_all_its_exit_status(stopped, number, drawn, tmp_path):
  flags = [f'--workdir={tmp_path}', f'--config.data.root={drawn}', '--config=stfpm', UNJUDGED]
  flags += ['--config.fit.checkpoint_every_s=1', '--config.fit.batch_size=4']
  processes = started(2, [*flags, '--config.fit.steps=100000'])
  wait_for_checkpoint(tmp_path / 'checkpoints' / 'rolling', processes)
  processes[stopped].send_signal(number)
  for code, output in ended(processes):
    assert code == 128 + number, output
    assert 'Resume with' in output
    assert 'Traceback' not in output


@pytest.mark.slow
@pytest.mark.parametrize('count', [3, 4])
def test_after_a_process_is_killed_the_others_report_it_and_fewer_resume(count, tmp_path):
  # Twelve images to learn from, which three processes share as evenly as four do.
  few = {'train': 15, 'test_good': 2, 'test_defect': 1, 'size': 60}
  root = demo.write_dataset(tmp_path / 'drawn', **few, **small_runs.DISCS)
  flags = [f'--workdir={tmp_path / "run"}', f'--config.data.root={root}', '--config=stfpm']
  flags += [
    f'--config.fit.batch_size={count * (count - 1)}',
    '--config.fit.checkpoint_every_s=1',
    UNJUDGED,
  ]
  processes = started(count, [*flags, '--config.fit.steps=100000'])
  saved = tmp_path / 'run' / 'checkpoints' / 'rolling'
  wait_for_checkpoint(saved, processes)
  processes[1].kill()
  (_, first_output), _, *others = ended(processes)
  for code, output in ((1, first_output), *others):
    assert code == 1, output
    assert 'ProcessLost: A process of this run ended or cannot be reached' in output
    assert 'Traceback' not in output
  result = json.loads((tmp_path / 'run' / 'train_result.json').read_text())
  assert result['err_type'] == 'ProcessLost'
  step = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
  more = ['--config.fit.resume=latest', f'--config.fit.steps={step + 2}']
  for code, output in ended(started(count - 1, [*flags, *more])):
    assert code == 0, output
    assert f'Resuming from step {step}' in output


@pytest.mark.parametrize(
  ('at', 'count', 'index'), [(':1', 0, -1), (':1', 2, 2), (':1', 2, -1), ('', 2, 0), (':x', 2, 0)]
)
def test_a_coordinator_without_the_rest_is_refused(at, count, index):
  options = HostSettings(f'127.0.0.1{at}', count, index)
  with pytest.raises(ConfigError, match=f'got {count}.*got {index}'):
    processes.join(options)


# As srun of SLURM 22.05 and mpirun of Open MPI 4.1 and 5.0 set them: the last of several processes.
SRUN = {
  'SLURM_JOB_ID': '70',
  'SLURM_STEP_ID': '0',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_NTASKS': '2',
  'SLURM_STEP_NUM_TASKS': '2',
  'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}
ONE_HOST = {'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURM_LOCALID': '1'}
UNEVEN = {
  'SLURM_STEP_NUM_TASKS': '5',
  'SLURM_STEP_TASKS_PER_NODE': '1,2(x2)',
  'SLURM_LOCALID': '1',
}
BATCH = {'SLURM_JOB_ID': '70', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'}
SINGLE_TASK = {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}
OF_MPI = 'OMPI_COMM_WORLD_'
MPIRUN_5 = {
  f'{OF_MPI}SIZE': '2',
  f'{OF_MPI}RANK': '1',
  f'{OF_MPI}LOCAL_SIZE': '2',
  f'{OF_MPI}LOCAL_RANK': '1',
}
MPIRUN = {**MPIRUN_5, 'OMPI_MCA_orte_hnp_uri': '1970208768.0;tcp://192.0.2.2:44263'}


@pytest.fixture
def joined(monkeypatch):
  """Gives what a process of an environment tells JAX; None of one that is alone."""

  def join(environment, **values):
    options, calls, environment = HostSettings(**values), [], dict(environment)
    with monkeypatch.context() as patch:
      patch.setattr(os, 'environ', environment)
      patch.setattr('jax.distributed.initialize', lambda **values: calls.append(values))
      processes.join(options)
    return {**calls[0], 'port': environment.get('JAX_COORDINATOR_PORT')} if calls else None

  return join


@pytest.mark.parametrize(
  ('environment', 'visible', 'expected'),
  [
    (SRUN, '0,1,2,3', []),  # One process of a host: all that it sees.
    (SRUN, None, []),
    (SRUN | ONE_HOST, '1', []),  # As --gpus-per-task=1 has it: the only one that it sees.
    (SRUN | ONE_HOST, '0,1,2,3', [1]),  # Both see all, and each takes one.
    (SRUN | ONE_HOST, None, [1]),
    (SRUN | UNEVEN, '0,1', [1]),
    (MPIRUN, None, [1]),
    (MPIRUN, '1', []),
  ],
)
def test_each_process_uses_its_own_gpus(joined, environment, visible, expected):
  gpus = {'CUDA_VISIBLE_DEVICES': visible} if visible else {}
  assert joined(environment | gpus)['local_device_ids'] == expected
  assert joined(environment | gpus | {'JAX_LOCAL_DEVICE_IDS': '0'})['local_device_ids'] is None


@pytest.mark.parametrize('environment', [SRUN, MPIRUN, MPIRUN_5])
def test_launchers_state_the_number_and_index_of_processes(joined, environment):
  call = joined(environment, coordinator='first:1234')
  names = 'coordinator_address', 'num_processes', 'process_id'
  assert [call[name] for name in names] == ['first:1234', 2, 1]
  call = joined(environment, coordinator='first:1234', count=3, index=0)
  assert [call[name] for name in names] == ['first:1234', 3, 0]


@pytest.mark.parametrize(
  'environment', [{}, BATCH, SRUN | SINGLE_TASK, MPIRUN | {f'{OF_MPI}SIZE': '1'}]
)
def test_a_single_process_joins_no_run(joined, environment):
  assert joined(environment) is None


def test_steps_of_a_job_do_not_share_a_port(joined):
  at = [joined(SRUN | {'SLURM_STEP_ID': str(step)})['port'] for step in range(100)]
  assert len(set(at)) == 100
  assert all(61440 <= int(port) <= 65535 for port in at)
  assert joined(SRUN | {'JAX_COORDINATOR_PORT': '1234'})['port'] == '1234'
  # Open MPI has one of its own; only some of its processes know of a step.
  assert joined(SRUN | MPIRUN)['port'] is None


def test_where_jax_finds_nothing_the_error_says_what_to_pass(joined):
  with pytest.raises(ConfigError, match=r'hosts\.coordinator=HOST:PORT'):
    joined(SRUN | MPIRUN_5)


def test_processes_that_do_not_connect_in_time_are_an_error():
  options = {'coordinator': f'127.0.0.1:{free_port()}', 'count': 2, 'index': 0, 'wait_s': 1}
  code = (
    'from uadjax.distributed import processes, settings; '
    f'processes.join(settings.HostSettings(**{options}))'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert run.returncode == 1
  assert run.stderr.startswith(
    'ProcessLost: The processes of this run did not connect within hosts.wait_s=1'
  )


def start_joined(code):
  """Start two processes that pass one barrier and then run the code."""
  options = {'coordinator': f'127.0.0.1:{free_port()}', 'count': 2, 'wait_s': 60}
  start = (
    'import sys, time\n'
    'from uadjax.distributed import processes, settings\n'
    f'options = settings.HostSettings(**{options}, index=int(sys.argv[1]))\n'
    'processes.join(options)\n'
    'processes.barrier("the start", 60)\n'
  )
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}
  return [
    subprocess.Popen(
      [sys.executable, '-c', start + code, str(index)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]


@pytest.mark.slow
def test_a_barrier_waits_for_a_limited_time():
  """A process that sends heartbeats may still reach a barrier too late."""
  first, late = start_joined(
    'if options.index: time.sleep(60)\n'
    'try: processes.barrier("the work", 2)\n'
    'except processes.ProcessLost as error: print(error); processes.exit_process()'
  )
  try:
    output = first.communicate(timeout=120)[0]
  finally:
    late.kill()
    late.communicate()
  assert (
    "Not all processes of this run reached the barrier 'the work' within hosts.wait_s=2 s" in output
  )


@pytest.mark.slow
@pytest.mark.parametrize('failing', [0, 1])
def test_when_one_fails_the_other_ends_long_before_its_heartbeats_are_missed(failing):
  both = start_joined(f'if options.index == {failing}: processes.exit_process()\ntime.sleep(90)')
  began = time.monotonic()
  results = ended(both)
  assert time.monotonic() - began < 80
  assert [code for code, _ in results] == [1, 1], results
  assert 'ProcessLost: A process of this run ended or cannot be reached' in results[1 - failing][1]


@pytest.mark.slow
@pytest.mark.parametrize('slow', [0, 1])
def test_after_all_agreed_to_end_a_slow_process_does_not_report_the_others(slow):
  """On a loaded machine, one may end seconds before another has closed its files."""
  code = (
    'processes.expect_exit()\n'
    f'if options.index == {slow}: time.sleep(8)\n'
    'processes.exit_process(143)'
  )
  results = ended(start_joined(code))
  assert [code for code, _ in results] == [143, 143], results
  assert not [text for _, text in results if 'ProcessLost' in text]


def test_only_what_jax_reports_is_a_lost_process(monkeypatch):
  text = 'UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer'
  losses = jax.errors.JaxRuntimeError(text), ValueError(text)  # JAX raises either type.
  for error in losses:  # A single process has no others to lose.
    assert processes.explain(error) is error
  monkeypatch.setattr(processes, 'is_multiprocess', lambda: True)
  for error in losses:
    assert isinstance(processes.explain(error), processes.ProcessLost)
  for error in (
    BrokenPipeError('Broken pipe'),
    TimeoutError('heartbeat timed out'),
    ValueError('Connection closed by peer'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
  ):
    assert processes.explain(error) is error
