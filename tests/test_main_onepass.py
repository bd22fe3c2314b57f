"""PaDiM and PatchCore on drawn images, through the front door; small enough to take seconds.

Two stages at 32 pixels with random weights: what is tested is the machinery, not the detection.
"""

import csv
import json
from pathlib import Path
import shutil

import numpy as np
import pytest
import safetensors.numpy

from uadjax import bundle, main
from uadjax.data import demo

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
TRAIN = 12
PATCHES = 8 * 8  # Of an image, on the grid of the first stage.
RATIO = 0.125
SMALL = (
  '--config.data.ops=resize(32)',
  '--config.detector.layers=layer1,layer2',
  '--config.backbone.weights=random',
  '--config.fit.batch_size=4',
  '--config.mesh.data=1',
  '--config.evaluate.batch_size=5',
  '--config.evaluate.save_pictures=2',
)
OPTIONS = {
  'padim': ('--config.detector.channels=8',),
  'patchcore': (f'--config.detector.ratio={RATIO}',),
}
NAMES = sorted(OPTIONS)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """The category 'disc', and its good images once more as the categories 'early' and 'late'."""
  root = tmp_path_factory.mktemp('drawn')
  demo.draw(root, size=48, train=TRAIN, test_good=3, test_defect=1)
  for path in sorted((root / 'disc' / 'train' / 'good').iterdir()):
    half = root / ('early' if int(path.stem) < TRAIN // 2 else 'late') / 'train' / 'good'
    half.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, half)
  return root


def run(*argv):
  return main.main([str(word) for word in argv])


def flags(name, root, category='disc'):
  where = (f'--config.data.root={root}', f'--config.data.category={category}')
  return (f'--config={CONFIGS / name}.py', *SMALL, *OPTIONS[name], *where)


def result(workdir, mode='train'):
  return json.loads((workdir / f'{mode}_result.json').read_text())


def manifest(workdir):
  return json.loads((workdir / 'model' / 'manifest.json').read_text())


def arrays(workdir):
  return safetensors.numpy.load_file(workdir / 'model' / 'fitted.safetensors')


def scores(workdir):
  rows = csv.DictReader((workdir / 'scores.csv').read_text().splitlines())
  return {Path(row['path']).parent.name: float(row['score']) for row in rows}


def contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


class Runs:
  """Runs that several tests look at, made when the first of them asks."""

  def __init__(self, folder, root):
    self.folder, self.root, self.made = folder, root, {}

  def __call__(self, name, category='disc', **options):
    key = (name, category, *sorted(options.items()))
    if key not in self.made:
      workdir = self.folder / str(len(self.made))
      more = [f'--config.{option.replace("__", ".")}={value}' for option, value in options.items()]
      assert run(*flags(name, self.root, category), f'--workdir={workdir}', *more) == 0
      self.made[key] = workdir
    return self.made[key]


@pytest.fixture(scope='module')
def runs(tmp_path_factory, root):
  return Runs(tmp_path_factory.mktemp('runs'), root)


def extended(runs, name):
  """The late half of the good images after the early one."""
  return runs(name, 'late', fit__extend=runs(name, 'early') / 'model')


@pytest.mark.parametrize(('name', 'title'), [('padim', 'PaDiM'), ('patchcore', 'PatchCore')])
def test_training_leaves_what_the_contract_promises(runs, name, title):
  workdir = runs(name)
  report, told = result(workdir), manifest(workdir)
  assert report['done_flag'] is True
  assert report['model_name'] == told['model_name'] == title
  assert report['models'] == {'best': {'score': None, 'checkpoint': None, 'model_dir': 'model'}}
  assert report['learned'] == told['facts']
  assert told['facts']['images'] == TRAIN
  assert report['timing'].keys() == {
    'fit_s', 'calibrate_s', 'evaluate_s', 'images_per_s', 'peak_memory_mb',
  }  # fmt: skip
  assert all(value > 0 for value in report['timing'].values())
  assert 0 <= report['metrics']['image_auroc'] <= 1
  assert 0 <= report['metrics']['pixel_auroc'] <= 1
  assert report['weights']['name'] == 'random'
  assert 'moved' not in report
  assert f'step {TRAIN // 4}/{TRAIN // 4}' in (workdir / report['train_log']).read_text()
  there = {path.name for path in workdir.iterdir()}
  assert {'model', 'state', 'pictures', 'scores.csv', 'disc.csv', 'config.yaml'} <= there
  assert not any(name.startswith('.') for name in there)  # Nor what was only for a while.
  assert 'checkpoints' not in there


