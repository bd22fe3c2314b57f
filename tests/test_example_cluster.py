"""The scripts for clusters, without one: what they start where, and with which flags."""

import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

# Recipes; what a run of several processes does is in test_processes.py.
pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent.parent / 'docs' / 'examples' / 'cluster'
SCRIPTS = sorted(FOLDER.glob('*.sh'))
SHOWN = 'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $*"'


def ran(script, *flags, **environment):
  """What a script leaves, of the given environment and none of a cluster's."""
  own = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'SRUN_', 'JAX_NUM'))}
  command = ['bash', str(FOLDER / script), *flags]
  return subprocess.run(
    command, env={**own, **environment}, capture_output=True, text=True, timeout=240
  )


def lines(done):
  """What it said, sorted, for processes speak in any order."""
  assert done.returncode == 0, done.stdout + done.stderr
  return sorted(done.stdout.splitlines())


@pytest.fixture
def programs(tmp_path):
  """Puts programs of these texts before all others, and a python that only tells its flags."""

  def put(**texts):
    folder = tmp_path / 'programs'
    folder.mkdir(exist_ok=True)
    for name, text in {'python': SHOWN, **texts}.items():
      path = folder / name.replace('_', '-')
      path.write_text(f'#!/usr/bin/env bash\n{text}\n')
      path.chmod(0o755)
    return {'PATH': f'{folder}:{os.environ["PATH"]}', 'PYTHON': str(folder / 'python')}

  return put


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
  assert os.access(script, os.X_OK)
  checks = [['bash', '-n']] + [['shellcheck']] * (shutil.which('shellcheck') is not None)
  for check in checks:
    done = subprocess.run([*check, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_process_has_its_flags_and_a_number():
  zero, one = lines(ran('laptop.sh', '2', 'bash', '-c', SHOWN, 'sh', '--config=padim'))
  port = zero.partition('127.0.0.1:')[2].split()[0]
  for index, said in enumerate((zero, one)):
    assert said == (
      f'{index}: cpu 1 --config=padim --config.hosts.coordinator=127.0.0.1:{port} '
      f'--config.hosts.count=2 --config.hosts.index={index}'
    )
  (said,) = lines(ran('laptop.sh', '1', 'bash', '-c', SHOWN, JAX_NUM_CPU_DEVICES='4'))
  assert said.startswith('0: cpu 4')


def test_one_that_fails_fails_all():
  done = ran('laptop.sh', '3', 'bash', '-c', '[[ $* != *index=1* ]] && echo well', 'sh')
  assert done.returncode == 1
  assert sorted(done.stdout.splitlines()) == ['0: well', '2: well']
  assert ran('laptop.sh', '0', 'true').returncode == ran('laptop.sh', '2').returncode == 2


def test_who_stops_it_stops_all():
  waits = 'trap "echo last words; exit" TERM; echo ready; sleep 60 & wait'
  command = ['bash', str(FOLDER / 'laptop.sh'), '2', 'bash', '-c', waits, 'sh']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    began = time.monotonic()
    assert {process.stdout.readline() for _ in range(2)} == {'0: ready\n', '1: ready\n'}
    process.send_signal(signal.SIGTERM)
    # Until nobody has it open: who sleeps would.
    assert {*process.stdout.read().splitlines()} == {'0: last words', '1: last words'}
    assert process.wait() == 130
    assert time.monotonic() - began < 30


def test_gpus_are_used_where_there_are_any(programs):
  run = 'gpus.sh', '--config=padim'
  assert lines(ran(*run, **programs(nvidia_smi='exit 9'))) == [
    'No GPU here: simulating four devices.',
    'cpu 4 -m uadjax.main --config=padim --config.mesh.split=always',
  ]
  some = programs(nvidia_smi='echo "GPU 0: one"')
  (said,) = lines(ran(*run, **some))
  assert said.endswith(' -m uadjax.main --config=padim --config.device=gpu')
  (said,) = lines(ran(*run, **some, GPUS='0,1'))
  assert said.endswith(' --config.device=gpu:0,1')


def test_a_job_of_slurm_goes_on_where_it_was_started_again(programs, tmp_path):
  run = 'slurm.sh', '--config=stfpm', f'--workdir={tmp_path / "run"}'
  *others, first = lines(ran(*run, **programs()))
  assert [line.partition(' ')[0] for line in others] == ['0:', '1:']
  assert first == 'Not in a SLURM job: simulating two nodes on this machine.'
  job = programs(srun='echo "$SRUN_CPUS_PER_TASK $*"') | {'SLURM_JOB_ID': '7'}
  (tmp_path / 'run' / 'checkpoints' / 'rolling' / '20').mkdir(parents=True)
  command = f'--label {job["PYTHON"]} -m uadjax.main --config=stfpm --workdir={tmp_path / "run"}'
  assert lines(ran(*run, **job, SLURM_CPUS_PER_TASK='4')) == [f'4 {command}']
  again = job | {'SLURM_RESTART_COUNT': '1'}
  assert lines(ran(*run, **again)) == [f' {command} --config.fit.resume=latest']
  shutil.rmtree(tmp_path / 'run')
  assert lines(ran(*run, **again)) == [f' {command}']


@pytest.mark.parametrize('fails', ['', 'create', 'ssh'])
def test_a_tpu_pod_is_deleted_whatever_happens(programs, tmp_path, fails):
  asked = tmp_path / 'asked'
  own = programs(gcloud=f'echo ${{*:4}} >> {asked}; [[ $4 != "{fails}" ]]')
  flags = '--config=padim', '--config.data.ops=resize(32, 48)'
  done = ran('tpu_pod.sh', 'bolts', str(tmp_path / 'runs' / 'one'), *flags, **own, ZONE='here')
  assert (done.returncode == 0) == (not fails), done.stderr
  told = asked.read_text().splitlines()
  verbs = ['create', 'scp', 'scp', 'ssh', 'ssh', 'scp']
  assert [line.split()[0] for line in told] == (
    [*verbs[: verbs.index(fails) + 1 if fails else None], 'delete']
  )
  (name,) = {line.split()[1] for line in told if line.startswith(('create', 'delete', 'ssh'))}
  assert name.startswith('uadjax-')
  assert all(line.endswith('--zone=here') for line in told if not line.startswith('ssh'))
  if not fails:
    assert '--worker=all --command=env/bin/python -m uadjax.main --config=padim ' in told[4]
    assert r'--config.data.ops=resize\(32\,\ 48\)' in told[4]
    assert told[5] == f'scp --recurse {name}:run {tmp_path}/runs/one --worker=0 --zone=here'


def test_a_tpu_pod_can_be_tried_here(programs):
  run = 'tpu_pod.sh', 'bolts', 'runs/bolts', '--config=padim'
  *others, first = lines(ran(*run, **programs(gcloud='exit 9'), ZONE=''))
  assert first == 'No ZONE: simulating two hosts on this machine.'
  for index, line in enumerate(others):
    assert line.startswith(
      f'{index}: cpu 2 -m uadjax.main --config=padim --config.data.root=bolts '
    )
  stfpm = ran('tpu_pod.sh', 'a', 'b', '--config=stfpm', **programs(gcloud='exit 9'), ZONE='here')
  assert stfpm.returncode == 2
  assert 'a folder that all hosts share' in stfpm.stderr


def test_two_processes_leave_one_run(drawn, tmp_path):
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
  told = lines(ran('slurm.sh', *flags, PYTHON=sys.executable))
  for index in range(2):
    assert any(line.startswith(f'{index}: ') and 'there are 2' in line for line in told)
  assert (workdir / 'model' / 'fitted.safetensors').is_file()
