"""Data sets of every layout through the front door: checked, converted, split, learned, judged."""

import json
from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest
import small_runs
from small_runs import DEFECTS, GOOD, manifest, result, run, table, TRAIN

from uadjax.data import demo, image_io

METRICS = (
  'image_auroc', 'image_ap', 'image_f1_max', 'pixel_auroc', 'pixel_ap', 'pixel_f1_max', 'au_pro',
  'au_pro_05',
)  # fmt: skip
AT_THRESHOLD = {
  'counts', 'image_precision', 'image_recall', 'image_f1', 'false_alarm_rate', 'miss_rate',
  'pixel_precision', 'pixel_recall', 'pixel_f1', 'iou', 'dice', 'accuracy', 'kappa',
}  # fmt: skip
STEPS = '--config.fit.steps=2'  # Of STFPM; the last of a key counts.


def flags(name, directory, layout='auto'):
  words = (*small_runs.flags(name, directory, ''), f'--config.data.layout={layout}')
  return (*words, STEPS) if name == 'stfpm' else words


def check(directory, workdir, *more, layout='auto'):
  """The report of a check, whose exit status says whether the dataset passed."""
  words = (f'--config={small_runs.CONFIGS / "stfpm.py"}', f'--config.data.root={directory}')
  mode = ('--config.mode=check_dataset', f'--config.data.layout={layout}')
  status, report = (
    run(*words, *mode, *more, f'--workdir={workdir}'),
    result(workdir, 'check_dataset'),
  )
  assert status == (0 if report['check_pass'] else 1)
  return report


def refused(name, directory, workdir, *more):
  """The error message of a training run that is refused and fits nothing."""
  workdir.mkdir(exist_ok=True)  # A run that is refused at once does not create it.
  status, summary = run(*flags(name, directory), *more, f'--workdir={workdir}'), result(workdir)
  assert status == (2 if summary['err_type'] in small_runs.USAGE_ERRORS else 1)
  assert summary['done_flag'] is False
  assert not (workdir / 'model').exists()
  return summary['err_msg']


def converting(target, source='MVTec_AD'):
  return (
    '--config.check.convert.enable=true',
    f'--config.check.convert.src_dataset_type={source}',
    f'--config.check.convert.output={target}',
  )


@pytest.fixture(scope='module')
def root(drawn, tmp_path_factory):
  """One drawing in every layout: the folders 'disc', 'bins', 'plain' and 'listed'."""
  root = tmp_path_factory.mktemp('layouts')
  shutil.copytree(drawn / 'disc', root / 'disc')
  shutil.copytree(root / 'disc/train/good', root / 'plain')
  shutil.copytree(root / 'disc/train/good', root / 'bins/good')
  for defect in DEFECTS:
    shutil.copytree(root / 'disc/test' / defect, root / 'bins' / defect)
  before = small_runs.contents(root / 'disc')
  splitting = ('--config.check.split.enable=true',)
  report = check(root / 'disc', root / 'checked', *converting(root / 'listed'), *splitting)
  assert report['check_pass']
  assert small_runs.contents(root / 'disc') == before
  return root


LAYOUTS = {'disc': 'mvtec', 'bins': 'folder', 'plain': 'folder', 'listed': 'seglist'}
# Each layout becomes records, and a detector sees only those, so one detector per layout suffices.
LEARNER = {'listed': 'padim', 'bins': 'stfpm', 'plain': 'padim'}


@pytest.fixture(scope='module')
def learned(tmp_path_factory, root):
  """The work directory of a run over a dataset, fitted when a test first asks."""
  folder, status_by_dataset = tmp_path_factory.mktemp('runs'), {}

  def workdir(data):
    run_dir = folder / data
    if data not in status_by_dataset:
      words = flags(LEARNER[data], root / data, LAYOUTS[data])
      status_by_dataset[data] = run(*words, f'--workdir={run_dir}')
    assert status_by_dataset[data] == 0
    return run_dir

  return workdir


