"""Every run of a sweep is carried out once, on one device, whoever shares the work."""

import csv
import itertools
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time

import pytest
import small_runs

from uadjax import cli, sweep
from uadjax.data.records import Record
from uadjax.errors import ConfigError
from uadjax.evaluation import evaluate
from uadjax.sweep import results, slots
from uadjax.system import locks

# Stands in for Python and uadjax.main: leaves what a run leaves, and says when it ran and where.
STAND_IN = """#!{python}
import json, os, pathlib, sys, time
flags = dict(word[2:].split('=', 1) for word in sys.argv[3:])
folder = pathlib.Path(flags['workdir'])
folder.mkdir(parents=True, exist_ok=True)
with (folder / 'ran').open('a') as file:
  file.write(' '.join(sys.argv[3:]) + '\\n')
if flags['config.data.category'] == 'broken':
  sys.exit('DataError: no such images')
began = time.time()
time.sleep(float(os.environ.get('TAKES', 0)))
seed, images = int(flags['config.seed']), 10
result = {{
  'done_flag': True, 'metrics': {{'image_auroc': 0.9 + seed / 100, 'pixel_auroc': None}},
  'timing': {{'fit_s': seed, 'calibrate_s': 1, 'evaluate_s': 2, 'peak_memory_mb': 100}},
  'summary': {{'images': images}}, 'from_to': [began, time.time()],
  'cores': sorted(os.sched_getaffinity(0)), 'cuda': os.environ.get('CUDA_VISIBLE_DEVICES'),
}}
(folder / 'train_result.json').write_text(json.dumps(result))
"""
SLOTS = [slots.Slot('one', ('--config.device=cpu',), {}), slots.Slot('two', (), {})]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  path = tmp_path / 'python'
  path.write_text(STAND_IN.format(python=sys.executable))
  path.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(path))


def run_all(
  workdir, runs, device_slots=SLOTS, part=(0, 1), overrides=('--config.fit.log_every=5',)
):
  return list(
    sweep.run_sweep(sweep.unfinished_runs(runs, workdir, part), workdir, overrides, device_slots)
  )


def calls_by_run(workdir):
  """Of each run's folder, what it was called with."""
  return {
    str(path.parent.relative_to(workdir)): path.read_text().splitlines()
    for path in workdir.rglob('ran')
  }


def test_every_run_is_carried_out_once(stand_in, tmp_path):
  runs = sweep.plan_runs(['padim', 'patchcore:ten'], ['nut', 'bolt'], [3, 4])
  assert len(set(runs)) == 8
  outcomes = run_all(tmp_path / 'w', runs)
  assert sorted(outcome.run for outcome in outcomes) == sorted(runs)
  assert not any(outcome.error for outcome in outcomes)
  assert run_all(tmp_path / 'w', runs) == []  # Nothing is repeated.
  calls = calls_by_run(tmp_path / 'w')
  assert len(calls) == 8
  (call,) = calls['patchcore_ten/bolt/seed_4']
  assert '--config=patchcore:ten' in call
  for flag in ('data.category=bolt', 'seed=4', 'fit.log_every=5', 'hosts.coordinator=none'):
    assert f'--config.{flag}' in call


@pytest.mark.parametrize('count', [2, 3, 9])
def test_hosts_share_the_runs(stand_in, tmp_path, count):
  runs = sweep.plan_runs(['padim'], ['nut', 'bolt'], [3, 4])
  outcomes_by_host = [run_all(tmp_path / 'w', runs, part=(index, count)) for index in range(count)]
  runs_by_host = [[outcome.run for outcome in outcomes] for outcomes in outcomes_by_host]
  assert sorted(itertools.chain(*runs_by_host)) == sorted(runs)
  assert max(map(len, runs_by_host)) - min(map(len, runs_by_host)) <= 1


def test_a_failed_run_does_not_stop_the_others_and_is_repeated(stand_in, tmp_path):
  runs = sweep.plan_runs(['padim'], ['broken', 'bolt'], [3])
  outcomes = {outcome.run.category: outcome for outcome in run_all(tmp_path / 'w', runs)}
  assert outcomes['broken'].error == 'DataError: no such images'
  assert outcomes['bolt'].summary
  assert outcomes['bolt'].summary['images'] == 10
  repeated = run_all(tmp_path / 'w', runs)
  assert [outcome.run.category for outcome in repeated] == ['broken']


def test_each_slot_has_one_run_at_a_time(stand_in, tmp_path, monkeypatch):
  monkeypatch.setenv('TAKES', '0.2')
  runs = sweep.plan_runs(['padim'], ['bolt'], range(5))
  run_all(tmp_path / 'w', runs)
  times = [json.loads(path.read_text())['from_to'] for path in tmp_path.rglob('train_result.json')]
  for began, _ in times:
    assert sum(a <= began < b for a, b in times) <= len(SLOTS)


