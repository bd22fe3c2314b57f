"""The `uadjax` command: what it prints, what it leaves, and how it ends.

A tiny PaDiM with random weights: what is tested is the machinery, not the detection.
"""

import collections
import hashlib
import importlib
import itertools
import json
import logging as stdlib_logging
import os
from pathlib import Path
import pty
import re
import shutil
import signal
import string
import subprocess
import sys

import pytest
import small_runs
import typer
import yaml

from uadjax import cli, config as configs, detectors
from uadjax.backbones import weights
from uadjax.backbones.weights import download
from uadjax.cli import commands, options, result_text
from uadjax.data import image_io
from uadjax.evaluation import curves
from uadjax.inference import demo_model, pipelines
from uadjax.system import files, logging, progress
from uadjax.training import settings

COMMANDS = ('predict', 'fit', 'config', 'check', 'report', 'threshold', 'demo', 'weights')
# The command in a process of its own, which must not have imported TensorFlow at its end.
CODE = """
import sys
from uadjax import cli
status = cli.main(sys.argv[1:])
assert 'tensorflow' not in sys.modules
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  """Results go into a folder below, where none is named."""
  monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def model(trained):
  return trained('padim') / 'model'


@pytest.fixture(scope='module')
def images(drawn, tmp_path_factory):
  """Two good images, and one of each defect."""
  folder = tmp_path_factory.mktemp('images')
  for name in ('good/000', 'good/001', *(f'{defect}/000' for defect in small_runs.DEFECTS)):
    target = folder / f'{name}.png'
    target.parent.mkdir(exist_ok=True)
    shutil.copy(drawn / 'disc' / 'test' / f'{name}.png', target)
  return folder


@pytest.fixture
def uadjax(capfd):
  """A function that runs a command and returns its status, stdout and stderr."""

  def command(*words):
    status = cli.main([str(word) for word in words])
    output = capfd.readouterr()
    assert 'Traceback' not in output.err, output.err
    return status, output.out, output.err

  return command


def objects(out):
  return [json.loads(line) for line in out.splitlines()]


def test_each_result_is_one_line_of_json(model, images, uadjax):
  status, out, _ = uadjax('predict', model, images, '--json', '--no-save')
  opened = pipelines.create_pipeline(overrides={'model_dir': str(model)})
  expected = [result.to_json('none') for result in opened.predict(images)]
  assert status == 0
  assert len(expected) == 5
  assert objects(out) == json.loads(json.dumps(expected))


def test_the_spelling_of_paddlex_does_the_same(model, images, uadjax):
  options_of_both = ('--json', '--no-save', '--batch_size', 2)
  expected = uadjax('predict', model, images, *options_of_both)[:2]
  assert expected[0] == 0
  for first in (('--model_dir', model), ('--pipeline', 'anomaly_detection', '--model-dir', model)):
    words = (*first, '--input', images, '--model', 'padim', *options_of_both)
    assert uadjax(*words)[:2] == expected, first


def test_people_see_a_line_for_each_image_and_a_sum(model, images, uadjax, tmp_path):
  shutil.copytree(images, tmp_path / 'in')
  broken = tmp_path / 'in' / 'good' / 'broken.png'
  broken.write_bytes(b'no image')
  status, out, err = uadjax('predict', model, tmp_path / 'in', '--save-path', tmp_path / 'out')
  results = objects(uadjax('predict', model, tmp_path / 'in', '--json', '--no-save')[1])
  assert status == 1
  assert '1 of 6 images could not be read' in err
  lines = out.splitlines()
  for line, result in zip(lines, results, strict=False):
    assert (result.get('error') or f'{result["score"]:.4g}  {result["input_path"]}') in line
    assert line.split()[1] == result.get('label', 'unreadable')
  counts = collections.Counter(result.get('label', 'unreadable') for result in results)
  judged = [result for result in results if result.get('label') in ('NG', 'review')]
  worst = sorted(judged, key=lambda result: -result['score'])[:5]
  assert worst
  heading = f'Worst first, {len(worst)} of {len(judged)} images that are not OK:'
  for line, result in zip(lines[lines.index(heading) + 1 :], worst, strict=False):
    assert result['input_path'] in line
  summed = '\n'.join(lines[6:])
  for label, count in counts.items():
    assert re.search(rf'{label} +{count} +{count / 6:.1%}', summed)
  assert re.search(r'images +6\b', summed)
  assert lines[-1] == f'Results: {tmp_path / "out"}'
  saved = {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*')}
  assert {'good/000_res.png', 'good/000_res.json', 'good/broken_res.json'} <= saved
  assert len(saved) == 11


def test_options_select_which_results_are_saved(model, images, uadjax, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  image = images / 'good' / '000.png'
  assert uadjax('predict', model, image, '--no-save')[0] == 0
  assert list(tmp_path.iterdir()) == []
  assert uadjax('predict', model, image, '--no-pictures')[0] == 0
  assert [path.name for path in (tmp_path / 'output').iterdir()] == ['000_res.json']


def test_a_defect_is_a_failure_only_where_asked(model, images, uadjax):
  for words, expected_status in (
    (('--image-threshold', 0), 0),
    (('--image-threshold', 0, '--fail-on', 'ng'), 3),
    (('--image-threshold', 0, '--fail-on', 'review'), 3),
    (('--image-threshold', 1e9, '--fail-on', 'NG'), 0),
    (('--image-threshold', 1e9, '--review-threshold', 0, '--fail-on', 'ng'), 0),
    (('--image-threshold', 1e9, '--review-threshold', 0, '--fail-on', 'review'), 3),
  ):
    status, *_ = uadjax('predict', model, images / 'good', '--no-save', *words)
    assert status == expected_status, words


def test_thresholds_and_masks(model, images, uadjax):
  image = images / 'good' / '000.png'
  words = ('predict', model, image, '--no-save', '--json', '--pixel-threshold', 0)
  (bare,), (nested,), (rle,) = (
    objects(uadjax(*words, *more)[1]) for more in ((), ('--masks', 'nested'), ('--masks', 'rle'))
  )
  assert 'pred' not in bare
  assert bare['pixel_threshold'] == 0
  side = small_runs.SIDE
  assert nested['pred'] == [[255] * side] * side
  assert rle['pred'] == {'size': [side, side], 'counts': [0, side * side]}


def test_strict_stops_at_what_cannot_be_read(model, images, uadjax, tmp_path):
  (tmp_path / 'broken.png').write_bytes(b'no image')
  words = ('predict', model, tmp_path / 'broken.png', images, '--no-save', '--json')
  status, out, _ = uadjax(*words)
  assert (status, len(objects(out))) == (1, 6)
  status, out, _ = uadjax(*words, '--strict')
  assert status == 1
  assert objects(out)[-1]['type'] == 'DataError'
  assert not any('score' in result for result in objects(out))


def test_settings_are_written_read_and_overridden(model, images, uadjax, tmp_path):
  status, out, _ = uadjax('--get_pipeline_config', 'anomaly_detection', '--save_path', tmp_path)
  path = tmp_path / 'anomaly_detection.yaml'
  assert status == 0
  assert str(path) in out
  settings = yaml.safe_load(path.read_text())
  settings['SubModules']['AnomalyDetection'] |= {'model_dir': str(model), 'image_threshold': 5.0}
  path.write_text(yaml.safe_dump(settings))
  words = ('--pipeline', path, '--input', images / 'good', '--no-save', '--json')
  assert {result['image_threshold'] for result in objects(uadjax(*words)[1])} == {5.0}
  results = objects(uadjax(*words, '--override', 'image_threshold=6')[1])
  assert {result['image_threshold'] for result in results} == {6.0}
  results = objects(uadjax(*words, '--override', 'image_threshold=6', '--image-threshold', 7)[1])
  assert {result['image_threshold'] for result in results} == {7.0}


# Wrong commands, in which M is a model, I a folder of images and D one with the category disc; and
# what is said of them.
MISSPELLED = [
  (('predict', 'M', 'I', '--devise=cpu'), '--device'),
  (('predict', 'M'), 'INPUT'),
  (('predict', 'M', 'I', '--device=gpx'), 'gpu:0,1'),
  (('predict', 'M', 'I', '--image-threshold=high'), '--image-threshold'),
  (('predict', 'M', 'I', '--masks=png', '--json'), 'nested'),
  (('predict', 'M', 'I', '--masks=rle'), '--json'),
  (('predict', 'M', 'I', '--override=batchsize=3'), "'batch_size'"),
  (('predict', 'M', 'I', '--override=batch_size'), 'KEY=VALUE'),
  (('predict', 'M', 'I', '--batch-size=0'), '--batch-size'),
  (('config', 'fit.batchsize'), "'fit.batch_size'"),
  (('--pipeline', 'anomaly_detection'), '--input'),
  (('--pipeline', 'anomaly', '--input', 'I', '--model_dir', 'M'), 'anomaly_detection'),
  (('--device', 'cpu', 'predict', 'M', 'I'), "after 'predict'"),
  (('--get_pipeline_config', 'ocr'), 'anomaly_detection'),
  (('predcit',), "'predict'"),
  (('weights', 'resnet19'), 'resnet18'),
  (('threshold', 'M', '--budget=2'), 'below 1'),
  (('threshold', 'M', '--budget=0.1', '--image-threshold=0'), '--image-threshold'),
  (('threshold', 'M', '--budget=0.1', '--review-budget=0.05'), '--review-budget=0.1'),
  (('threshold', 'M', '--method=f1'), '--labeled'),
  (('threshold', 'M', '--labeled=I'), '--method'),
  (('threshold', 'M', '--miss-cost=-1', '--method=cost'), 'above 0'),
  (('threshold', 'M', '--miss-cost=5'), '--method=cost'),
  (('fit', 'D'), '--category'),
  (('check', 'D'), '--category'),
  (('report', 'M', 'D'), '--category'),
  (('fit', 'D', '--category=disk'), "'disc'"),
  (('fit', 'D', '--category=all'), '--category'),
  (('check', 'D', '--category=disk'), "'disc'"),
  (('check', 'D', '--category=textures'), 'disc'),
  (('report', 'M', 'D', '--category=disk'), "'disc'"),
  (('sweep', 'D', '--categories=disk'), "'disc'"),
  (('sweep', 'D', '--models=patchcoer'), 'patchcore'),
  (('fit', 'D', '--category=disc', '--model=PatchCoer'), 'PatchCore'),
  (('fit', 'D', '--category=disc', '--device=gpx'), 'gpu:0,1'),
  (('fit', 'D', '--category=disc', '--override=fit.steps=3'), 'fit.steps'),
  (('fit', 'D', '--category=disc', '--override=backbone.weights=imagnet'), 'imagenet'),
  (('fit', 'D', '--category=disc', '--override=backbone.name=resnet50',
    '--override=backbone.weights=embedded'), 'resnet18'),
  (('fit', 'D', '--category=disc', '--override=backbone.name=compact',
    '--override=backbone.weights=imagenet'), 'resnet18'),
  (('--input', 'I', '--model', 'stfpm', '--model_dir', 'M'), 'is PaDiM'),
  (('predict', 'M', 'I', '--override=backbone.weights=random'),
   'no effect in a prediction: a model keeps the settings of its fit. Fit a model with it: '
   '`uadjax fit DATASET --override backbone.weights=random`'),
  (('predict', 'M', 'I', '--override=predict.image_threshold=3'), '--image-threshold=3'),
  (('export', 'M', '--include-resize=large'), '1024x1280'),
  (('report', 'M', 'D', '--category=disc', '--output=report.pdf'), '.html'),
  (('demo', 'demo', '--size=3'), 'at least 16'),
  (('demo', 'demo', '--category=covers'), "'cover'"),
  (('demo', 'demo', '--category=cover', '--size=64'), '2048 x 1536'),
]  # fmt: skip
# Right commands whose inputs are missing (N) or unsuitable (G, good images only).
UNUSABLE = [
  ('predict', 'N', 'I'),
  ('predict', 'M', 'N'),
  ('fit', 'N'),
  ('fit', 'G', '--extend', 'N'),
  ('fit', 'G', '--override=calibrate.labeled=N', '--override=calibrate.method=f1'),
  ('check', 'N'),
  ('sweep', 'N'),
  ('report', 'N', 'I'),
  ('report', 'M', 'N'),
  ('report', 'M', 'G'),
  ('export', 'N'),
  ('export', 'M', '--quantize=int8', '--images', 'N'),
  ('threshold', 'N'),
  ('threshold', 'M', '--method=f1', '--labeled', 'N'),
]


def test_wrong_commands_have_status_2_and_leave_nothing(model, images, drawn, uadjax, tmp_path):
  path_by_letter = {'M': model, 'I': images, 'D': drawn}
  for template, message in MISSPELLED:
    words = [path_by_letter.get(word, word) for word in template]
    status, out, err = uadjax(*words)
    assert status == 2, template
    assert message in out + err, template
    if '--masks=rle' in words:
      continue  # With --json it is right.
    status, out, err = uadjax(*words, '--json')
    assert status == 2, template
    assert {'error', 'type'} <= set(objects(out)[0]), template
    assert 'Error' not in err, template
  assert not [*tmp_path.iterdir()]


def test_unusable_inputs_have_status_1_and_leave_nothing(model, images, uadjax, tmp_path):
  path_by_letter = {'M': str(model), 'I': str(images), 'G': str(images / 'good'), 'N': 'nowhere'}
  for template in UNUSABLE:
    words = [re.sub(r'^[MIGN]$|(?<==)N$', lambda m: path_by_letter[m[0]], x) for x in template]
    status, out, err = uadjax(*words)
    assert status == 1, (template, err)
    assert ('nowhere' if 'nowhere' in ' '.join(words) else path_by_letter['G']) in err, template
    assert err.count('Error: ') == 1, template
    assert out == '', template
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('missing', ['model', 'image'])
def test_absent_paths_have_status_1_and_are_printed_in_one_line(
  model, images, uadjax, tmp_path, missing, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '40')
  path = tmp_path / ('long' * 30)
  words = (path, images) if missing == 'model' else (model, path)
  status, out, err = uadjax('predict', *words)
  assert (status, out) == (1, '')
  assert err.startswith('Error: ')
  assert err.count('\n') == 1
  assert str(path) in err
  status, out, err = uadjax('predict', *words, '--json')
  assert (status, err) == (1, '')
  (problem,) = objects(out)
  assert str(path) in problem['error']
  assert problem['type'] in ('ModelError', 'DataError')


def test_without_a_model_the_demo_model_is_used(model, images, uadjax, monkeypatch):
  monkeypatch.setattr(demo_model, 'ensure_model_dir', lambda name: model)
  status, out, _ = uadjax('--input', images, '--model', 'padim', '--json', '--no-save')
  assert (status, len(objects(out))) == (0, 5)


def test_names_of_files_cannot_control_the_terminal(model, images, uadjax, tmp_path):
  names = ['line\nbreak.png', '[red]x[\\red].png', '\x1b[2Jgone.png', 'caf\udce9.png']
  for name in names:
    shutil.copy(images / 'good' / '000.png', tmp_path / name)
  status, out, _ = uadjax('predict', model, tmp_path, '--no-save', '--json')
  assert status == 0
  assert len(objects(out)) == len(names)
  assert out.isascii()
  status, out, _ = uadjax('predict', model, tmp_path, '--no-save')
  assert status == 0
  assert '\x1b' not in out
  assert '[red]x' in out
  assert len([line for line in out.splitlines() if '.png' in line]) == len(names)


def test_an_unexpected_exception_is_reported_as_an_internal_error(
  model, images, capfd, monkeypatch
):
  def fail(*args, **options):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(pipelines, 'create_pipeline', fail)
  assert cli.main(['predict', str(model), str(images), '--json']) == 1
  output = capfd.readouterr()
  assert objects(output.out) == [{'error': 'out of memory', 'type': 'RuntimeError'}]
  assert 'Internal error' in output.err


def test_a_dataset_is_checked(drawn, uadjax, tmp_path):
  status, out, _ = uadjax('check', drawn / 'disc', '--output', tmp_path / 'out')
  assert status == 0
  assert 'Check dataset passed !' in out
  assert '12 training images' in out
  report = json.loads((tmp_path / 'out' / 'check_dataset_result.json').read_text())
  assert report['check_pass'] is True
  assert (tmp_path / 'out' / report['analysis']['histogram']).is_file()

  for name in ('one', 'two'):
    shutil.copytree(drawn / 'disc', tmp_path / 'data' / name)
  broken = tmp_path / 'data' / 'two' / 'train' / 'good' / '000.png'
  broken.write_bytes(b'no image')
  words = ('check', tmp_path / 'data', '--category', 'all')
  status, out, _ = uadjax(*words)
  assert status == 1
  assert (out.count('Check dataset passed !'), out.count('Check dataset failed.')) == (1, 1)
  assert any(str(broken) in line for line in out.splitlines())
  status, out, _ = uadjax(*words, '--json')
  assert status == 1
  first_report, second_report = objects(out)
  assert (first_report['check_pass'], second_report['check_pass']) == (True, False)
  assert [problem['path'] for problem in second_report['problems']] == [str(broken)]
  (tmp_path / 'data' / 'notes.md').write_text('by hand')
  assert 'notes.md' in uadjax(*words)[1]
  *_, outside = objects(uadjax(*words, '--json')[1])
  assert outside['not_used'][0]['examples'] == ['notes.md']
  assert uadjax('check', tmp_path / 'nothing')[0] == 1


@pytest.mark.slow
def test_the_demo_dataset_replaces_a_folder_only_with_overwrite(uadjax, tmp_path):
  assert uadjax('demo', tmp_path, '--size', 32)[0] == 0
  assert uadjax('check', tmp_path / 'disc')[0] == 0
  before = (tmp_path / 'disc' / 'train' / 'good' / '000.png').read_bytes()
  status, _, err = uadjax('demo', tmp_path, '--size', 32, '--seed', 1)
  assert status == 2
  assert '--overwrite' in err
  assert (tmp_path / 'disc' / 'train' / 'good' / '000.png').read_bytes() == before
  assert uadjax('demo', tmp_path, '--size', 32, '--seed', 1, '--overwrite')[0] == 0
  assert (tmp_path / 'disc' / 'train' / 'good' / '000.png').read_bytes() != before


def test_weights_are_listed_and_downloaded(uadjax, tmp_path, monkeypatch):
  content = b'weights'
  digest = hashlib.sha256(content).hexdigest()
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  monkeypatch.setitem(weights.FILES, 'resnet18', f'resnet18-{digest[:8]}.pth')
  fetched = []

  def fetch(url, target, digest):
    fetched.append(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)

  monkeypatch.setattr(download, 'fetch', fetch)
  status, out, _ = uadjax('weights', '--json')
  assert status == 0
  assert {entry['name']: entry['cached'] for entry in objects(out)} == dict.fromkeys(
    (*weights.FILES, *weights.META_FILES), False
  )
  assert fetched == []
  for _ in range(2):
    status, out, _ = uadjax('weights', 'resnet18')
    assert status == 0
    assert digest in out
  assert fetched == [f'{weights.TORCHVISION}/resnet18-{digest[:8]}.pth']
  path = files.cache_dir() / 'weights' / f'resnet18-{digest[:8]}.pth'
  path.write_bytes(b'damaged')
  (entry,) = (entry for entry in objects(uadjax('weights', '--json')[1]) if entry['cached'])
  assert (entry['path'], entry['intact']) == (str(path), False)


def test_a_report_is_written(model, drawn, uadjax, tmp_path, monkeypatch):
  monkeypatch.setattr(curves, 'draw', lambda folder, data: None)  # Nobody would see them.
  page = tmp_path / 'new' / 'r.html'
  words = ('report', model, drawn, '--category', 'disc', '--output', page)
  status, out, err = uadjax(*words)
  assert status == 0
  assert 'Replaced' not in err
  places = [out.index(text) for text in ('found', 'missed', 'passed', 'rejected', 'image AUROC')]
  assert places == sorted(places)
  assert out.endswith(f'Report: {page}\n')
  assert '<html' in page.read_text()
  report = json.loads(page.with_suffix('.json').read_text())
  _, out, err = uadjax(*words, '--json', '--device=cpu')
  assert f'Replaced the existing {page} and r.json.' in err
  (printed_metrics,) = objects(out)
  assert printed_metrics['image_auroc'] == report['metrics']['image_auroc']
  assert printed_metrics['warnings'] == report['warnings'] == []


@pytest.mark.parametrize('columns', [60, 80])
def test_help_fits_and_shows_an_example(uadjax, monkeypatch, columns):
  monkeypatch.setenv('COLUMNS', str(columns))
  for command in ('', *COMMANDS):
    status, out, _ = uadjax(*command.split(), '--help')
    assert status == 0, command
    assert max(map(len, out.splitlines())) <= columns, command
    assert 'Examples' in out, command
    assert columns < 80 or '…' not in out, command


def test_completion_offers_all_models_and_backbones():
  assert set(options.MODELS) == set(detectors.TITLES)
  assert set(options.BACKBONES) == set(weights.published_files())


def test_every_setting_is_listed(uadjax):
  status, out, _ = uadjax('config', '--json')
  listed = objects(out)
  assert status == 0
  assert {setting['key'] for setting in listed} == {
    key
    for title in detectors.TITLES
    for key in configs.describe(settings.load(detectors.find(title)))
  }
  assert all(setting['help'].endswith('.') and setting['type'] for setting in listed)
  (setting,) = objects(uadjax('config', 'fit.batch_size', '--json')[1])
  assert (setting['minimum'], setting['default']) == (
    1,
    {'padim': 32, 'patchcore': 16, 'stfpm': 32, 'subspace': 16},
  )
  status, out, _ = uadjax('config', 'calibrate')
  assert status == 0
  keys = [line.split()[0] for line in out.splitlines() if ' = ' in line]
  assert keys == [setting['key'] for setting in listed if setting['key'].startswith('calibrate.')]


# Arguments that each command needs at least.
NEEDED = {
  'predict': ('M', 'I'), 'fit': ('D',), 'config': (), 'sweep': ('D',), 'check': ('D',),
  'export': ('M',), 'report': ('M', 'D'), 'threshold': ('M',), 'demo': ('D',), 'weights': (),
  'serve': (),
}  # fmt: skip


@pytest.fixture
def called(monkeypatch):
  """Commands do no work but tell their name and the level from which on messages are shown."""
  calls = []
  for name in commands.COMMANDS:
    module = importlib.import_module(f'uadjax.cli.{name}')
    monkeypatch.setattr(
      module, 'run', lambda command, name=name: calls.append((name, logging.shown_level()))
    )
  return calls


def test_every_command_takes_verbose_and_quiet(called, uadjax):
  levels = {(): 'INFO', ('-v',): 'DEBUG', ('--verbose',): 'DEBUG', ('--quiet',): 'WARNING'}
  assert set(NEEDED) == set(commands.COMMANDS)
  for name, needed in NEEDED.items():
    for words, level in levels.items():
      assert uadjax(name, *needed, *words)[0] == 0, (name, words)
      assert called.pop() == (name, getattr(stdlib_logging, level))
    assert uadjax(name, *needed, '-v', '--quiet')[0] == 2, name
  assert not called


def test_other_names_of_commands_do_the_same(called, uadjax):
  for alias, name in commands.ALIASES.items():
    assert uadjax(alias, *NEEDED[name])[0] == 0
    assert called.pop()[0] == name


def test_every_misspelling_by_one_letter_gets_the_right_suggestion():
  group = typer.main.get_command(commands.app)
  context = group.make_context('uadjax', [], resilient_parsing=True)
  context.resilient_parsing = False
  names = {*commands.COMMANDS, *commands.ALIASES}
  for name in names:
    places = range(len(name))
    typos = {name[:i] + name[i + 1 :] for i in places}
    typos |= {name[:i] + name[i : i + 2][::-1] + name[i + 2 :] for i in places}
    for letter, i in itertools.product(string.ascii_lowercase, range(len(name) + 1)):
      typos |= {name[:i] + letter + name[i + 1 :], name[:i] + letter + name[i:]}
    for typo in typos - names:
      with pytest.raises(typer.TyperException) as caught:
        group.resolve_command(context, [typo])
      assert f"'{name}'" in caught.value.format_message(), typo


# For each command that writes something, outputs below a file F, where nothing can be.
UNWRITABLE = {
  'predict': [('M', 'I', '--save-path', 'F/out'), ('M', 'I', '--table', 'F')],
  'fit': [('D/disc', '--workdir', 'F/run')],
  'sweep': [('D', '--workdir', 'F')],
  'check': [('D/disc', '--output', 'F/out')],
  'export': [('M', '--format', 'stablehlo', '--output', 'F/model.stablehlo')],
  'report': [('M', 'D/disc', '--output', 'F/report.html')],
  'demo': [('F/demo',)],
  'weights': [('resnet18',)],  # Below the cache, which is below F.
}


def test_outputs_that_cannot_be_written_are_refused_before_an_image_is_read(
  model, images, drawn, uadjax, tmp_path, monkeypatch
):
  def fail(*args, **options):
    raise AssertionError('too late')

  monkeypatch.setattr(image_io, 'decode', fail)
  file = tmp_path / 'file'
  file.write_bytes(b'no folder')
  monkeypatch.setenv('UADJAX_CACHE', f'{file}/cache')
  # The output of `threshold` is the model itself; test_threshold.py has the case.
  assert {*UNWRITABLE, 'config', 'serve', 'threshold'} == {*commands.COMMANDS}
  places = {'M': model, 'I': images, 'D': drawn, 'F': file}
  cases = [(name, *words) for name, several in UNWRITABLE.items() for words in several]
  for case in [*cases, ('--get_pipeline_config', 'anomaly_detection', '--save_path', 'F')]:
    words = [re.sub(r'^[MIDF](?=/|$)', lambda m: str(places[m[0]]), word) for word in case]
    status, out, err = uadjax(*words)
    assert status == 2, (case, err)
    assert str(file) in err, case
    assert 'Errno' not in err, case
    assert out == '', case
  assert [*tmp_path.iterdir()] == [file]


def test_an_error_for_a_folder_of_categories_lists_them(model, drawn, uadjax):
  for words in (('fit', drawn), ('check', drawn), ('report', model, drawn)):
    status, _, err = uadjax(*words)
    assert status == 2
    assert re.search(r"contains categories\. Choose one with --category: .*'disc'", err), words


@pytest.mark.parametrize('has_bars', [False, True])
def test_progress_never_gets_into_json(model, images, drawn, uadjax, monkeypatch, has_bars):
  monkeypatch.setattr(progress, 'is_interactive', lambda: has_bars)
  monkeypatch.setattr(progress, '_LINE_INTERVAL_S', 0)
  monkeypatch.setattr(progress, '_LINE_INTERVAL_SHARE', 0)
  monkeypatch.setattr(curves, 'draw', lambda folder, data: None)
  fit = ['fit', drawn, '--category=disc', '--model=padim', '--workdir=run']
  small = [*small_runs.SMALL, *small_runs.DETECTOR_FLAGS['padim']]
  fit += [f'--override={flag.removeprefix("--config.")}' for flag in small]
  for words in (
    ('predict', model, images, '--no-save'),
    ('check', drawn, '--category=disc'),
    ('report', model, drawn, '--category=disc'),
    fit,
  ):
    status, out, err = uadjax(*words, '--json', '-v')
    assert status == 0, err
    assert all(isinstance(value, dict) for value in objects(out))
    assert has_bars or ' of ' in err, words


def test_each_label_has_a_sign_of_its_own():
  signs = result_text.SIGNS
  assert len({sign for sign, _ in signs.values()}) == len(signs)


def process(*words, **more):
  """The command in a process of its own."""
  environment = {
    **os.environ,
    'JAX_NUM_CPU_DEVICES': '8',  # As here, so that what is compiled here is not compiled again.
    **more.pop('env', {}),
  }
  streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **more}
  code = [sys.executable, '-c', CODE, *map(str, words)]
  return subprocess.Popen(code, text=True, env=environment, **streams)


def test_help_version_and_completion_import_neither_jax_nor_tensorflow():
  code = """