def evaluated(model, directory, workdir, **options):
  words = (
    f'--config={small_runs.CONFIGS / "stfpm.py"}',
    '--config.mode=evaluate',
    *small_runs.SMALL,
  )
  more = (f'--config.evaluate.model_dir={model / "model"}', f'--config.data.root={directory}')
  assert run(*words, *more, f'--workdir={workdir}', **options) == 0
  return result(workdir, 'evaluate')


# The check.


@pytest.mark.parametrize(
  'data',
  ['disc', 'listed', *(pytest.param(data, marks=pytest.mark.slow) for data in ('bins', 'plain'))],
)
def test_a_check_leaves_what_the_contract_promises(root, tmp_path, data):
  report = check(root / data, tmp_path, layout=LAYOUTS[data])
  assert report['done_flag'] is True
  assert report['check_pass'] is True
  assert report['show_type'] == 'image'
  assert report['dataset_type'] == 'SegDataset'
  assert report['dataset_path'] == str(root / data)
  attributes = report['attributes']
  # Of the listed good images, a fifth of all fifteen is tested on.
  good = {'disc': GOOD, 'listed': (TRAIN + GOOD) // 5}.get(data, 0)
  defects = {} if data == 'plain' else dict.fromkeys(DEFECTS, 2)
  assert attributes['defects'] == defects
  assert attributes['train_samples'] == TRAIN
  assert attributes['val_samples'] == good + sum(defects.values())
  assert attributes['num_classes'] == 1
  samples = attributes['train_sample_paths'] + attributes['val_sample_paths']
  assert len(set(samples)) == len(samples) == min(TRAIN, 10) + min(attributes['val_samples'], 10)
  for name in (*samples, report['analysis']['histogram']):
    assert min(image_io.image_size(tmp_path / name)) > 100
  assert 'Check dataset passed !' in (tmp_path / 'check_dataset.log').read_text()


@pytest.fixture(scope='module')
def bad(root, tmp_path_factory):
  """A dataset with a problem in every folder."""
  data = tmp_path_factory.mktemp('bad') / 'disc'
  shutil.copytree(root / 'disc', data)
  (data / 'train/good/empty.png').touch()
  with Image.open(data / 'test/good/000.png') as image:
    image.save(data / 'test/good/cut.jpg')
  whole = (data / 'test/good/cut.jpg').read_bytes()
  (data / 'test/good/cut.jpg').write_bytes(whole[: len(whole) // 2])
  Image.fromarray(np.full((9, 8), 255, np.uint8)).save(data / 'ground_truth/spot/000_mask.png')
  shutil.copy(data / 'train/good/003.png', data / 'test/good/again.png')
  return data


ERRORS = {
  ('unreadable file', 'train/good/empty.png'),
  ('unreadable file', 'test/good/cut.jpg'),
  ('size mismatch', 'ground_truth/spot/000_mask.png'),
  ('duplicate in train and test', 'test/good/again.png'),
}


def test_a_check_reports_all_problems(bad, tmp_path):
  report = check(bad, tmp_path)
  assert report['done_flag'] is True
  assert report['check_pass'] is False
  errors = {(p['kind'], p['path']) for p in report['problems'] if p['severity'] == 'error'}
  assert errors == ERRORS
  assert (tmp_path / report['analysis']['problems']).is_file()
  assert 'Check dataset failed.' in (tmp_path / 'check_dataset.log').read_text()


def test_a_dataset_that_fails_the_check_is_not_learned_from(bad, tmp_path, capfd):
  message = refused('patchcore', bad, tmp_path)
  assert '--config.check.enforce=false' in message
  for _, path in ERRORS:
    assert str(bad / path) in message
  output = capfd.readouterr().err
  assert 'check.enforce' in output
  assert 'Traceback' not in output


def test_without_enforcement_the_usable_images_are_learned_from(bad, tmp_path):
  more = ('--config.check.enforce=false', f'--workdir={tmp_path}')
  assert run(*flags('padim', bad), *more) == 0
  outcome = result(tmp_path)
  assert outcome['summary']['images'] == TRAIN
  counts = outcome['metrics']['counts']
  assert (counts['good'], counts['defective']) == (GOOD, 6)
  assert counts['without_mask'] == 1  # For it does not fit.
  assert 'Check dataset failed.' in (tmp_path / 'train.log').read_text()


def test_a_bad_test_set_is_one_message_to_a_finished_model(trained, bad, tmp_path, capfd):
  more = (
    '--config.mode=evaluate',
    f'--config.evaluate.model_dir={trained("patchcore")}/model',
  )
  assert run(*flags('patchcore', bad), *more, f'--workdir={tmp_path}') == 1
  output = capfd.readouterr().err
  assert 'Traceback' not in output
  assert 'cut.jpg' in result(tmp_path, 'evaluate')['err_msg']


def test_listed_defects_are_never_learned_from(root, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(root / 'listed', data)
  defective = next(line for line in (data / 'val.txt').read_text().splitlines() if 'spot' in line)
  lines = (data / 'train.txt').read_text() + defective
  (data / 'train.txt').write_text(lines.replace('\n', '\r\n'), encoding='utf-8-sig')
  message = refused('patchcore', data, tmp_path / 'refused')
  assert 'shows a defect; move its line to val.txt' in message
  more = ('--config.check.enforce=false', '--config.evaluate.do_eval=false')
  assert run(*flags('padim', data), *more, f'--workdir={tmp_path / "run"}') == 0
  assert result(tmp_path / 'run')['summary']['images'] == TRAIN


def test_a_dataset_without_usable_images_is_refused_even_without_enforcement(tmp_path):
  for number in range(3):
    (tmp_path / 'data').mkdir(exist_ok=True)
    (tmp_path / f'data/{number}.png').touch()
  message = refused('padim', tmp_path / 'data', tmp_path, '--config.check.enforce=false')
  assert 'No usable training images remain' in message


def test_a_train_split_of_one_image_is_refused(root, tmp_path):
  (tmp_path / 'data').mkdir()
  shutil.copy(root / 'plain/000.png', tmp_path / 'data')
  message = refused('stfpm', tmp_path / 'data', tmp_path)
  assert '1 good training images; at least 3 are needed' in message


# Conversion and split.


def test_converted_good_images_are_shared_out_and_defects_tested_on(root):
  train, val = ((root / 'listed' / f'{split}.txt').read_text() for split in ('train', 'val'))
  assert len(train.splitlines()) == TRAIN
  assert len(val.splitlines()) == GOOD + 6
  assert all(line.startswith('images/good/') for line in train.splitlines())
  # As converted, before the split: MVTec AD's own test images were held out.
  backup = (root / 'listed/train.txt.bak').read_text()
  assert len(backup.splitlines()) == TRAIN
  assert 'images/good/test/' not in backup
  assert 'images/good/test/' in train  # But for a chance in thousands.


WRONG = [
  (converting(''), 'check.convert.output is not set'),
  (converting('converted', 'MVTecAD'), "'COCO'"),
  (converting('converted', ''), 'check.convert.src_dataset_type is not set'),
  (('--config.check.split.enable=true', '--config.data.layout=mvtec'), 'Only the layout seglist'),
  ((*converting('converted'), '--config.data.root='), 'data.root is not set'),
  ((*converting('converted'), '--config.data.mask=inverted'), '--config.data.mask=nonzero'),
  (('--config.check.split.enable=true', '--config.data.root='), 'data.root is not set'),
]


def test_failures_of_conversion_or_splitting_are_one_message(root, tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  for words, message in WRONG:
    run_flags = ('--config.mode=check_dataset', *words, f'--workdir={tmp_path / "run"}')
    assert run(*flags('padim', root / 'disc'), *run_flags) == 2, words
    output = capfd.readouterr().err
    assert message in output, (words, output)
    assert 'Traceback' not in output, words
    assert not [*tmp_path.iterdir()], words
  words = ('--config.mode=check_dataset', '--config.check.split.enable=true')
  assert run(*flags('padim', root / 'disc'), *words, f'--workdir={tmp_path / "run"}') == 1
  assert 'neither train.txt nor val.txt' in result(tmp_path / 'run', 'check_dataset')['err_msg']


# Fits and evaluations.


def test_a_model_is_fitted_and_evaluated_from_lists(learned):
  metrics = result(learned('listed'))['metrics']
  assert all(metrics[key] > 0.5 for key in METRICS if key.endswith('auroc'))  # Of chance.
  assert all(metrics[key] is not None for key in METRICS)
  assert metrics['counts']['good'] == GOOD
  assert metrics['counts']['defective'] == 6
  assert metrics['counts']['without_mask'] == 0
  assert set(metrics['at_threshold']['miss_rate']) == set(DEFECTS)


def test_metrics_that_need_masks_or_good_images_are_null_without_them(learned):
  workdir = learned('bins')
  metrics = result(workdir)['metrics']
  assert all(metrics[key] is None for key in METRICS)  # No good test images, no masks.
  assert metrics['counts']['without_mask'] == metrics['counts']['defective'] == 6
  assert set(metrics['at_threshold']['miss_rate']) == set(DEFECTS)
  assert metrics['at_threshold']['iou'] is None
  assert len(table(workdir / 'scores.csv')) == 6
  # STFPM learns from four fifths, and chooses its step by half of the rest.
  assert manifest(workdir)['thresholds']['num_normals'] == 1


def test_a_model_of_good_images_alone_predicts_others(learned, root, tmp_path):
  workdir = learned('plain')
  outcome = result(workdir)
  assert outcome['done_flag'] is True
  assert 'metrics' not in outcome
  assert not (workdir / 'curves').exists()
  limits = manifest(workdir)['thresholds']
  assert limits['num_normals'] == TRAIN
  more = (
    f'--config.predict.model_dir={workdir / "model"}',
    f'--config.predict.input={root / "disc/test"}',
  )
  config = f'--config={small_runs.CONFIGS / "stfpm.py"}'
  assert run(config, '--config.mode=predict', *more, f'--workdir={tmp_path}') == 0
  predictions = result(tmp_path, 'predict')['results']
  assert len(predictions) == GOOD + 6
  assert len({prediction['score'] for prediction in predictions}) == GOOD + 6
  for prediction in predictions:
    assert (prediction['label'] == 'NG') == (prediction['score'] > limits['image_threshold'])


def test_metrics_do_not_depend_on_the_layout(trained, root, tmp_path):
  """Only the order of the images differs. In a list, the mask determines the class."""
  model = trained('padim')
  check(root / 'disc', tmp_path, *converting(tmp_path / 'list'))
  ours = evaluated(model, root / 'disc', tmp_path)['metrics']
  theirs = evaluated(model, tmp_path / 'list', tmp_path)['metrics']
  for key in METRICS:
    assert theirs[key] == pytest.approx(ours[key], abs=1e-6), key
  assert theirs['counts'] == ours['counts']


def test_evaluating_leaves_what_the_contract_promises(trained, root, tmp_path):
  outcome = evaluated(trained('padim'), root / 'disc', tmp_path, draw_curves=True)
  assert outcome['done_flag'] is True
  metrics = outcome['metrics']
  assert {*METRICS, 'at_threshold'} <= metrics.keys()
  assert metrics['at_threshold'].keys() >= AT_THRESHOLD
  assert set(metrics['oracles']) == {'image_f1_max', 'pixel_f1_max'}
  assert outcome['weights'].keys() >= {'name', 'source', 'sha256'}
  assert outcome['per_category'] == {'disc': metrics}
  (row,) = table(tmp_path / 'disc.csv')
  assert row['category'] == 'disc'
  for title, key in (
    ('Image_AUROC', 'image_auroc'), ('Pixel_AUROC', 'pixel_auroc'), ('PRO_score', 'au_pro'),
  ):  # fmt: skip
    assert float(row[title]) == metrics[key]
  scores = table(tmp_path / 'scores.csv')
  assert {row['path'] for row in scores} == {
    str(path) for path in (root / 'disc/test').rglob('*.png')
  }
  curves = {path.stem for path in (tmp_path / 'curves').glob('*.png')}
  assert len(curves) >= 4  # ROC, PR, PRO, scores.
  assert curves == {path.stem for path in (tmp_path / 'curves').glob('*.svg')}
  assert len([*(tmp_path / 'pictures').iterdir()]) == 4


def test_a_model_of_another_product_is_noticed(trained, tmp_path):
  counts = {'train': 4, 'test_good': 12, 'test_defect': 1}
  options = {'categories': ('disc', 'fabric'), 'size': small_runs.SIDE}
  demo.write_dataset(tmp_path, **counts, **options)
  for category in options['categories']:
    workdir = tmp_path / f'run_{category}'
    outcome = evaluated(trained('padim'), tmp_path / category, workdir)
    report = json.loads((workdir / 'report.json').read_text())
    assert report['warnings'] == outcome['warnings']
    log = (workdir / 'evaluate.log').read_text()
    if category == 'disc':  # The model's own product.
      assert outcome['warnings'] == []
      assert 'other images' not in log
    else:
      (warning,) = outcome['warnings']
      assert warning['code'] == 'other_images'
      num_ng = outcome['metrics']['at_threshold']['counts']['good']['ng']
      assert warning['message'].startswith(f'{num_ng} of 12 good images are NG;')
      assert warning['message'] in log


def test_the_log_begins_with_the_verdicts(trained, root, tmp_path):
  outcome = evaluated(trained('padim'), root / 'disc', tmp_path)
  assert outcome['warnings'] == []
  log = (tmp_path / 'evaluate.log').read_text()
  places = [log.index(text) for text in (
    '6 defective images: ', ' found (', ' to review (', ' missed (', '3 good images: ',
    ' passed (', ' falsely rejected (', 'image_auroc', '(oracle)',
  )]  # fmt: skip
  assert places == sorted(places)


@pytest.mark.parametrize('missing', ['good', pytest.param('defective', marks=pytest.mark.slow)])
def test_a_test_set_of_one_class_has_curves_but_null_metrics(trained, root, tmp_path, missing):
  data = tmp_path / 'disc'
  shutil.copytree(root / 'disc', data)
  for kind in ('good',) if missing == 'good' else DEFECTS:
    shutil.rmtree(data / 'test' / kind)
  outcome = evaluated(trained('padim'), data, tmp_path, draw_curves=True)
  metrics = outcome['metrics']
  assert all(metrics[key] is None for key in METRICS if key.startswith('image'))
  # Defective images have good pixels, too.
  is_known = [metrics[key] is not None for key in METRICS if not key.startswith('image')]
  assert is_known == [missing == 'good'] * len(is_known)
  assert metrics['counts'][missing] == 0
  assert (metrics['at_threshold']['false_alarm_rate'] is None) == (missing == 'good')
  (row,) = table(tmp_path / 'disc.csv')
  assert row['Image_AUROC'] == ''
  drawn = [path for path in (tmp_path / 'curves').iterdir() if path.stat().st_size]
  assert {path.suffix for path in drawn} == {'.png', '.svg'}


def test_images_that_share_a_stem_are_all_shown_and_listed(trained, root, tmp_path):
  data = tmp_path / 'disc'
  shutil.copytree(root / 'disc', data)
  spots = data / 'test/spot'
  shutil.rmtree(data / 'test/scratch')
  shutil.rmtree(data / 'test/missing')
  with Image.open(spots / '001.png') as image:
    image.save(spots / '000.bmp')
  shutil.copy(data / 'ground_truth/spot/001_mask.png', data / 'ground_truth/spot/000.bmp_mask.png')
  model = trained('padim')
  words = (*flags('patchcore', data), f'--workdir={tmp_path}')
  more = (f'--config.evaluate.model_dir={model / "model"}', '--config.evaluate.save_pictures=9')
  assert run(*words, '--config.mode=evaluate', *more) == 0
  assert len([*(tmp_path / 'pictures').glob('spot_*.png')]) == 3
  scores = {Path(row['path']).name: row['score'] for row in table(tmp_path / 'scores.csv')
            if row['defect'] == 'spot'}  # fmt: skip
  assert scores['000.bmp'] == scores['001.png'] != scores['000.png']
  more = (f'--config.predict.model_dir={model / "model"}', f'--config.predict.input={spots}')
  assert run(*words, '--config.mode=predict', *more) == 0
  assert {path.name for path in (tmp_path / 'predictions').iterdir()} == {
    '000_res.json',
    '000_res.bmp',
    '000_2_res.json',
    '000_2_res.png',
    '001_res.json',
    '001_res.png',
  }


# Thresholds from labeled images.


def labeled(directory, method='f1'):
  return (f'--config.calibrate.labeled={directory}', f'--config.calibrate.method={method}')


# Each way of learning once.
@pytest.mark.parametrize('name', ['padim', pytest.param('stfpm', marks=pytest.mark.slow)])
def test_f1_on_labeled_images_reaches_the_oracle_on_the_same_images(root, name, tmp_path):
  words = (*flags(name, root / 'disc'), *labeled(root / 'disc'))
  assert run(*words, f'--workdir={tmp_path}') == 0
  limits = manifest(tmp_path)['thresholds']
  assert (limits['method'], limits['num_normals'], limits['num_anomalous']) == ('f1', GOOD, 6)
  metrics = result(tmp_path)['metrics']
  assert metrics['at_threshold']['image_f1'] == pytest.approx(metrics['image_f1_max'], abs=1e-6)
  assert metrics['at_threshold']['pixel_f1'] == pytest.approx(metrics['pixel_f1_max'], abs=1e-6)
  assert 'optimistic' in (tmp_path / 'train.log').read_text()


@pytest.mark.slow
def test_with_a_high_cost_of_misses_no_defect_is_missed(root, tmp_path):
  """The labeled images are folders of good and defective images without masks."""
  labeled_images = tmp_path / 'shown'
  for kind in ('good', 'spot'):
    shutil.copytree(root / 'disc/test' / kind, labeled_images / kind)
  words = (*flags('padim', root / 'disc'), '--config.calibrate.miss_cost=1000')
  assert run(*words, *labeled(labeled_images, 'cost'), f'--workdir={tmp_path / "run"}') == 0
  limits = manifest(tmp_path / 'run')['thresholds']
  assert (limits['method'], limits['num_normals'], limits['num_anomalous']) == ('cost', GOOD, 2)
  assert limits['num_missed'] == 0
  assert result(tmp_path / 'run')['metrics']['at_threshold']['miss_rate']['spot'] == 0


REFUSED = [
  ('disc', 'disc', 'normals', "calibrate.method 'normals' does not use"),
  ('disc', '', 'cost', "calibrate.method 'cost' needs labeled images"),
  ('disc', 'disc', 'f2', 'calibrate.method'),
  ('bins', 'bins', 'f1', f'{TRAIN} images of '),
  ('disc', 'plain', 'f1', f'has {TRAIN} good and 0 defective images'),
  ('disc', 'nowhere', 'f1', 'nowhere'),
]


def test_labeled_images_that_set_no_threshold_are_refused(root, tmp_path):
  for number, (data, labeled_folder, method, pattern) in enumerate(REFUSED):
    words = labeled(root / labeled_folder if labeled_folder else '', method)
    message = refused('padim', root / data, tmp_path / str(number), *words)
    assert pattern in message, (data, labeled_folder, method, message)