def test_runs_under_way_are_stopped(stand_in, tmp_path, monkeypatch):
  monkeypatch.setenv('TAKES', '60')
  outcomes = sweep.run_sweep(
    sweep.plan_runs(['padim'], ['bolt', 'broken'], [3]), tmp_path / 'w', (), SLOTS
  )
  assert next(outcomes).run.category == 'broken'
  end = time.monotonic() + 30
  while len(calls_by_run(tmp_path / 'w')) < 2:
    assert time.monotonic() < end
    time.sleep(0.05)
  began = time.monotonic()
  outcomes.close()
  assert time.monotonic() - began < 20
  assert not list(tmp_path.rglob('train_result.json'))


def test_a_run_with_checkpoints_is_resumed(stand_in, tmp_path):
  (run,) = runs = sweep.plan_runs(['stfpm'], ['bolt'], [3])
  (run.run_dir(tmp_path) / 'checkpoints' / 'rolling' / '7').mkdir(parents=True)
  run_all(tmp_path, runs)
  (call,) = calls_by_run(tmp_path)['stfpm/bolt/seed_3']
  assert '--config.fit.resume=latest' in call


def test_a_locked_run_is_not_started(stand_in, tmp_path):
  (run,) = runs = sweep.plan_runs(['padim'], ['bolt'], [3])
  folder = run.run_dir(tmp_path / 'w')
  folder.mkdir(parents=True)
  with (folder / '.lock').open('wb') as lock:
    assert locks.try_lock(lock)
    (outcome,) = run_all(tmp_path / 'w', runs)
    assert 'locked by another sweep' in outcome.error
  assert not calls_by_run(tmp_path / 'w')
  assert run_all(tmp_path / 'w', runs)[0].summary


def test_failed_runs_do_not_fix_the_settings_of_a_sweep(stand_in, tmp_path):
  runs = sweep.plan_runs(['padim'], ['broken'], [3])
  run_all(tmp_path / 'w', runs)
  run_all(tmp_path / 'w', runs, overrides=())


def test_wrong_settings_are_refused_before_anything_runs():
  with pytest.raises(ConfigError) as caught:
    sweep.plan_runs(['padim'], ['bolt'], [3], {'nonsense': '3'})
  assert caught.value.key == 'nonsense'


def test_a_work_directory_of_another_sweep_is_refused(stand_in, tmp_path):
  runs = sweep.plan_runs(['padim'], ['bolt'], [3])
  run_all(tmp_path / 'w', runs)
  with pytest.raises(ConfigError) as caught:
    run_all(tmp_path / 'w', runs, overrides=())
  assert (caught.value.key, caught.value.value) == ('workdir', tmp_path / 'w')


def test_jobs_on_a_cpu_share_its_cores(stand_in, tmp_path, monkeypatch):
  monkeypatch.undo()
  cores = sorted(os.sched_getaffinity(0))
  for jobs in (1, len(cores)):
    cores_of_slots = [slot.cores for slot in slots.device_slots('cpu', jobs)]
    assert sorted(itertools.chain(*cores_of_slots)) == cores
  with pytest.raises(ConfigError, match=f'got {len(cores) + 1}'):
    slots.device_slots('cpu', len(cores) + 1)
  with pytest.raises(ConfigError, match="Unknown device 'cup'"):
    slots.device_slots('cup')


def test_a_process_runs_on_the_cores_of_its_slot(stand_in, tmp_path):
  core = min(os.sched_getaffinity(0))
  slot = slots.Slot('one', (), {}, (core,))
  run_all(tmp_path / 'w', sweep.plan_runs(['padim'], ['bolt'], [3]), [slot])
  (path,) = tmp_path.rglob('train_result.json')
  assert json.loads(path.read_text())['cores'] == [core]
  assert len(os.sched_getaffinity(0)) >= 1  # Ours are as they were.


@pytest.mark.parametrize(('visible', 'expected'), [('', ['0', '2']), ('GPU-a,GPU-b,GPU-c', None)])
def test_a_process_sees_its_gpu_alone(visible, expected, monkeypatch):
  listing = subprocess.CompletedProcess([], 0, 'gpu 0 2\n', '')
  monkeypatch.setattr(subprocess, 'run', lambda *words, **options: listing)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  visible_gpus = [
    slot.environment['CUDA_VISIBLE_DEVICES'] for slot in slots.device_slots('gpu:0,2')
  ]
  assert visible_gpus == (expected or ['GPU-a', 'GPU-c'])
  with pytest.raises(ConfigError, match='jobs is 3'):
    slots.device_slots('gpu:0,2', 3)