@pytest.mark.parametrize('name', NAMES)
def test_thresholds_come_from_all_images_each_left_out(runs, name):
  limits = manifest(runs(name))['thresholds']
  assert limits['normals'] == TRAIN
  assert limits['expected'] == pytest.approx(1 / (TRAIN + 1))


def test_the_bank_has_its_share_of_all_patches(runs):
  report = result(runs('patchcore'))
  bank = arrays(runs('patchcore'))['bank/rows']
  assert len(bank) == report['learned']['bank_rows'] == RATIO * TRAIN * PATCHES
  assert report['learned']['covering_radius'] > 0


@pytest.mark.parametrize('name', NAMES)
def test_evaluating_again_gives_the_same_numbers(runs, name, tmp_path):
  more = ('--config.mode=evaluate', f'--config.evaluate.model_dir={runs(name) / "model"}')
  assert run(f'--config={CONFIGS / "stfpm.py"}', f'--workdir={tmp_path}', *SMALL, *more) == 0
  assert result(tmp_path, 'evaluate')['metrics'] == result(runs(name))['metrics']
  assert scores(tmp_path) == scores(runs(name))


@pytest.mark.parametrize('name', NAMES)
def test_predicting_agrees_with_evaluating(runs, root, name, tmp_path):
  test = root / 'disc' / 'test' / 'spot'
  more = (f'--config.predict.model_dir={runs(name) / "model"}', f'--config.predict.input={test}')
  config = f'--config={CONFIGS / name}.py'
  assert run(config, f'--workdir={tmp_path}', '--config.mode=predict', *more) == 0
  (one,) = result(tmp_path, 'predict')['results']
  assert one['score'] == pytest.approx(scores(runs(name))['spot'], rel=1e-5)
  threshold = manifest(runs(name))['thresholds']['image']
  assert one['threshold'] == threshold
  assert one['label'] == ('NG' if one['score'] > threshold else 'OK')


@pytest.mark.parametrize('name', NAMES)
def test_scores_do_not_depend_on_batches_nor_devices(runs, name):
  one, other = runs(name), runs(name, fit__batch_size=7, mesh__data=8)
  want = scores(one)
  assert len(set(want.values())) == len(want) == 4
  for defect, score in scores(other).items():
    assert score == pytest.approx(want[defect], rel=1e-4)
  for key in ('image', 'pixel'):
    limit = manifest(one)['thresholds'][key]
    assert manifest(other)['thresholds'][key] == pytest.approx(limit, rel=1e-3)


