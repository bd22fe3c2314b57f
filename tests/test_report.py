"""Tests of the content of reports: pictures, encoding, and provenance."""

import io
import json
import logging
from pathlib import Path
import re

from hypothesis import example, given, strategies as st
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from uadjax import config as configs
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import image_statistics, transforms
from uadjax.data.records import Record
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.evaluation import curves, report
from uadjax.evaluation.report import content, document, gallery, provenance
from uadjax.model import calibration, model_dir
from uadjax.training import settings
from uadjax.types import Scores
from uadjax.visualization import heatmap

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'padim.py'
THRESHOLDS = calibration.Thresholds(2.0, 3.0, 1.5, 'normals', 0.01, 0.05, 100, 0.01, 0.03, 299)

defect_types = st.sampled_from(['good', 'cut', 'hole'])
cases = st.lists(
  st.tuples(defect_types, st.integers(0, 8).map(lambda v: v / 2)), min_size=1, max_size=30
)


def records_of(cases):
  return [Record(Path(f'{i}.png'), defect) for i, (defect, _) in enumerate(cases)]


def make_curve_data(records, scores, calibration_scores=None):
  return curves.CurveData(
    'A model',
    THRESHOLDS,
    np.array(scores),
    [record.defect for record in records],
    [()] * len(records),
    calibration_scores=calibration_scores,
  )


def label_of(case):
  return calibration.label(float(case[1]), THRESHOLDS)


def is_misclassified(case):
  return label_of(case) == ('NG' if case[0] == 'good' else 'OK')


def choose(cases, num_images):
  scores, labels = np.array([score for _, score in cases]), [label_of(case) for case in cases]
  limit = THRESHOLDS.image_threshold
  return gallery.choose(records_of(cases), scores, labels, limit, num_images)


@given(cases=cases, num_images=st.integers(0, 35))
def test_misclassified_images_come_first_the_farthest_from_the_threshold_first(cases, num_images):
  chosen = choose(cases, num_images)
  assert len(chosen) == len(set(chosen)) == min(num_images, len(cases))
  misclassified = [is_misclassified(cases[i]) for i in chosen]
  assert misclassified == sorted(misclassified, reverse=True)
  assert sum(misclassified) == min(num_images, sum(map(is_misclassified, cases)))
  margins = [abs(case[1] - THRESHOLDS.image_threshold) for case in cases if is_misclassified(case)]
  chosen_margins = [
    abs(cases[i][1] - THRESHOLDS.image_threshold) for i in chosen if is_misclassified(cases[i])
  ]
  assert chosen_margins == sorted(margins, reverse=True)[: len(chosen_margins)]


def test_correct_images_are_distributed_over_defect_types_and_scores():
  cases = [('good', 0.001 * i) for i in range(64)] + [('cut', 3 + i) for i in range(64)]
  cases += [('hole', 9.0)]
  chosen = choose(cases, 17)
  indices = {
    defect: [i for i in chosen if cases[i][0] == defect] for defect in ('good', 'cut', 'hole')
  }
  assert [len(group) for group in indices.values()] == [8, 8, 1]
  for defect in ('good', 'cut'):
    ranks = sorted(i % 64 for i in indices[defect])
    assert np.diff([*ranks, 64]).tolist() == [8] * 8


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20))
@example(values=[-3e38, 0.0, 3e38])
def test_levels_stand_for_values_and_their_extremes_are_exact(values):
  anomaly_map = np.array([values], np.float32)
  levels, low, high = heatmap.to_levels(anomaly_map)
  finite = np.isfinite(anomaly_map)
  decoded = low + levels[finite] / 255 * (float(high) - low)
  tolerance = (float(high) - low) / 500
  np.testing.assert_allclose(decoded, anomaly_map[finite], rtol=1e-5, atol=tolerance)
  if finite.any() and low < high:
    assert (levels[anomaly_map == np.float32(high)] == 255).all()
    assert (levels[anomaly_map == np.float32(low)] == 0).all()