def test_tables_have_means_of_seeds_and_of_categories(tmp_path):
  values = {('a', 1): 0.5, ('a', 2): 0.7, ('b', 1): 0.8, ('b', 2): 1.0, ('b', 3): 0.1}
  summaries = {
    key: dict.fromkeys(results.COLUMNS) | {'image_auroc': x} for key, x in values.items()
  }
  rows = results.summarize_runs(('padim', *key, summary) for key, summary in summaries.items())
  results.write_tables(rows, tmp_path, '')
  with (tmp_path / 'table.csv').open(newline='') as file:
    rows_by_category = {row['category']: row for row in csv.DictReader(file)}
  for category in 'ab':
    category_values = [x for (name, _), x in values.items() if name == category]
    assert float(rows_by_category[category]['image_auroc']) == pytest.approx(
      statistics.mean(category_values)
    )
    assert float(rows_by_category[category]['image_auroc_low']) == min(category_values)
  mean = rows_by_category['mean of 2']  # Of the seeds that both have: 0.65 and 0.85.
  assert (mean['seeds'], float(mean['image_auroc_high'])) == ('2', pytest.approx(0.85))
  assert float(mean['image_auroc']) == pytest.approx(0.75)
  assert rows_by_category['a']['pixel_auroc'] == ''


def test_shares_of_verdicts_are_those_of_the_images_of_a_class():
  labels = {'hole': ['NG', 'review', 'OK', 'NG', 'OK'], 'good': ['NG', 'OK']}
  images = [
    evaluate.ImageResult(Record(Path(f'{defect}_{i}.png'), defect), 0.0, label)
    for defect, verdicts in labels.items()
    for i, label in enumerate(verdicts)
  ]
  at_threshold = evaluate.compute_metrics(images, None, None)['at_threshold']
  shares = results.verdict_shares(at_threshold)
  assert list(shares.values()) == pytest.approx([5, 0.4, 0.2, 0.4, 2, 0.5, 0, 0.5])
  at_threshold = evaluate.compute_metrics(images[5:], None, None)['at_threshold']
  assert list(results.verdict_shares(at_threshold).values())[:4] == [0, None, None, None]
  assert set(results.verdict_shares({}).values()) == {None}
  summary = dict.fromkeys(results.COLUMNS) | shares
  # The verdicts lead, as numbers of images and percentages.
  assert list(results.COLUMNS)[: len(shares)] == list(shares)
  assert results.format_cells([summary])[:4] == ['5', '40.0', '20.0', '40.0']


@pytest.mark.slow
def test_the_command_leaves_a_table(drawn, tmp_path, capsys, monkeypatch):
  # As here, so that its processes need not compile what other runs have compiled.
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')
  words = ['sweep', drawn, '--models', 'padim', '--categories', 'disc', '--seeds', '3-4']
  small = [
    word.removeprefix('--config.')
    for word in (*small_runs.SMALL, *small_runs.DETECTOR_FLAGS['padim'])
  ]
  small += ['evaluate.save_pictures=0', 'evaluate.report_pictures=0']
  words += ['--workdir', tmp_path, '--device', 'cpu', '--json']
  words += [word for pair in small for word in ('--override', pair)]
  assert cli.main([*map(str, words), '--jobs', str(min(2, len(os.sched_getaffinity(0))))]) == 0
  outcome = json.loads(capsys.readouterr().out)
  assert (outcome['runs'], outcome['finished'], outcome['failed']) == (2, 2, [])
  with Path(outcome['table']).open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert (row['detector'], row['category'], row['seeds']) == ('padim', 'disc', '2')
  summaries = map(
    results.load_summary, (path.parent for path in tmp_path.rglob('train_result.json'))
  )
  image_aurocs = [summary['image_auroc'] for summary in summaries if summary]
  assert float(row['image_auroc']) == pytest.approx(statistics.mean(image_aurocs))
  assert cli.main([*map(str, words), '--table-only']) == 0


@pytest.mark.parametrize(
  'words',
  [
    ['--seeds', 'x'],
    ['--seeds', ''],
    ['--seeds', '5-3'],
    ['--override', 'nonsense=3'],
    ['--models', 'nope'],
    ['--categories', 'disc,disk'],
    ['--shard', '2/2'],
  ],
)
def test_wrong_sweeps_are_refused(words, drawn, tmp_path, capsys):
  assert cli.main(['sweep', str(drawn), '--workdir', str(tmp_path), *words]) == 2
  assert not list(tmp_path.iterdir())
