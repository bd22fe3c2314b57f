"""What a report holds: which pictures, how they are packed, where it all comes from."""

import io
import json
import logging
from pathlib import Path
import re

from hypothesis import given, strategies as st
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from uadjax import config as configs
from uadjax.backbones import weights as pretrained_weights
from uadjax.data import transforms
from uadjax.data.records import Record
from uadjax.evaluation import curves, report
from uadjax.evaluation.report import content, document, gallery, provenance
from uadjax.model import calibration, model_dir
from uadjax.types import Scores

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'padim.py'
LIMITS = calibration.Limits(2.0, 3.0, 1.5, 'normals', 0.01, 0.05, 100, 0.01, 0.03, 299)

kinds = st.sampled_from(['good', 'cut', 'hole'])
cases = st.lists(st.tuples(kinds, st.integers(0, 8).map(lambda v: v / 2)), min_size=1, max_size=30)


def records_of(cases):
  return [Record(Path(f'{i}.png'), kind) for i, (kind, _) in enumerate(cases)]


def drawn_of(records, scores, calibration=None):
  return curves.Curves(
    'A model', LIMITS, np.array(scores), [r.defect for r in records], calibration=calibration
  )


def is_wrong(case):
  kind, score = case
  return (score > LIMITS.image) == (kind == 'good')


@given(cases=cases, number=st.integers(0, 35))
def test_what_is_wrong_is_shown_first_the_worst_of_it_before_all(cases, number):
  scores = np.array([score for _, score in cases])
  chosen = gallery.choose(records_of(cases), scores, LIMITS, number)
  assert len(chosen) == len(set(chosen)) == min(number, len(cases))
  wrong = [is_wrong(cases[i]) for i in chosen]
  assert wrong == sorted(wrong, reverse=True)
  assert sum(wrong) == min(number, sum(map(is_wrong, cases)))
  alarms = [cases[i][1] for i in chosen if is_wrong(cases[i]) and cases[i][0] == 'good']
  misses = [cases[i][1] for i in chosen if is_wrong(cases[i]) and cases[i][0] != 'good']
  assert alarms == sorted(alarms, reverse=True)
  assert misses == sorted(misses)
  every = [sum(is_wrong(c) and (c[0] == 'good') == good for c in cases) for good in (True, False)]
  few, many = sorted(zip((len(alarms), len(misses)), every, strict=True))
  assert many[0] - few[0] <= 1 or few[0] == few[1]  # Neither crowds the other out.


def test_what_is_right_is_spread_over_kinds_and_scores():
  cases = [('good', 0.001 * i) for i in range(64)] + [('cut', 3 + i) for i in range(64)]
  cases += [('hole', 9.0)]
  scores = np.array([score for _, score in cases])
  chosen = gallery.choose(records_of(cases), scores, LIMITS, 17)
  of_kind = {kind: [i for i in chosen if cases[i][0] == kind] for kind in ('good', 'cut', 'hole')}
  assert [len(some) for some in of_kind.values()] == [8, 8, 1]
  for kind in ('good', 'cut'):
    places = sorted(i % 64 for i in of_kind[kind])
    assert np.diff([*places, 64]).tolist() == [8] * 8


@given(
  values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20),
  threshold=st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.inf, -np.inf])),
)
def test_levels_keep_the_order_of_values_and_tell_exactly_what_is_marked(values, threshold):
  map = np.array([sorted(values)], np.float32)
  scale = gallery.shared_scale([map], threshold)
  levels = gallery.quantize_map(map, scale)[0]
  assert (np.diff(levels.astype(int)) >= 0).all()
  if np.isfinite(threshold):
    np.testing.assert_array_equal(levels > 127, map[0] > threshold)
  assert scale.low < scale.threshold < scale.high