@pytest.fixture
def scene(tmp_path):
  """An image of 640 x 320 pixels with a one-pixel defect, and an anomaly map."""
  pixels = np.random.default_rng(0).integers(0, 256, (320, 640, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  mask = np.zeros((320, 640), np.uint8)
  mask[201, 333] = 255
  Image.fromarray(mask).save(tmp_path / 'mask.png')
  anomaly_map = np.linspace(0, 6, 32 * 32, dtype=np.float32).reshape(32, 32)
  return Record(tmp_path / 'a.png', 'dust', tmp_path / 'mask.png'), anomaly_map


def decode(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def test_a_picture_keeps_its_aspect_ratio_visible_box_and_smallest_defect(scene):
  record, anomaly_map = scene
  ops = transforms.parse('keep_ratio(32)|center_crop(24)')
  [picture] = gallery.make_pictures([record], [anomaly_map[:24, :24]], [0], ops)
  assert (picture.width, picture.height) == (512, 256)
  assert decode(picture.photo).shape == (256, 512, 3)
  truth = decode(picture.truth)
  assert 1 <= truth.sum() <= 4
  row, column = np.argwhere(truth)[0]
  assert abs(row / 256 - 201 / 320) < 0.01
  assert abs(column / 512 - 333 / 640) < 0.01
  left, top, right, bottom = picture.visible_box
  # The middle three quarters of the central square.
  np.testing.assert_allclose([left, top, right, bottom], [0.3125, 0.125, 0.6875, 0.875], atol=0.01)
  levels = decode(picture.heatmap)
  assert levels.shape == (96, 192)
  assert levels.max() == 255 > levels[48, 10] == 0
  assert (picture.low, picture.high) == (anomaly_map[:24, :24].min(), anomaly_map[:24, :24].max())


def test_a_picture_has_the_region_of_interest(scene):
  record, anomaly_map = scene
  mask = np.zeros((320, 640), bool)
  mask[80:240, :320] = True
  ops = transforms.parse('resize(32)')
  [plain] = gallery.make_pictures([record], [anomaly_map], [0], ops)
  assert plain.region is None
  inspecting = ops.with_region(RegionOfInterest(mask))
  [picture] = gallery.make_pictures([record], [anomaly_map], [0], inspecting)
  region = decode(picture.region)
  assert region.shape == decode(picture.heatmap).shape
  expected = np.asarray(Image.fromarray(mask).resize(region.shape[::-1], Image.Resampling.NEAREST))
  np.testing.assert_array_equal(region, expected)


def test_the_quality_of_a_picture_is_reduced_until_it_fits(scene):
  record, anomaly_map = scene
  ops = transforms.parse('resize(32)')
  sizes = []
  for max_bytes in (10**6, 60_000, 12_000):
    picture = gallery.make_picture(0, record, anomaly_map, ops, 'nonzero', max_bytes)
    sizes.append(len(picture.photo) + len(picture.heatmap) + len(picture.truth))
    assert sizes[-1] <= max_bytes
    assert picture.is_coarse == (max_bytes < 10**6)
  assert sizes == sorted(sizes, reverse=True)


def embedded(text, name):
  [block] = re.findall(f'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
  return json.loads(block)


def make_fake_picture(index, num_bytes):
  visible_box = 0.0, 0.0, 1.0, 1.0
  return gallery.Picture(index, 4, 4, 0.0, 2.0, visible_box, bytes(num_bytes), b'', None, False)


def test_a_report_has_at_most_20_megabytes_and_warns_of_omitted_pictures(tmp_path, caplog):
  records = [Record(Path(f'{i}.png')) for i in range(30)]
  pictures = [make_fake_picture(i, 1_000_000) for i in range(30)]
  with caplog.at_level(logging.WARNING, 'uadjax'):
    report.write(
      tmp_path / 'report.html', make_curve_data(records, [1.0] * 30), {}, records, pictures, {}
    )
  assert 18e6 < (tmp_path / 'report.html').stat().st_size <= 20e6
  included = embedded((tmp_path / 'report.html').read_text(), 'pictures')
  assert [picture['image_index'] for picture in included] == list(range(len(included)))
  assert 0 < len(included) < 30
  assert f'the first {len(included)} of 30 pictures' in caplog.text


def test_the_json_file_equals_the_embedded_data_and_names_are_escaped(tmp_path):
  names = ['</script><script>alert(1)</script>', 'line\u2028end', '<!--', '&amp;', 'odd\udcff']
  records = [Record(Path('x') / f'{i}.png', name) for i, name in enumerate(names)]
  records += [Record(Path('x') / '\udcfe.png')]
  curve_data = make_curve_data(records, [0.0, 1.0, 2.0, 3.0, np.inf, 0.1], np.array([0.5, -np.inf]))
  warning = {'code': 'no_content', 'message': names[0]}
  warnings = [*curve_data.warnings[:-1], [warning]]
  curve_data = curve_data._replace(title=names[0], warnings=warnings)
  source = {'notes': names, names[0]: {names[0]: 1.5, 'bad': float('nan')}}
  report.write(tmp_path / 'report.html', curve_data, {}, records, [], source)
  text = (tmp_path / 'report.html').read_text()
  data = json.loads((tmp_path / 'report.json').read_text())
  assert embedded(text, 'report') == data
  assert text.count('</script>') == 3  # Two with data, one with code.
  assert '\u2028' not in text
  assert [image['defect'] for image in data['images']] == [*names[:4], 'odd\\udcff', 'good']
  assert [image['score'] for image in data['images']] == [0, 1, 2, 3, 'Infinity', 0.1]
  labels = ['OK', 'OK', 'review', 'NG', 'NG', 'review']  # The last because of its warning.
  assert [image['label'] for image in data['images']] == labels
  assert [image['warnings'] for image in data['images']] == [*[[]] * 5, [warning]]
  assert data['held_out'] == [0.5, '-Infinity']
  assert data['images'][-1]['path'] == '\\udcfe.png'
  assert data['provenance'][names[0]]['bad'] == 'NaN'


def test_a_report_has_the_warnings_of_the_model():
  records = [Record(Path(f'{i}.png')) for i in range(41)]
  for score, num_warnings in ((5.0, 1), (1.0, 0)):
    curve_data = make_curve_data(records, [score] * 41)
    data = content.build(curve_data, {}, records, [], {})
    assert data['warnings'] == curves.model_warnings(curve_data)
    assert len(data['warnings']) == num_warnings


def test_good_images_come_first_then_the_hardest_defect_types():
  records = [Record(Path('x'), defect) for defect in ('easy', 'good', 'hard', 'easy', 'hard')]
  data = content.build(make_curve_data(records, [5.0, 0.0, 1.0, 6.0, 7.0]), {}, records, [], {})
  assert [defect_type['name'] for defect_type in data['defect_types']] == ['good', 'hard', 'easy']


def test_the_content_security_policy_allows_only_the_embedded_script_and_style():
  text, _ = document.render(content.build(make_curve_data([], []), {}, [], [], {}), [])
  [policy] = re.findall('Content-Security-Policy" content="(.*?)"', text)
  assert policy.startswith("default-src 'none';")
  assert 'unsafe' not in policy
  assert not re.search(r'(src|href)="(?!data:,|#)', text)


def write_files(folder, files):
  paths = []
  for name, data in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    paths.append(folder / name)
  return paths


def test_the_fingerprint_depends_on_content_and_names_but_not_on_the_folder(tmp_path):
  files = {'test/good/0.png': b'a', 'test/cut/0.png': b'b', 'truth/cut/0.png': b'c'}
  first = provenance.fingerprint(write_files(tmp_path / '1', files))
  assert first == provenance.fingerprint(reversed(write_files(tmp_path / '2', files)))
  other_byte = {**files, 'test/cut/0.png': b'B'}
  other_name = {name.replace('cut', 'gut'): data for name, data in files.items()}
  swapped = {**files, 'test/good/0.png': b'b', 'test/cut/0.png': b'a'}
  variants = [other_byte, other_name, swapped, {k: files[k] for k in list(files)[:2]}]
  fingerprints = {
    provenance.fingerprint(write_files(tmp_path / f'{i}', variant))
    for i, variant in enumerate(variants, 3)
  }
  assert len(fingerprints | {first}) == 5


def test_the_provenance_of_a_report(tmp_path):
  config = settings.load(str(CONFIG))
  weights = pretrained_weights.Provenance(
    'r18.pth', 'https://example.org/r18.pth', 'abc' + 61 * '0', 'BSD-3-Clause'
  )
  normals = calibration.CalibrationScores(('a',), np.array([1.0]), np.array([2.0]))
  statistics = image_statistics.measure(np.zeros((4, 4, 3), np.uint8), (4, 4))
  training_range = image_statistics.StatisticsRange.from_statistics([statistics])
  fitted = {'x': jnp.zeros(3)}
  model_dir.save(tmp_path / 'model', config, fitted, THRESHOLDS, normals, training_range, weights)
  info = model_dir.read_info(tmp_path / 'model')
  model = model_dir.Model(*info, {}, lambda f, x: Scores(x, x))
  [image, mask] = write_files(tmp_path, {'a.png': b'a', 'mask.png': b'b'})
  info = provenance.collect(model, [Record(image, 'cut', mask)], {'fit_s': 1.5})
  assert info['model']['arrays_sha256'] == model.arrays_sha256
  assert info['weights'] == weights._asdict()
  assert info['thresholds']['description'] == str(THRESHOLDS)
  assert info['data']['sha256'] == provenance.fingerprint([image, mask])
  assert (info['data']['test_images'], info['data']['masks']) == (1, 1)
  assert info['versions'].keys() == {'uadjax', 'jax', 'numpy', 'pillow', 'python'}
  assert info['timing'] == {'fit_s': 1.5}
  assert info['config'] == configs.to_plain_dict(config)


def test_images_to_review_have_their_regions_in_the_data(trained):
  data = json.loads((trained('padim') / 'report.json').read_text())
  for image in data['images']:
    assert {'peak', 'at', 'regions'} <= image.keys()
    assert bool(image['regions']) == (image['label'] == 'review')
