"""Laws of labeled images: which are taken, and what is measured on them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from uadjax.data import image_io, layouts, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.distributed import mesh as meshes
from uadjax.errors import DataError
from uadjax.evaluation import labeled
from uadjax.model import calibration
from uadjax.model.settings import CalibrateSettings
from uadjax.training import settings
from uadjax.types import Scores

SIDE = 8


def picture(path: Path, seed: int, side: int = SIDE) -> np.ndarray:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return pixels


def mvtec(root: Path) -> Path:
  for number in range(3):
    picture(root / f'train/good/{number}.png', number)
    picture(root / f'test/good/{number}.png', 10 + number)
    picture(root / f'test/cut/{number}.png', 20 + number)
    mask = np.random.default_rng(30 + number).random((SIDE, SIDE)) < 0.4
    (root / 'ground_truth/cut').mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(root / f'ground_truth/cut/{number}_mask.png')
  return root


def folder(root: Path) -> Path:
  for number in range(3):
    picture(root / f'good/{number}.png', number)
    picture(root / f'cut/{number}.png', 20 + number)
  return root


def config_of(directory: Path):
  values = {'data.ops': f'resize({SIDE})', 'evaluate.batch_size': 4}  # Not resized at all.
  return settings.load('padim', [*values.items(), ('calibrate.labeled', directory)])


OPS = transforms.parse(f'resize({SIDE})')


def taken(directory: Path, training=(), ops=OPS) -> list[str]:
  records = labeled.load(str(directory), 'nonzero', training, ops)
  return [record.path.relative_to(directory).as_posix() for record in records]


def test_images_to_test_on_are_taken_where_some_are_good(tmp_path):
  want = [f'test/{kind}/{number}.png' for kind in ('cut', 'good') for number in range(3)]
  assert taken(mvtec(tmp_path)) == want


def test_all_are_taken_where_none_to_test_on_is_good(tmp_path):
  want = [f'{kind}/{number}.png' for kind in ('good', 'cut') for number in range(3)]
  assert taken(folder(tmp_path)) == want


@pytest.mark.parametrize(
  ('kind', 'message'), [('good', '3 good and 0 defective'), ('cut', 'No normal images')]
)
def test_a_kind_that_is_missing_is_told(tmp_path, kind, message):
  for path in folder(tmp_path).glob('*/*'):
    if path.parent.name != kind:
      path.unlink()
  with pytest.raises(DataError, match=message):
    taken(tmp_path)


def test_an_absent_folder_of_labeled_images_is_named_by_its_key(tmp_path):
  with pytest.raises(DataError) as caught:
    taken(tmp_path / 'nowhere')
  assert caught.value.key == 'calibrate.labeled'


def test_training_images_among_labeled_images_are_refused(tmp_path):
  inside = folder(tmp_path / 'inside')
  (tmp_path / 'link').symlink_to(inside)
  training = layouts.load(tmp_path / 'link').train[1:]
  with pytest.raises(DataError, match=r'2 images of .*good/1\.png'):
    taken(inside, training)


def test_unreadable_labeled_images_are_refused_before_a_fit(tmp_path):
  mvtec(tmp_path)
  (tmp_path / 'test/cut/1.png').write_bytes(b'no image')
  with pytest.raises(DataError, match=r'Cannot read .*cut/1\.png'):
    taken(tmp_path)


@pytest.mark.parametrize(
  ('ops', 'message'),
  [
    (
      OPS.with_region(RegionOfInterest(np.repeat([[True, False]], 8, axis=1).repeat(8, axis=0))),
      'another aspect ratio',
    ),
    (transforms.parse(f'center_crop({SIDE + 1})'), 'Cannot crop 9 x 9'),
  ],
)
def test_labeled_images_that_do_not_fit_are_refused_before_a_fit(tmp_path, ops, message):
  with pytest.raises(DataError, match=rf'cut/0\.png: .*{message}') as caught:
    taken(mvtec(tmp_path), ops=ops)
  assert caught.value.key == 'calibrate.labeled'


def test_a_mask_of_another_size_is_told_before_anything_is_fitted(tmp_path):
  mvtec(tmp_path)
  picture(tmp_path / 'ground_truth/cut/1_mask.png', 0, side=5)
  with pytest.raises(DataError, match=r'1_mask\.png is 5x5 pixels.* is 8x8'):
    taken(tmp_path)


@jax.jit
def dark(fitted, batch):
  """Scores the darkness: a map that the test can compute from the files."""
  map = fitted - jnp.mean(batch.image.astype(jnp.float32), axis=-1)
  return Scores(map, jnp.mean(map, axis=(1, 2)))


def maps_of(records):
  return [255 - image_io.decode(record.path).astype(np.float32).mean(-1) for record in records]


def scored(records, config):
  mesh = meshes.make_mesh('cpu', 1, 0)
  cache = ImageCache(transforms.parse(config.data.ops), 0)
  return labeled.score(dark, jnp.float32(255), records, config.data.mask, cache, 4, mesh, 'max')


def f1_above(threshold, values, truths):
  marked = [value > threshold for value in values]
  both = sum(int((m & t).sum()) for m, t in zip(marked, truths, strict=True))
  return 2 * both / sum(int(m.sum() + t.sum()) for m, t in zip(marked, truths, strict=True))


def test_scores_are_those_of_each_image_by_itself(tmp_path):
  config = config_of(mvtec(tmp_path))
  records = labeled.load(config.calibrate.labeled, config.data.mask, (), OPS)
  scores = scored(records, config)
  maps = maps_of(records)
  good = [map for map, record in zip(maps, records, strict=True) if not record.is_anomalous]
  bad = [map for map, record in zip(maps, records, strict=True) if record.is_anomalous]
  np.testing.assert_allclose(scores.normal_scores, [map.mean() for map in good], rtol=1e-5)
  np.testing.assert_allclose(scores.normal_peaks, [map.max() for map in good], rtol=1e-5)
  np.testing.assert_allclose(scores.anomalous_scores, [map.mean() for map in bad], rtol=1e-5)


def test_pixels_are_marked_with_the_best_f1_of_all_thresholds(tmp_path):
  config = config_of(mvtec(tmp_path))
  records = labeled.load(config.calibrate.labeled, config.data.mask, (), OPS)
  maps = maps_of(records)
  truths = [
    image_io.read_mask(record.mask) if record.mask else np.zeros((SIDE, SIDE), bool)
    for record in records
  ]
  best = max(f1_above(value - 1e-3, maps, truths) for value in np.unique(maps))
  assert f1_above(scored(records, config).pixel_threshold, maps, truths) == pytest.approx(
    best, abs=1e-9
  )


def test_without_masks_pixels_are_left_to_the_good_images(tmp_path):
  config = config_of(folder(tmp_path))
  scores = scored(labeled.load(config.calibrate.labeled, config.data.mask, (), OPS), config)
  assert scores.pixel_threshold is None
  assert len(scores.normal_scores) == len(scores.anomalous_scores) == 3


def test_without_labeled_images_there_are_no_labeled_scores():
  assert scored((), config_of(Path())) is None


def test_labels_move_the_review_threshold_only_down_to_the_image_threshold():
  scores, good, bad = np.linspace(0, 1, 99), np.linspace(0, 2, 9), np.linspace(0.5, 3, 30)
  calibrated = calibration.CalibrationScores(('',) * 99, scores, scores)
  labeled_scores = labeled.LabeledScores(good, good, bad, None)
  has_band = set()
  for method, miss_cost in (('f1', 10.0), ('cost', 0.1), ('cost', 100.0)):
    options = CalibrateSettings(method=method, miss_cost=miss_cost)
    by_normals = labeled.calibrate(dataclasses.replace(options, method='normals'), calibrated, None)
    limits = labeled.calibrate(options, calibrated, labeled_scores)
    assert limits.review_threshold == min(by_normals.review_threshold, limits.image_threshold)
    assert limits.num_missed == (bad <= limits.review_threshold).sum()
    has_band.add(limits.review_threshold < limits.image_threshold)
  assert has_band == {True, False}
  # Without scores of a calibration, the labeled good images decide.
  none = calibration.CalibrationScores((), np.zeros(0), np.zeros(0))
  assert labeled.calibrate(options, none, labeled_scores) == calibration.from_labeled(
    good, good, bad, 'cost', options.budget, options.review_budget, miss_cost
  )
