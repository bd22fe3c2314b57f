"""experiments/gpu.py writes results after every step, and ends in time."""

import json
import shutil
import subprocess
import sys
import time

import gpu
import pytest

NAMES = [
  'environment', 'fit PatchCore 0.01', 'speed PatchCore 0.01', 'laws', 'fit PaDiM', 'speed PaDiM',
  'fit STFPM', 'speed STFPM', 'fit PatchCore 0.1', 'speed PatchCore 0.1',
]  # fmt: skip


def results(folder):
  return json.loads((folder / 'results.json').read_text())


def run_all(steps, path, seconds=1000.0, record=None):
  record = {'steps': {}} if record is None else record
  gpu.run_steps(steps, record, path, time.monotonic() + seconds)
  return {name: step['status'] for name, step in results(path.parent)['steps'].items()}


def test_without_time_every_step_is_noted(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(subprocess, 'run', None)  # Nothing is started.
  gpu.main(['--device=cpu', '--minutes=0', f'--out={tmp_path}'])
  record = results(tmp_path)
  assert list(record['steps']) == NAMES
  assert {step['note'] for step in record['steps'].values()} == {'no time left'}
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(' | ')[0] for line in lines[2:6]] == [f'| {label}' for label in gpu._CONFIGS]
  assert all(f'- {name}: skipped, no time left' in lines for name in NAMES)
  assert 'drawn demo dataset' in record['dataset']


def test_a_step_that_fails_does_not_stop_the_others(tmp_path):
  path = tmp_path / 'results.json'

  def fail(seconds):
    assert results(tmp_path)['steps']['first']['result'] == {'x': 1}  # Written already.
    raise gpu.StepError('broken')

  steps = [gpu.Step('first', lambda s: {'x': 1}), gpu.Step('second', fail)]
  steps.append(gpu.Step('third', lambda s: {'x': 3}))
  assert run_all(steps, path) == {'first': 'done', 'second': 'failed', 'third': 'done'}
  assert results(tmp_path)['steps']['second']['note'] == 'broken'


def test_the_same_command_repeats_only_failed_steps(tmp_path):
  path, calls = tmp_path / 'results.json', []

  def step(name, succeeds):
    def run(seconds):
      calls.append(name)
      if not succeeds:
        raise gpu.StepError('broken')
      return {}

    return gpu.Step(name, run)

  run_all([step('first', True), step('second', False)], path)
  run_all([step('first', True), step('second', True)], path, record=results(tmp_path))
  run_all([step('first', True), step('second', True)], path, record=results(tmp_path))
  assert calls == ['first', 'second', 'second']


def test_without_a_device_all_other_steps_are_skipped(tmp_path):
  def fail(seconds):
    raise gpu.StepError('JAX finds no tpu')

  path, second = tmp_path / 'results.json', gpu.Step('second', lambda s: {})
  steps = [gpu.Step('first', fail), second]
  assert run_all(steps, path) == {'first': 'failed', 'second': 'skipped'}
  steps = [gpu.Step('first', lambda s: {}), second]  # It is there the next time.
  assert run_all(steps, path, record=results(tmp_path)) == {'first': 'done', 'second': 'done'}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('nvidia-smi') is not None, reason='needs a machine without a GPU')
def test_accelerator_tests_do_not_fall_back_to_the_cpu(tmp_path):
  options = gpu.parse_options(['--device=gpu', f'--out={tmp_path}'])
  with pytest.raises(gpu.StepError, match='JAX finds no gpu'):
    gpu.measure('environment', ['gpu'], options, 100)
  with pytest.raises(gpu.StepError, match='JAX finds no gpu'):
    gpu.run_laws(options, 100)


def test_a_command_is_stopped_when_no_time_is_left():
  options = gpu.parse_options(['--device=cpu'])
  with pytest.raises(gpu.StepError, match='no time left'):
    gpu.run_process([sys.executable, '-c', 'import time; time.sleep(60)'], options, 0.2)
  with pytest.raises(gpu.StepError, match='exit status 3: why'):
    gpu.run_process([sys.executable, '-c', 'print("why"); raise SystemExit(3)'], options, 60)


def test_results_of_other_options_are_not_overwritten(tmp_path):
  gpu.main(['--device=cpu', '--minutes=0', f'--out={tmp_path}'])
  with pytest.raises(SystemExit, match='other options'):
    gpu.main(['--device=cpu', '--size=full', '--minutes=0', f'--out={tmp_path}'])


def test_test_reports_are_read_with_failures_and_properties(tmp_path):
  report = tmp_path / 'laws.xml'
  report.write_text(
    '<testsuites><testsuite>'
    '<testcase classname="tests.test_a" name="test_holds"><properties>'
    '<property name="equal" value="9 of 10"/></properties></testcase>'
    '<testcase classname="tests.test_a" name="test_fails"><failure message="x &lt; y">z</failure>'
    '</testcase><testcase classname="tests.test_a" name="test_skipped"><skipped/></testcase>'
    '</testsuite></testsuites>'
  )
  assert gpu.read_laws(report) == {
    'passed': 1,
    'skipped': 1,
    'failed': {'fails': 'x < y'},
    'statements': {'holds: equal': '9 of 10'},
  }


def test_finished_tests_of_a_stopped_run_are_counted(tmp_path):
  log = tmp_path / 'laws.log'
  log.write_text(
    'tests/a.py::test_x[1] PASSED [ 1%]\ntests/a.py::test_y FAILED [ 2%]\ntests/a.py::test_z '
  )
  assert gpu._describe_log(log) == '1 passed, 1 failed, a.py::test_y'


@pytest.mark.slow
def test_on_a_cpu_all_steps_succeed_at_small_sizes(small_gpu_run, capsys):
  gpu.main(['--device=cpu', f'--out={small_gpu_run}'])  # Repeats no step.
  steps = results(small_gpu_run)['steps']
  assert {name: step['status'] for name, step in steps.items()} == dict.fromkeys(NAMES, 'done')
  laws = steps['laws']['result']
  assert (laws['passed'], laws['failed']) == (2, {})
  for label in gpu._CONFIGS:
    assert 0 <= steps[f'fit {label}']['result']['image_auroc'] <= 1
    speed = steps[f'speed {label}']['result']
    assert set(speed['batches']) == {'1', '8', '32'}
    assert speed['score_difference'] < 1e-4
  stdout = capsys.readouterr().out
  assert all('—' not in row for row in stdout.splitlines()[2:6])
  assert 'Not measured' not in stdout
