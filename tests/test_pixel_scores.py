"""Rankings of pixels, against a slow loop over all of them at their original sizes."""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from uadjax.data import transforms
from uadjax.data.records import Record
from uadjax.errors import DataError
from uadjax.evaluation import pixel_scores

SIZES = ((9, 14), (14, 9), (6, 6), (11, 11))
DEFECTS = ('good', 'spot', 'good', 'cut')


def images(ops, seed, defects=DEFECTS):
  """Of each image a map at network size, that of every pixel, those seen, those defective."""
  rng = np.random.default_rng(seed)
  for size, defect in zip(SIZES, defects, strict=True):
    map = rng.integers(0, 3, (ops.height, ops.width)).astype(np.float32)  # Ties abound.
    restored = ops.restore(map, *size)
    truth = rng.random(size) < 0.3 if defect != 'good' else np.zeros(size, bool)
    yield map, restored.anomaly_map, restored.visible, truth


def collected(ops, added):
  pixels = pixel_scores.empty(ops, [Path()] * len(SIZES))
  for i, (map, values, visible, truth) in enumerate(added):
    pixel_scores.add_image(pixels, i, map, transforms.RestoredMap(values, visible), truth)
  return pixels


def region(mask, at):
  """Pixels that hang together with this one, over corners too."""
  pixels, edge = set(), {at}
  while edge:
    pixels |= edge
    neighborhood = {(y + a, x + b) for y, x in edge for a in (-1, 0, 1) for b in (-1, 0, 1)}
    edge = {p for p in np.ndindex(mask.shape) if mask[p] and p in neighborhood} - pixels
  return pixels


def slow_ranking(added):
  """(score, anomalous, normal above, normal, overlap), one by one."""
  normal, anomalous = [], []
  for _, values, visible, truth in added:
    for at in np.ndindex(truth.shape):
      if not visible[at]:
        continue
      if truth[at]:
        anomalous.append((values[at], 1 / len(region(truth & visible, at))))
      else:
        normal.append(values[at])
  rows = [
    (
      score,
      sum(value >= score for value, _ in anomalous),
      sum(value > score for value in normal),
      sum(value >= score for value in normal),
      sum(weight for value, weight in anomalous if value >= score),
    )
    for score in sorted({value for value, _ in anomalous}, reverse=True)
  ]
  return zip(*rows, strict=True), len(normal)


@pytest.mark.parametrize('text', ['resize(5)', 'resize(8)|center_crop(5)', 'keep_ratio(6)'])
def test_a_ranking_counts_every_seen_pixel_at_its_original_size(text):
  ops = transforms.parse(text)
  added = [*images(ops, 0)]
  assert all(visible.all() for _, _, visible, _ in added) == (text == 'resize(5)')
  ranking = pixel_scores.ranking(collected(ops, added))
  columns, normals = slow_ranking(added)
  for name, want in zip(
    ('scores', 'num_anomalous', 'num_normal_above', 'num_normal', 'overlap'), columns, strict=True
  ):
    np.testing.assert_allclose(getattr(ranking, name), want, rtol=1e-12, err_msg=name)
  assert ranking.total_normals == normals


def test_pixels_outside_the_crop_do_not_count():
  ops = transforms.parse('resize(8)|center_crop(5)')
  added = [*images(ops, 1)]
  painted = [
    (map, values, visible, truth if not truth.any() else truth | ~visible)
    for map, values, visible, truth in added
  ]
  first, second = (pixel_scores.ranking(collected(ops, case)) for case in (added, painted))
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)


def test_there_is_no_ranking_of_one_kind():
  ops = transforms.parse('resize(5)')
  assert pixel_scores.ranking(pixel_scores.empty(ops, [])) is None
  good = [*images(ops, 2, ('good',) * 4)]
  assert pixel_scores.ranking(collected(ops, good)) is None
  bad = [(map, values, visible, np.ones_like(truth)) for map, values, visible, truth in good]
  assert pixel_scores.ranking(collected(ops, bad)) is None
  assert pixel_scores.ranking(collected(ops, [good[0], bad[1]])) is not None


def saved(path, height, width):
  pixels = np.zeros((height, width), np.uint8)
  pixels[1, 2], pixels[3, 0] = 9, 200
  Image.fromarray(pixels).save(path)
  return path


def test_the_truth_of_an_image_is_its_mask(tmp_path):
  mask = saved(tmp_path / 'mask.png', 5, 4)
  bad = Record(tmp_path / 'x.png', 'cut', mask)
  assert np.argwhere(pixel_scores.read_defect_mask(bad, (5, 4), 'nonzero')).tolist() == [
    [1, 2],
    [3, 0],
  ]
  assert np.argwhere(pixel_scores.read_defect_mask(bad, (5, 4), 'above:9')).tolist() == [[3, 0]]
  assert pixel_scores.read_defect_mask(bad._replace(mask=None), (5, 4), 'nonzero') is None
  # Whoever calls an image good means all of it.
  for good in (Record(bad.path), Record(bad.path, mask=mask)):
    truth = pixel_scores.read_defect_mask(good, (5, 4), 'nonzero')
    assert truth.shape == (5, 4)
    assert not truth.any()


def test_a_mask_of_another_size_is_refused(tmp_path):
  record = Record(tmp_path / 'x.png', 'cut', saved(tmp_path / 'mask.png', 5, 4))
  for size in ((4, 5), (5, 5), (50, 40)):
    message = rf'mask\.png is 4x5 pixels, but its image .*x\.png is {size[1]}x{size[0]}'
    with pytest.raises(DataError, match=message):
      pixel_scores.read_defect_mask(record, size, 'nonzero')
  (tmp_path / 'mask.png').write_bytes(b'')
  with pytest.raises(DataError, match=r'Cannot read .*mask\.png'):
    pixel_scores.read_defect_mask(record, (5, 4), 'nonzero')


def test_a_record_is_read_as_a_path_or_not_at_all():
  with pytest.raises(DataError, match='gone'):
    pixel_scores.read_defect_mask(Record(Path('x.png'), 'cut', Path('gone.png')), (5, 4), 'nonzero')
