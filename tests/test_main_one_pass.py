"""PaDiM, PatchCore and SubspaceAD see every image once: extension, and independence of batches."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest
import small_runs
from small_runs import arrays, manifest, result, run

from uadjax.model import array_file, model_dir

PATCHES = 8 * 12  # Of an image, on the grid of the first stage.
RATIO = 0.125
HALF = small_runs.TRAIN // 2
NAMES = ('padim', 'patchcore', pytest.param('subspace', marks=pytest.mark.slow))


@pytest.fixture(scope='session')
def halves(once, drawn):
  """The good images once more, as the categories 'early' and 'late'."""

  def share_out(root):
    for path in sorted((drawn / 'disc' / 'train' / 'good').iterdir()):
      half = root / ('early' if int(path.stem) < HALF else 'late') / 'train' / 'good'
      half.mkdir(parents=True, exist_ok=True)
      shutil.copy(path, half)

  return once('halves', share_out)


def flags(name, root, category='disc'):
  return (*small_runs.flags(name, root, category), small_runs.NO_EVALUATION)


def scores(workdir):
  return {tuple(Path(row['path']).parts[-2:]): float(row['score'])
          for row in small_runs.table(workdir / 'scores.csv')}  # fmt: skip


@pytest.fixture(scope='session')
def early(trained, halves):
  """The run over the early half."""

  def workdir(name):
    where = f'--config.data.root={halves}', '--config.data.category=early'
    return trained(name, *where, small_runs.NO_EVALUATION)

  return workdir


@pytest.fixture(scope='session')
def extended(trained, halves, early):
  """The late half after the early one."""

  def workdir(name, *more):
    where = f'--config.data.root={halves}', '--config.data.category=late', small_runs.NO_EVALUATION
    return trained(name, *where, f'--config.fit.extend={early(name) / "model"}', *more)

  return workdir


@pytest.mark.parametrize('name', NAMES)
def test_thresholds_come_from_all_images_each_left_out(trained, name):
  limits = manifest(trained(name))['thresholds']
  assert limits['num_normals'] == small_runs.TRAIN
  assert limits['expected_false_alarm_rate'] == pytest.approx(1 / (small_runs.TRAIN + 1))


def test_the_bank_has_its_share_of_all_patches(trained):
  report = result(trained('patchcore'))
  bank = arrays(trained('patchcore'))['memory_bank/rows']
  assert len(bank) == report['summary']['bank_rows'] == RATIO * small_runs.TRAIN * PATCHES
  assert report['summary']['covering_radius'] > 0


# Quickly: of a split run its calibration scores, in test_mesh.py.
@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_scores_do_not_depend_on_batches_nor_devices(trained, name):
  workdir = trained(name)
  other_workdir = trained(name, '--config.fit.batch_size=7', '--config.mesh.data=8')
  want = scores(workdir)
  assert len(set(want.values())) == len(want) == 9
  for defect, score in scores(other_workdir).items():
    assert score == pytest.approx(want[defect], rel=1e-4)
  for key in ('image_threshold', 'pixel_threshold'):
    limit = manifest(workdir)['thresholds'][key]
    assert manifest(other_workdir)['thresholds'][key] == pytest.approx(limit, rel=1e-3)


def test_padim_extended_is_padim_fitted_on_all(trained, extended):
  whole, later = trained('padim'), extended('padim')
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
  assert manifest(later)['summary'] == {'images': small_runs.TRAIN}
  assert manifest(later)['image_statistics'] == manifest(whole)['image_statistics']
  drift = result(later)['drift']
  assert (drift['images_before'], drift['images_after']) == (HALF, small_runs.TRAIN)
  assert drift['mean_shift'] > 0


@pytest.mark.slow  # Quickly: in test_padim.py.
def test_padim_keeps_its_projection_whatever_the_seed(early, extended):
  key = 'feature_extractor/projection'
  other = extended('padim', '--config.seed=4')
  np.testing.assert_array_equal(arrays(other)[key], arrays(early('padim'))[key])


@pytest.mark.slow
def test_patchcore_extended_has_its_share_of_all_patches(early, extended):
  before, later = early('patchcore'), extended('patchcore')
  drift = result(later)['drift']
  assert (
    drift['bank_rows_before'] == len(arrays(before)['memory_bank/rows']) == HALF * RATIO * PATCHES
  )
  assert (
    drift['bank_rows_after']
    == len(arrays(later)['memory_bank/rows'])
    == small_runs.TRAIN * RATIO * PATCHES
  )
  assert 0 < drift['share_retained'] <= 1
  assert result(later)['summary']['images'] == small_runs.TRAIN
  assert manifest(later)['thresholds']['num_normals'] == small_runs.TRAIN
  image = np.load(later / 'state' / 'image_id.npy')
  assert set(image.tolist()) <= set(range(small_runs.TRAIN))
  assert (image < HALF).sum() == pytest.approx(drift['share_retained'] * drift['bank_rows_before'])


@pytest.mark.parametrize('name', ['padim', pytest.param('patchcore', marks=pytest.mark.slow)])
def test_an_extended_run_tells_by_how_much_it_moved(early, extended, name):
  before, later = early(name), extended(name)
  drift = result(later)['drift']
  for key in ('image_threshold', 'pixel_threshold'):
    assert drift[f'{key}_before'] == manifest(before)['thresholds'][key]
    assert drift[f'{key}_after'] == manifest(later)['thresholds'][key]
  assert 'Drift: ' in (later / 'train.log').read_text()


def test_a_run_is_extended_in_its_own_folder(early, extended, halves, tmp_path):
  workdir = shutil.copytree(early('padim'), tmp_path / 'own')
  more = (f'--config.fit.extend={workdir / "model"}', '--config.fit.overwrite=true')
  assert run(*flags('padim', halves, 'late'), f'--workdir={workdir}', *more) == 0
  assert small_runs.contents(workdir / 'state') == small_runs.contents(extended('padim') / 'state')
  before = manifest(early('padim'))['thresholds']['image_threshold']
  assert result(workdir)['drift']['image_threshold_before'] == before


OTHER_KINDS = {
  'padim': (
    ('detector.channels=8', 'detector.channels', ('8', '9')),
    ('data.ops=resize(40)', 'data.ops', ('resize(40)', 'resize(32, 48)')),
    ('backbone.weights=random', 'backbone.name', ('resnet18', 'compact')),
  ),
  'patchcore': (('detector.ratio=0.5', 'detector.ratio', ('0.5', '0.125')),),
}


@pytest.mark.parametrize('name', ['padim', pytest.param('patchcore', marks=pytest.mark.slow)])
def test_extending_with_differing_settings_is_refused(name, early, halves, tmp_path, capfd):
  for number, (word, key, values) in enumerate(OTHER_KINDS[name]):
    more = (f'--config.fit.extend={early(name) / "model"}', f'--config.{word}')
    workdir = tmp_path / str(number)
    capfd.readouterr()  # Of the earlier run.
    assert run(*flags(name, halves, 'late'), f'--workdir={workdir}', *more) == 2, word
    message = capfd.readouterr().err
    assert message.startswith(f'ConfigError: {key} is '), (word, message)
    assert all(value in message for value in values), (word, message)
    assert f'--config.{key}={values[1]}' in message, (word, message)
    assert not workdir.exists(), word


def test_a_detector_is_not_extended_by_another(early, halves, tmp_path):
  more = (f'--config.fit.extend={early("padim") / "model"}', f'--workdir={tmp_path}')
  assert run(*flags('patchcore', halves, 'late'), *more) == 2
  assert "detector.name is 'patchcore'" in result(tmp_path)['err_msg']


def test_extending_a_model_without_its_state_is_refused(early, halves, tmp_path, capfd):
  """Refused before images are checked and the work directory is made."""
  shutil.copytree(early('padim') / 'model', tmp_path / 'model')
  more = (f'--config.fit.extend={tmp_path / "model"}', f'--workdir={tmp_path / "out"}')
  assert run(*flags('padim', halves, 'late'), *more) == 1
  message = capfd.readouterr().err
  assert str(tmp_path / 'state') in message
  assert '--config.fit.extend' in message
  assert not (tmp_path / 'out').exists()


def test_the_backbone_must_have_the_same_weights(early, halves, tmp_path):
  before = shutil.copytree(early('padim'), tmp_path / 'early')
  manifest_content = manifest(before)
  manifest_content['weights'] |= {'source': 'elsewhere.pth', 'sha256': 'f' * 64}
  (before / 'model' / 'manifest.json').write_text(json.dumps(manifest_content))
  more = (f'--config.fit.extend={before / "model"}', f'--workdir={tmp_path}')
  assert run(*flags('padim', halves, 'late'), *more) == 2
  message = result(tmp_path)['err_msg']
  assert 'embedded in uadjax' in message
  assert 'elsewhere.pth' in message
  assert '--config.backbone.weights' in message


@pytest.mark.parametrize('name', NAMES)
def test_settings_of_descent_are_refused(drawn, name, tmp_path, capfd):
  for word in ('fit.steps=5', 'fit.epochs=2', 'fit.held_out=0.2', 'fit.resume=latest'):
    workdir = tmp_path / word
    assert run(*flags(name, drawn), f'--workdir={workdir}', f'--config.{word}') == 2, word
    message = capfd.readouterr().err
    assert message.startswith(f'ConfigError: {word.partition("=")[0]} does not apply'), message
    assert '--config.fit.extend' in message, word
    assert not workdir.exists()


def test_stfpm_is_not_extended(early, drawn, tmp_path):
  more = (f'--config.fit.extend={early("padim") / "model"}', f'--workdir={tmp_path}')
  assert run(*flags('stfpm', drawn), *more) == 2
  message = result(tmp_path)['err_msg']
  assert 'PaDiM, PatchCore and SubspaceAD' in message
  assert '--config.fit.resume=latest' in message
  assert not (tmp_path / 'model').exists()


@pytest.mark.slow
def test_a_bank_with_little_room_is_reduced_on_the_way(trained, drawn, tmp_path):
  """Room for six images of twelve."""
  short = ('--config.fit.batch_size=2', '--config.detector.max_bytes=1')
  assert run(*flags('patchcore', drawn), f'--workdir={tmp_path}', *short) == 2
  message = result(tmp_path)['err_msg']
  four = int(message.partition('at least ')[2].split()[0])
  short = (*short[:1], f'--config.detector.max_bytes={four * 6 // 4}')
  assert run(*flags('patchcore', drawn), f'--workdir={tmp_path}', *short) == 0
  learned = result(tmp_path)['summary']
  assert learned['images'] == small_runs.TRAIN
  assert learned['bank_rows'] == RATIO * small_runs.TRAIN * PATCHES
  # Selections of selections: everything is covered, if not as tightly.
  assert learned['covering_radius'] > result(trained('patchcore'))['summary']['covering_radius']
  image = np.load(tmp_path / 'state' / 'image_id.npy')
  assert len(set(image.tolist())) > 6
  assert set(image.tolist()) <= set(range(small_runs.TRAIN))


@pytest.mark.parametrize(
  ('module', 'where'),
  [
    (model_dir, 'save_manifest'),
    pytest.param(array_file, 'save_arrays', marks=pytest.mark.slow),
  ],
)
def test_a_run_that_fails_leaves_nothing_half_written(
  module, where, trained, drawn, tmp_path, monkeypatch
):
  """Neither where nothing was, nor where a whole run is written over."""

  def full(*args):
    raise OSError('No space left on device')

  finished = trained('padim')
  fresh, over = tmp_path / 'fresh', shutil.copytree(finished, tmp_path / 'over')
  monkeypatch.setattr(module, where, full)
  for workdir in (fresh, over):
    again = f'--workdir={workdir}', '--config.fit.overwrite=true'
    assert run(*flags('padim', drawn), *again) == 1
    assert 'No space left' in result(workdir)['err_msg']
  names = {path.name for path in fresh.iterdir()}
  assert names == {'config.yaml', 'train.log', 'train_result.json'}
  for folder in ('model', 'state'):
    assert small_runs.contents(over / folder) == small_runs.contents(finished / folder)