@pytest.fixture
def scene(tmp_path):
  """An image of 640 x 320 pixels with a defect of a single one, and the map of it."""
  pixels = np.random.default_rng(0).integers(0, 256, (320, 640, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  mask = np.zeros((320, 640), np.uint8)
  mask[201, 333] = 255
  Image.fromarray(mask).save(tmp_path / 'mask.png')
  map = np.linspace(0, 6, 32 * 32, dtype=np.float32).reshape(32, 32)
  return Record(tmp_path / 'a.png', 'dust', tmp_path / 'mask.png'), map


def opened(data):
  return np.asarray(Image.open(io.BytesIO(data)))


def test_a_picture_keeps_its_shape_its_seen_part_and_its_smallest_defect(scene):
  record, map = scene
  ops = transforms.parse('keep_ratio(32)|center_crop(24)')
  [shot] = gallery.make_pictures(
    [record], map[None, :24, :24], [0], ops, 3.0
  )  # As a file would hold it.
  assert (shot.width, shot.height) == (512, 256)
  assert opened(shot.photo).shape == (256, 512, 3)
  truth = opened(shot.truth)
  assert 1 <= truth.sum() <= 4
  row, column = np.argwhere(truth)[0]
  assert abs(row / 256 - 201 / 320) < 0.01
  assert abs(column / 512 - 333 / 640) < 0.01
  left, top, right, bottom = shot.visible_box
  # The middle three quarters of the square in the middle.
  np.testing.assert_allclose([left, top, right, bottom], [0.3125, 0.125, 0.6875, 0.875], atol=0.01)
  heat = opened(shot.heatmap)
  assert heat.shape == (96, 192)
  assert heat.max() == 255 > heat[48, 10] == 0


def test_a_picture_that_does_not_fit_is_made_coarser_until_it_does(scene):
  record, map = scene
  scale = gallery.shared_scale([map], 3.0)
  ops = transforms.parse('resize(32)')
  sizes = []
  for budget in (10**6, 60_000, 12_000):
    shot = gallery.make_picture(0, record, map, ops, scale, 0, budget)
    sizes.append(len(shot.photo) + len(shot.heatmap) + len(shot.truth))
    assert sizes[-1] <= budget
    assert shot.is_coarse == (budget < 10**6)
  assert sizes == sorted(sizes, reverse=True)


def embedded(text, name):
  [block] = re.findall(f'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
  return json.loads(block)


def fake(index, size):
  scale = gallery.Scale(0.0, 1.0, 2.0)
  return gallery.Picture(index, 4, 4, scale, (0.0, 0.0, 1.0, 1.0), bytes(size), b'', None, False)


def test_a_report_stays_below_20_megabytes_and_says_what_it_leaves_out(tmp_path, caplog):
  records = [Record(Path(f'{i}.png')) for i in range(30)]
  shots = [fake(i, 1_000_000) for i in range(30)]
  with caplog.at_level(logging.WARNING, 'uadjax'):
    report.write(tmp_path / 'report.html', drawn_of(records, [1.0] * 30), {}, records, shots, {})
  assert 18e6 < (tmp_path / 'report.html').stat().st_size <= 20e6
  shown = embedded((tmp_path / 'report.html').read_text(), 'pictures')
  assert [one['image'] for one in shown] == list(range(len(shown)))
  assert 0 < len(shown) < 30
  assert f'the first {len(shown)} of 30 pictures' in caplog.text


def test_the_twin_is_what_the_page_is_drawn_from_and_no_name_is_code(tmp_path):
  names = ['</script><script>alert(1)</script>', 'line\u2028end', '<!--', '&amp;', 'odd\udcff']
  records = [Record(Path('x') / f'{i}.png', name) for i, name in enumerate(names)]
  records += [Record(Path('x') / '\udcfe.png')]
  drawn = drawn_of(records, [0.0, 1.0, 2.0, 3.0, np.inf, 0.1], np.array([0.5, -np.inf]))
  about = {'notes': names, names[0]: {names[0]: 1.5, 'bad': float('nan')}}
  report.write(tmp_path / 'report.html', drawn._replace(title=names[0]), {}, records, [], about)
  text = (tmp_path / 'report.html').read_text()
  twin = json.loads((tmp_path / 'report.json').read_text())
  assert embedded(text, 'report') == twin
  assert text.count('</script>') == 4  # Three of data, one of code, and none else.
  assert '\u2028' not in text
  assert [one['defect'] for one in twin['images']] == [*names[:4], 'odd\\udcff', 'good']
  assert [one['score'] for one in twin['images']] == [0, 1, 2, 3, 'Infinity', 0.1]
  assert [one['label'] for one in twin['images']] == ['OK', 'OK', 'review', 'NG', 'NG', 'OK']
  assert twin['held_out'] == [0.5, '-Infinity']
  assert twin['images'][-1]['path'] == '\\udcfe.png'
  assert twin['about'][names[0]]['bad'] == 'NaN'


def test_kinds_come_good_first_then_the_hardest():
  records = [Record(Path('x'), kind) for kind in ('easy', 'good', 'hard', 'easy', 'hard')]
  told = content.build(drawn_of(records, [5.0, 0.0, 1.0, 6.0, 7.0]), {}, records, [], {})
  assert [kind['name'] for kind in told['kinds']] == ['good', 'hard', 'easy']


def test_the_browser_is_allowed_these_scripts_and_this_style_alone():
  text = document.render(content.build(drawn_of([], []), {}, [], [], {}), []).text
  [policy] = re.findall('Content-Security-Policy" content="(.*?)"', text)
  assert policy.startswith("default-src 'none';")
  assert 'unsafe' not in policy
  assert not re.search(r'(src|href)="(?!data:,|#)', text)


def written(folder, files):
  paths = []
  for name, data in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    paths.append(folder / name)
  return paths


def test_data_are_known_by_content_and_names_wherever_they_lie(tmp_path):
  files = {'test/good/0.png': b'a', 'test/cut/0.png': b'b', 'truth/cut/0.png': b'c'}
  first = provenance.fingerprint(written(tmp_path / '1', files))
  assert first == provenance.fingerprint(reversed(written(tmp_path / '2', files)))
  other_byte = {**files, 'test/cut/0.png': b'B'}
  other_name = {name.replace('cut', 'gut'): data for name, data in files.items()}
  swapped = {**files, 'test/good/0.png': b'b', 'test/cut/0.png': b'a'}
  others = [other_byte, other_name, swapped, {k: files[k] for k in list(files)[:2]}]
  found = {
    provenance.fingerprint(written(tmp_path / f'{i}', one)) for i, one in enumerate(others, 3)
  }
  assert len(found | {first}) == 5


def test_a_report_tells_what_it_stands_on(tmp_path):
  config = configs.load(str(CONFIG))
  weights = pretrained_weights.Provenance(
    'r18.pth', 'https://example.org/r18.pth', 'abc', 'BSD-3-Clause'
  )
  normals = calibration.Peaks(('a',), np.array([1.0]), np.array([2.0]))
  model_dir.save(tmp_path / 'model', config, {'x': jnp.zeros(3)}, LIMITS, normals, weights)
  ops = transforms.parse('resize(32)')
  model = model_dir.Model(
    'PaDiM', config, ops, {}, lambda f, x: Scores(x, x), LIMITS, weights, tmp_path / 'model'
  )
  [image, mask] = written(tmp_path, {'a.png': b'a', 'mask.png': b'b'})
  told = provenance.of(model, [Record(image, 'cut', mask)], {'fit_s': 1.5})
  assert told['model']['arrays_sha256'] == model_dir.about(tmp_path / 'model').arrays_sha256
  assert told['weights'] == weights._asdict()
  assert told['thresholds']['stand on'] == str(LIMITS)
  assert told['data']['sha256'] == provenance.fingerprint([image, mask])
  assert (told['data']['test_images'], told['data']['masks']) == (1, 1)
  assert told['versions'].keys() == {'uadjax', 'jax', 'numpy', 'pillow', 'python'}
  assert told['timing'] == {'fit_s': 1.5}
  assert told['config'] == configs.plain(config)
