"""Tests of the cluster scripts without a cluster: the commands that they start, and their flags."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

# Examples; runs of several processes are tested in test_processes.py.
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / 'docs' / 'examples' / 'cluster'
SCRIPTS = sorted(FOLDER.glob('*.sh'))
PRINT_ARGUMENTS = 'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $*"'


def run_script(script, *flags, **environment):
  """Run a script without the environment variables of a cluster."""
  base = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'SRUN_', 'JAX_NUM'))}
  command = ['bash', str(FOLDER / script), *flags]
  return subprocess.run(
    command, env={**base, **environment}, capture_output=True, text=True, timeout=240
  )


def lines(process):
  """Return the output lines, sorted because processes write in any order."""
  assert process.returncode == 0, process.stdout + process.stderr
  return sorted(process.stdout.splitlines())


@pytest.fixture
def programs(tmp_path):
  """Puts fake programs first in PATH, and a python that only prints its arguments."""

  def install(**texts):
    folder = tmp_path / 'programs'
    folder.mkdir(exist_ok=True)
    for name, text in {'python': PRINT_ARGUMENTS, **texts}.items():
      path = folder / name.replace('_', '-')
      path.write_text(f'#!/usr/bin/env bash\n{text}\n')
      path.chmod(0o755)
    return {'PATH': f'{folder}:{os.environ["PATH"]}', 'PYTHON': str(folder / 'python')}

  return install


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
  assert os.access(script, os.X_OK)
  linters = [['bash', '-n']] + [['shellcheck']] * (shutil.which('shellcheck') is not None)
  for linter in linters:
    process = subprocess.run([*linter, str(script)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_every_process_has_its_flags_and_index():
  first, second = lines(
    run_script('laptop.sh', '2', 'bash', '-c', PRINT_ARGUMENTS, 'sh', '--config=padim')
  )
  port = first.partition('127.0.0.1:')[2].split()[0]
  for index, line in enumerate((first, second)):
    assert line == (
      f'{index}: cpu 1 --config=padim --config.hosts.coordinator=127.0.0.1:{port} '
      f'--config.hosts.count=2 --config.hosts.index={index}'
    )
  (line,) = lines(
    run_script('laptop.sh', '1', 'bash', '-c', PRINT_ARGUMENTS, JAX_NUM_CPU_DEVICES='4')
  )
  assert line.startswith('0: cpu 4')


def test_a_failing_process_fails_the_script():
  process = run_script('laptop.sh', '3', 'bash', '-c', '[[ $* != *index=1* ]] && echo done', 'sh')
  assert process.returncode == 1
  assert sorted(process.stdout.splitlines()) == ['0: done', '2: done']
  assert (
    run_script('laptop.sh', '0', 'true').returncode == run_script('laptop.sh', '2').returncode == 2
  )


def test_stopping_the_script_stops_all_processes():
  wait_script = 'trap "echo stopped; exit" TERM; echo ready; sleep 60 & wait'
  command = ['bash', str(FOLDER / 'laptop.sh'), '2', 'bash', '-c', wait_script, 'sh']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    start = time.monotonic()
    assert {process.stdout.readline() for _ in range(2)} == {'0: ready\n', '1: ready\n'}
    process.send_signal(signal.SIGTERM)
    # Reads until every process has closed the pipe, including the sleeping ones.
    assert {*process.stdout.read().splitlines()} == {'0: stopped', '1: stopped'}
    assert process.wait() == 130
    assert time.monotonic() - start < 30


def test_gpus_are_used_if_present(programs):
  run = 'gpus.sh', '--config=padim'
  assert lines(run_script(*run, **programs(nvidia_smi='exit 9'))) == [
    'No GPU here: simulating four devices.',
    'cpu 4 -m uadjax.main --config=padim --config.mesh.shard_state=always',
  ]
  with_gpu = programs(nvidia_smi='echo "GPU 0: one"')
  (line,) = lines(run_script(*run, **with_gpu))
  assert line.endswith(' -m uadjax.main --config=padim --config.device=gpu')
  (line,) = lines(run_script(*run, **with_gpu, GPUS='0,1'))
  assert line.endswith(' --config.device=gpu:0,1')


def test_a_restarted_slurm_job_resumes(programs, tmp_path):
  run = 'slurm.sh', '--config=stfpm', f'--workdir={tmp_path / "run"}'
  *others, first = lines(run_script(*run, **programs()))
  assert [line.partition(' ')[0] for line in others] == ['0:', '1:']
  assert first == 'Not in a SLURM job: simulating two nodes on this machine.'
  job = programs(srun='echo "$SRUN_CPUS_PER_TASK $*"') | {'SLURM_JOB_ID': '7'}
  (tmp_path / 'run' / 'checkpoints' / 'rolling' / '20').mkdir(parents=True)
  command = f'--label {job["PYTHON"]} -m uadjax.main --config=stfpm --workdir={tmp_path / "run"}'
  assert lines(run_script(*run, **job, SLURM_CPUS_PER_TASK='4')) == [f'4 {command}']
  restarted = job | {'SLURM_RESTART_COUNT': '1'}
  assert lines(run_script(*run, **restarted)) == [f' {command} --config.fit.resume=latest']
  shutil.rmtree(tmp_path / 'run')
  assert lines(run_script(*run, **restarted)) == [f' {command}']


@pytest.mark.parametrize('fails', ['', 'create', 'ssh'])
def test_a_tpu_pod_is_always_deleted(programs, tmp_path, fails):
  log = tmp_path / 'gcloud.log'
  environment = programs(gcloud=f'echo ${{*:4}} >> {log}; [[ $4 != "{fails}" ]]')
  flags = '--config=padim', '--config.data.ops=resize(32, 48)'
  workdir = tmp_path / 'runs' / 'bolts'
  process = run_script('tpu_pod.sh', 'bolts', str(workdir), *flags, **environment, ZONE='zone-a')
  assert (process.returncode == 0) == (not fails), process.stderr
  calls = log.read_text().splitlines()
  verbs = ['create', 'scp', 'scp', 'ssh', 'ssh', 'scp']
  assert [line.split()[0] for line in calls] == (
    [*verbs[: verbs.index(fails) + 1 if fails else None], 'delete']
  )
  (name,) = {line.split()[1] for line in calls if line.startswith(('create', 'delete', 'ssh'))}
  assert name.startswith('uadjax-')
  assert all(line.endswith('--zone=zone-a') for line in calls if not line.startswith('ssh'))
  if not fails:
    assert '--worker=all --command=env/bin/python -m uadjax.main --config=padim ' in calls[4]
    assert r'--config.data.ops=resize\(32\,\ 48\)' in calls[4]
    assert calls[5] == f'scp --recurse {name}:run {workdir} --worker=0 --zone=zone-a'


def test_the_tpu_pod_script_simulates_without_a_zone(programs):
  run = 'tpu_pod.sh', 'bolts', 'runs/bolts', '--config=padim'
  *others, first = lines(run_script(*run, **programs(gcloud='exit 9'), ZONE=''))
  assert first == 'No ZONE: simulating two hosts on this machine.'
  for index, line in enumerate(others):
    assert line.startswith(
      f'{index}: cpu 2 -m uadjax.main --config=padim --config.data.root=bolts '
    )
  stfpm = run_script(
    'tpu_pod.sh', 'a', 'b', '--config=stfpm', **programs(gcloud='exit 9'), ZONE='zone-a'
  )
  assert stfpm.returncode == 2
  assert 'a folder shared by all hosts' in stfpm.stderr


def test_two_processes_write_one_run(drawn, tmp_path):
  small = [
    '--config.data.ops=resize(32, 48)',
    '--config.data.category=disc',
    '--config.detector.layers=layer1',
    '--config.detector.channels=9',
    '--config.backbone.weights=random',
    '--config.evaluate.do_eval=false',
  ]
  workdir = tmp_path / 'run'
  flags = ['--config=padim', *small, f'--config.data.root={drawn}', f'--workdir={workdir}']
  output = lines(run_script('slurm.sh', *flags, PYTHON=sys.executable))
  for index in range(2):
    assert any(line.startswith(f'{index}: ') and 'of 2, counted from 0' in line for line in output)
  assert (workdir / 'model' / 'fitted.safetensors').is_file()