def test_padim_extended_is_padim_fitted_on_all(runs):
  whole, later = runs('padim'), extended(runs, 'padim')
  want = arrays(whole)
  got = arrays(later)
  assert got.keys() == want.keys()
  for key, array in want.items():
    np.testing.assert_allclose(
      got[key], array, rtol=1e-3, atol=1e-3 * float(np.abs(array).max()), err_msg=key
    )
  # All old images are still known by their embeddings: thresholds are those of all, too.
  for key, value in manifest(whole)['thresholds'].items():
    close = value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
    assert manifest(later)['thresholds'][key] == close, key
  assert manifest(later)['facts'] == {'images': TRAIN}
  moved = result(later)['moved']
  assert (moved['images_before'], moved['images_after']) == (TRAIN // 2, TRAIN)
  assert moved['mean_shift'] > 0


def test_padim_keeps_its_projection_whatever_the_seed(runs):
  early = runs('padim', 'early')
  other = runs('padim', 'late', fit__extend=early / 'model', seed=4)
  key = 'embedder/projection'
  np.testing.assert_array_equal(arrays(other)[key], arrays(early)[key])


def test_patchcore_extended_has_its_share_of_all_patches(runs):
  early, later = runs('patchcore', 'early'), extended(runs, 'patchcore')
  moved = result(later)['moved']
  assert moved['bank_rows_before'] == len(arrays(early)['bank/rows']) == 6 * RATIO * PATCHES
  assert moved['bank_rows_after'] == len(arrays(later)['bank/rows']) == 12 * RATIO * PATCHES
  assert 0 < moved['share_kept'] <= 1
  assert result(later)['learned']['images'] == TRAIN
  assert manifest(later)['thresholds']['normals'] == TRAIN
  image = np.load(later / 'state' / 'image.npy')
  assert set(image.tolist()) <= set(range(TRAIN))
  assert (image < 6).sum() == pytest.approx(moved['share_kept'] * moved['bank_rows_before'])


@pytest.mark.parametrize('name', NAMES)
def test_an_extended_run_tells_by_how_much_it_moved(runs, name):
  early, later = runs(name, 'early'), extended(runs, name)
  moved = result(later)['moved']
  for key in ('image', 'pixel'):
    assert moved[f'{key}_threshold_before'] == manifest(early)['thresholds'][key]
    assert moved[f'{key}_threshold_after'] == manifest(later)['thresholds'][key]
  assert 'Moved: ' in (later / 'train.log').read_text()


def test_a_run_is_extended_in_its_own_folder(runs, root, tmp_path):
  workdir = tmp_path / 'own'
  shutil.copytree(runs('padim', 'early'), workdir)
  more = (f'--config.fit.extend={workdir / "model"}', '--config.fit.overwrite=true')
  assert run(*flags('padim', root, 'late'), f'--workdir={workdir}', *more) == 0
  assert contents(workdir / 'state') == contents(extended(runs, 'padim') / 'state')
  before = manifest(runs('padim', 'early'))['thresholds']['image']
  assert result(workdir)['moved']['image_threshold_before'] == before


@pytest.mark.parametrize(
  ('name', 'word', 'key', 'values'),
  [
    ('patchcore', 'detector.ratio=0.5', 'detector.ratio', ('0.5', '0.125')),
    ('padim', 'detector.channels=9', 'detector.channels', ('9', '8')),
    ('padim', 'data.ops=resize(40)', 'data.ops', ('resize(40)', 'resize(32)')),
    ('padim', 'backbone.name=resnet34', 'backbone.name', ('resnet34', 'resnet18')),
  ],
)
def test_what_extends_must_be_of_the_same_kind(
  runs, root, name, word, key, values, tmp_path, capfd
):
  more = (f'--config.fit.extend={runs(name, "early") / "model"}', f'--config.{word}')
  assert run(*flags(name, root, 'late'), f'--workdir={tmp_path}', *more) == 1
  said = capfd.readouterr().err
  assert 'Traceback' not in said
  message = result(tmp_path)['err_msg']
  assert message.startswith(f'{key} is ')
  assert all(value in message for value in values)
  assert f'--config.{key}={values[1]}' in message
  assert not (tmp_path / 'model').exists()


def test_a_detector_is_not_extended_by_another(runs, root, tmp_path):
  more = (f'--config.fit.extend={runs("padim", "early") / "model"}', f'--workdir={tmp_path}')
  assert run(*flags('patchcore', root, 'late'), *more) == 1
  assert "detector.name is 'patchcore'" in result(tmp_path)['err_msg']


def test_what_was_learned_must_be_there_to_be_extended(runs, root, tmp_path):
  shutil.copytree(runs('padim', 'early') / 'model', tmp_path / 'model')
  more = (f'--config.fit.extend={tmp_path / "model"}', f'--workdir={tmp_path / "out"}')
  assert run(*flags('padim', root, 'late'), *more) == 1
  message = result(tmp_path / 'out')['err_msg']
  assert str(tmp_path / 'state') in message
  assert 'fit.extend' in message


def test_the_backbone_must_have_the_same_weights(runs, root, tmp_path):
  early = tmp_path / 'early'
  shutil.copytree(runs('padim', 'early'), early)
  told = manifest(early)
  told['weights'] |= {'source': 'elsewhere.pth', 'sha256': 'f' * 64}
  (early / 'model' / 'manifest.json').write_text(json.dumps(told))
  more = (f'--config.fit.extend={early / "model"}', f'--workdir={tmp_path}')
  assert run(*flags('padim', root, 'late'), *more) == 1
  message = result(tmp_path)['err_msg']
  assert 'backbone.weights are random initialization' in message
  assert 'elsewhere.pth' in message


@pytest.mark.parametrize(
  'word', ['fit.steps=5', 'fit.epochs=2', 'fit.held_out=0.2', 'fit.resume=latest']
)
@pytest.mark.parametrize('name', NAMES)
def test_settings_of_descent_are_refused(root, name, word, tmp_path):
  assert run(*flags(name, root), f'--workdir={tmp_path}', f'--config.{word}') == 1
  message = result(tmp_path)['err_msg']
  assert message.startswith(word.partition('=')[0])
  assert 'sees every image once; leave it out' in message
  assert 'fit.extend' in message


def test_stfpm_is_not_extended(runs, root, tmp_path):
  words = (f'--config={CONFIGS / "stfpm.py"}', *SMALL, f'--config.data.root={root}')
  more = (f'--config.fit.extend={runs("padim") / "model"}', f'--workdir={tmp_path}')
  assert run(*words, '--config.data.category=disc', *more) == 1
  message = result(tmp_path)['err_msg']
  assert 'fit.extend is for PaDiM and PatchCore' in message
  assert 'fit.resume' in message
  assert not (tmp_path / 'model').exists()


def test_too_few_images_to_leave_one_out_are_refused(root, tmp_path):
  few = tmp_path / 'data' / 'few' / 'train' / 'good'
  few.mkdir(parents=True)
  for number in range(2):
    shutil.copy(root / 'disc' / 'train' / 'good' / f'{number:03d}.png', few)
  words = flags('patchcore', tmp_path / 'data', 'few')
  assert run(*words, f'--workdir={tmp_path}') == 1
  assert '2 good images to learn from; at least 3' in result(tmp_path)['err_msg']
  assert run(*words, f'--workdir={tmp_path}', '--config.check.enforce=false') == 1
  assert '2 good images are too few' in result(tmp_path)['err_msg']


def test_a_finished_run_is_written_over_only_when_asked(runs, root, tmp_path, capfd):
  workdir = tmp_path / 'copy'
  shutil.copytree(runs('padim'), workdir)
  before = contents(workdir / 'model'), contents(workdir / 'state'), result(workdir)
  words = (*flags('padim', root), f'--workdir={workdir}', '--config.seed=4')
  assert run(*words) == 1
  said = capfd.readouterr().err
  assert 'holds a finished run' in said
  assert '--config.fit.overwrite=true' in said
  assert (contents(workdir / 'model'), contents(workdir / 'state'), result(workdir)) == before
  assert run(*words, '--config.fit.overwrite=true') == 0
  projection = arrays(workdir)['embedder/projection']
  assert (projection != arrays(runs('padim'))['embedder/projection']).any()
  np.testing.assert_array_equal(np.load(workdir / 'state' / 'projection.npy'), projection)


def test_a_bank_with_little_room_is_reduced_on_the_way(runs, root, tmp_path):
  """Room for six images of twelve."""
  short = ('--config.fit.batch_size=2', '--config.detector.max_bytes=1')
  assert run(*flags('patchcore', root), f'--workdir={tmp_path}', *short) == 1
  message = result(tmp_path)['err_msg']
  four = int(message.partition('at least ')[2].split()[0])
  short = (*short[:1], f'--config.detector.max_bytes={four * 6 // 4}')
  assert run(*flags('patchcore', root), f'--workdir={tmp_path}', *short) == 0
  learned = result(tmp_path)['learned']
  assert learned['images'] == TRAIN
  assert learned['bank_rows'] == RATIO * TRAIN * PATCHES
  # Selections of selections: everything is covered, if not as tightly.
  assert learned['covering_radius'] > result(runs('patchcore'))['learned']['covering_radius']
  image = np.load(tmp_path / 'state' / 'image.npy')
  assert len(set(image.tolist())) > 6
  assert set(image.tolist()) <= set(range(TRAIN))


@pytest.mark.parametrize('where', ['save_manifest', 'save_arrays'])
def test_a_run_that_fails_leaves_nothing_half_written(root, tmp_path, monkeypatch, where):
  def full(*args):
    raise OSError('No space left on device')

  monkeypatch.setattr(bundle, where, full)
  assert run(*flags('padim', root), f'--workdir={tmp_path}') == 1
  assert 'No space left' in result(tmp_path)['err_msg']
  there = {path.name for path in tmp_path.iterdir()}
  assert there == {'config.yaml', 'train.log', 'train_result.json'}
  monkeypatch.undo()
  again = (*flags('padim', root), f'--workdir={tmp_path}', '--config.evaluate.do_eval=false')
  assert run(*again) == 0
  whole = (tmp_path / 'model' / 'manifest.json').read_bytes()
  monkeypatch.setattr(bundle, where, full)
  assert run(*again, '--config.fit.overwrite=true') == 1
  assert (tmp_path / 'model' / 'manifest.json').read_bytes() == whole
  assert (tmp_path / 'state' / 'state.json').is_file()


def test_a_group_gets_a_run_each_and_a_mean_row(root, tmp_path):
  group = tmp_path / 'data'
  group.mkdir()
  for name in ('one', 'two'):
    (group / name).symlink_to(root / 'disc')
  workdir = tmp_path / 'out'
  assert run(*flags('patchcore', group, 'all'), f'--workdir={workdir}') == 0
  rows = list(csv.DictReader((workdir / 'all.csv').read_text().splitlines()))
  assert [row['category'] for row in rows] == ['one', 'two', 'mean']
  for key in ('Image_AUROC', 'Pixel_AUROC'):
    numbers = [float(row[key]) for row in rows]
    assert numbers[2] == pytest.approx((numbers[0] + numbers[1]) / 2)
  for name in ('one', 'two'):
    assert result(workdir / name)['done_flag']
    assert {'model', 'state'} <= {path.name for path in (workdir / name).iterdir()}