import os, sys
from uadjax import cli
print(cli.main(['--version']), cli.main(['--help']))
os.environ |= {'_UADJAX_COMPLETE': 'complete_bash', 'COMP_CWORD': '4'}
os.environ['COMP_WORDS'] = 'uadjax predict MODEL --device g'
try:
  cli.main([])
except SystemExit:
  pass
print(sorted({'jax', 'numpy', 'tensorflow'} & sys.modules.keys()))
"""
  completed = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  lines = completed.stdout.splitlines()
  assert lines[0].startswith('uadjax ')
  assert '0 0' in lines
  assert [line for line in lines if line.startswith('gpu')] == ['gpu', 'gpu:0', 'gpu:0,1']
  assert lines[-1] == '[]'


def test_a_reader_that_leaves_is_no_failure(model, images):
  with process('predict', model, *[images] * 20, '--json', '--no-save') as reading:
    assert json.loads(reading.stdout.readline())['label']
    reading.stdout.close()
    stderr = reading.stderr.read()
  assert reading.returncode == 128 + signal.SIGPIPE
  assert stderr == ''


@pytest.mark.parametrize(
  'words',
  [('--help',), ('config', 'seed'), ('predict', '--json'), ('config', '--nosuch', '--json')],
)
def test_a_full_disk_behind_stdout_is_one_message(words, model, images):
  if not Path('/dev/full').exists():
    pytest.skip('needs /dev/full')
  words = ('predict', model, images, '--no-save', '--json') if 'predict' in words else words
  with Path('/dev/full').open('w') as full, process(*words, stdout=full) as stopped:
    stderr = stopped.stderr.read()
  assert stopped.returncode == 1
  assert stderr == 'Error: standard output: No space left on device\n'


@pytest.fixture(scope='module')
def many(images, tmp_path_factory):
  folder = tmp_path_factory.mktemp('many')
  for number in range(300):
    os.link(images / 'good' / '000.png', folder / f'{number:03d}.png')
  return folder


@pytest.mark.parametrize(
  'number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupted_command_leaves_complete_files(model, many, tmp_path, number):
  with process('predict', model, many, '--save-path', tmp_path) as stopped:
    first = stopped.stdout.readline()
    stopped.send_signal(number)
    out, err = stopped.stdout.read(), stopped.stderr.read()
  assert stopped.returncode == 128 + number
  assert 'Traceback' not in err
  (num_reported,) = map(int, re.findall(rf'{number.name}\. The first (\d+) of 300 images', err))
  lines = [line for line in (first + out).splitlines() if '.png' in line]
  # The last may be counted, but not yet printed.
  assert num_reported - 1 <= len(lines) <= num_reported < 300
  saved = sorted(path.name for path in tmp_path.iterdir())
  assert not [name for name in saved if name.startswith('.')]
  for image in range(num_reported):
    assert f'{image:03d}_res.png' in saved
  for path in tmp_path.glob('*.json'):
    assert json.loads(path.read_text())['label']


@pytest.mark.parametrize(
  'terminal', ['xterm-256color', pytest.param('dumb', marks=pytest.mark.slow)]
)
def test_progress_bars_are_drawn_on_terminals_only(model, images, terminal):
  ours, theirs = pty.openpty()
  words = ('predict', model, *[images] * 4, '--json', '--no-save')
  environment = {'TERM': terminal, 'NO_COLOR': '1'}
  with process(*words, stderr=theirs, env=environment) as command:
    os.close(theirs)
    out = command.stdout.read()
    terminal_output = b''
    try:
      while piece := os.read(ours, 4096):
        terminal_output += piece
    except OSError:  # How Linux says that the other end was closed.
      pass
  os.close(ours)
  assert command.returncode == 0
  assert len(objects(out)) == 20
  assert ('20/20' in terminal_output.decode()) == (terminal != 'dumb')
  assert b'\x1b[3' not in terminal_output  # No color.
  assert terminal != 'dumb' or b'\x1b' not in terminal_output
