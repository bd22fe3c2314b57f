from xml.etree import ElementTree

from hypothesis import given, strategies as st
import matplotlib
import numpy as np
from PIL import Image
import pytest

from uadjax.evaluation import curves
from uadjax.model import calibration
from uadjax.numerics import metrics
from uadjax.system.text import format_percent
from uadjax.visualization import figures

NAMES = {f'{name}.{suffix}' for name in ('curves', 'histogram', 'roc', 'pr', 'pro')
         for suffix in ('png', 'svg')}  # fmt: skip


def limits(image, pixel=3.0, review=None, labeled=0):
  return calibration.Thresholds(
    image_threshold=image,
    pixel_threshold=pixel,
    review_threshold=image if review is None else review,
    method='normals',
    budget=0.01,
    review_budget=0.05,
    num_normals=100,
    expected_false_alarm_rate=0.01,
    false_alarm_rate_bound=0.03,
    num_normals_required=299,
    num_anomalous=labeled,
  )


def curves_of(scores, defects, image=2.0, review=None, pixels=None, pixel=3.0):
  """Pixels: normal ones, anomalous ones, and the weights of these."""
  scores, good = np.array(scores, np.float32), np.array([d == 'good' for d in defects], bool)
  both = good.any() and (~good).any()
  of_pixels, alarms = None, 0
  if pixels is not None:
    normal, anomalous, weight = pixels
    of_pixels = metrics.rank(anomalous.copy(), [normal.copy()], weight.copy())
    alarms = int((normal > pixel).sum())
  return curves.CurveData(
    'PatchCore on screw',
    limits(image, pixel, review),
    scores,
    defects,
    [()] * len(defects),
    metrics.rank(scores[~good], [scores[good]]) if both else None,
    of_pixels,
    alarms,
  )


def realistic(seed=0, pixels=100_000):
  rng = np.random.default_rng(seed)
  scores = np.concatenate([rng.normal(1.5, 0.2, 40), rng.normal(2.2, 0.5, 90)])
  defects = ['good'] * 40 + [f'type {i}' for i in range(9) for _ in range(10)]
  region = rng.integers(0, 20, pixels // 10)
  normal = rng.gamma(2, 1, pixels).astype(np.float32)
  anomalous = (rng.gamma(2, 1, pixels // 10) + region / 4).astype(np.float32)
  weight = 1 / np.bincount(region)[region]
  return curves_of(scores, defects, 2.0, 1.8, (normal, anomalous, weight), 6.0)


def distance_to(line, point):
  """From a point to the nearest of all segments, one after the other."""
  nearest = np.inf
  for a, b in zip(
    np.stack([line.x, line.y], 1)[:-1], np.stack([line.x, line.y], 1)[1:], strict=True
  ):
    along = b - a
    share = np.clip((point - a) @ along / max(along @ along, 1e-300), 0, 1)
    nearest = min(nearest, float(np.hypot(*(a + share * along - point))))
  return nearest


few = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@given(
  normal=few, anomalous=few, threshold=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.5, 6.0, np.inf])
)
def test_operating_points_count_what_exceeds_the_threshold_and_lie_on_the_curves(
  normal, anomalous, threshold
):
  normal, anomalous = np.array(normal, np.float32), np.array(anomalous, np.float32)
  region = np.arange(len(anomalous)) % 3
  weight = 1 / np.bincount(region)[region]
  data = curves_of(
    np.concatenate([normal, anomalous]),
    ['good'] * len(normal) + ['crack'] * len(anomalous),
    threshold,
    pixels=(normal, anomalous, weight),
    pixel=threshold,
  )
  false_rate, recall = (normal > threshold).mean(), (anomalous > threshold).mean()
  hits, calls = (
    (anomalous > threshold).sum(),
    sum((x > threshold).sum() for x in (normal, anomalous)),
  )
  overlap = np.mean([(anomalous[region == r] > threshold).mean() for r in set(region)])
  for line in curves.panel_lines(data, 'roc'):
    np.testing.assert_allclose(line.operating_point, (false_rate, recall))
  for line in curves.panel_lines(data, 'pr'):
    assert (line.operating_point is None) == (calls == 0)
    if calls:
      np.testing.assert_allclose(line.operating_point, (recall, hits / calls))
  for line in curves.panel_lines(data, 'pro'):
    np.testing.assert_allclose(line.operating_point, (false_rate, overlap))
  lines = [line for panel in curves.CURVES for line in curves.panel_lines(data, panel)]
  assert len(lines) == 5
  for line in lines:
    assert line.operating_point is None or distance_to(line, np.array(line.operating_point)) < 1e-9


@given(normal=few, anomalous=few)
def test_the_area_under_precision_is_average_precision(normal, anomalous):
  data = curves_of(normal + anomalous, ['good'] * len(normal) + ['crack'] * len(anomalous))
  (line,) = curves.panel_lines(data, 'pr')
  assert np.trapezoid(line.y, line.x) == pytest.approx(
    metrics.average_precision(data.image_ranking)
  )


def staircase(rng, n):
  """Right angles of all sizes, the worst there is for chords."""
  x, y = np.cumsum(rng.pareto(1.2, n)), np.cumsum(rng.pareto(1.2, n))
  return np.repeat(x / x[-1], 2)[:-1], np.repeat(y / y[-1], 2)[1:]


def test_thinning_keeps_area_ends_and_neighborhood():
  for seed in range(5):
    x, y = staircase(np.random.default_rng(seed), 50_000)
    thin_x, thin_y = curves.thin(x, y)
    assert len(thin_x) <= 1002, seed
    assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (x[0], y[0], x[-1], y[-1]), seed
    assert set(zip(thin_x, thin_y, strict=True)) <= set(zip(x, y, strict=True)), seed
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(np.trapezoid(y, x), abs=1e-3), seed
    steps = np.flatnonzero(np.diff(x) > 0.05)
    assert set(x[steps]) <= set(thin_x), seed  # A leap is drawn as it is.


def test_thinning_keeps_the_areas_of_real_curves():
  data = realistic(pixels=300_000)
  for name, ranking in (
    ('Images', data.image_ranking),
    ('Pixels', data.pixel_ranking),
  ):
    (line,) = [line for line in curves.panel_lines(data, 'roc') if line.name == name]
    assert np.trapezoid(line.y, line.x) == pytest.approx(metrics.auroc(ranking), abs=1e-3)
    (line,) = [line for line in curves.panel_lines(data, 'pr') if line.name == name]
    want = metrics.average_precision(ranking)
    assert np.trapezoid(line.y, line.x) == pytest.approx(want, abs=1e-3)
    assert len(line.x) <= 1010


def test_few_vertices_are_left_as_they_are():
  x, y = staircase(np.random.default_rng(0), 400)
  assert curves.thin(x, y)[0] is x


def test_files_are_whole_small_and_replace_older_ones(tmp_path):
  folder = tmp_path / 'curves'
  folder.mkdir()
  (folder / 'stale.png').write_bytes(b'')
  curves.draw(folder, realistic())
  assert {path.name for path in folder.iterdir()} == NAMES
  assert [path.name for path in tmp_path.iterdir()] == ['curves']
  for path in folder.iterdir():
    assert path.stat().st_size < 300_000
    if path.suffix == '.png':
      with Image.open(path) as picture:
        # Something is drawn: paper, ink, grid and at least a color.
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 10
        assert picture.width == (1280 if path.stem == 'curves' else 960)
    else:
      assert ElementTree.parse(path).getroot().tag.endswith('svg')


def test_same_data_same_bytes_whatever_the_users_style(tmp_path):
  data = realistic(pixels=1000)
  draw_some(tmp_path / 'a', data, 'curves')  # Which has all panels.
  user_style = {
    'font.size': 30,
    'axes.facecolor': 'black',
    'svg.fonttype': 'none',
    'savefig.dpi': 50,
  }
  with matplotlib.rc_context(user_style):
    draw_some(tmp_path / 'b', data, 'curves')
    assert {key: matplotlib.rcParams[key] for key in user_style} == user_style
    assert matplotlib.rcParams['svg.hashsalt'] is None
  for name in ('curves.png', 'curves.svg'):
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def draw_some(folder, data, *names):
  """Write some of the figures: to write all of them takes seconds."""
  write = figures.write
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, 'write', lambda path, figure: path.name in names and write(path, figure))
    curves.draw(folder, data)


def words(folder, name):
  """Matplotlib notes each text beside the shapes of its letters."""
  return (folder / f'{name}.svg').read_text()


def test_numbers_stand_beside_the_curves(tmp_path):
  scores = [1.0] * 19 + [2.5] + [2.2] * 9 + [1.9]
  data = curves_of(scores, ['good'] * 20 + ['bent $lead$', 'b--c'] * 5, 2.0, 1.5)
  curves.draw(tmp_path, data)
  for text in ('at the threshold 90 % recall, 5 % false alarms', 'Images  AUROC 0.950'):
    assert text in words(tmp_path, 'roc')
    assert text in words(tmp_path, 'curves')
  assert 'at the threshold 90 % precision,' in words(tmp_path, 'pr')
  for text in ('NG (not good) above 2.00', 'to review above 1.50', 'bent $lead$'):
    assert text in words(tmp_path, 'histogram')
  assert 'Pixels: no curve without masks' in words(tmp_path, 'roc')
  assert 'no curve' in words(tmp_path, 'pro')


@pytest.mark.parametrize(
  ('scores', 'defects', 'expected'),
  [
    ([], [], 'There are no test images.'),
    pytest.param(
      [1.0, 2.5], ['good', 'good'],
      '2 good images: 1 passed (50 %), 0 to review (0 %), 1 falsely rejected (50 %).',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      [1.0, 2.5], ['裂纹', 'crack'],
      '2 defective images: 1 found (50 %), 0 to review (0 %), 1 missed (50 %).',
      marks=pytest.mark.slow,
    ),
    ([np.inf, -np.inf, np.inf, 1.0], ['good', 'good', 'a', 'a'],
     '2 defective images: 1 found (50 %), 0 to review (0 %), 1 missed (50 %). 2 good images:'),
    pytest.param(
      [3e-30, 3e-30], ['good', 'a'],
      '1 defective image: 0 found (0 %), 0 to review (0 %), 1 missed (100 %). 1 good image:',
      marks=pytest.mark.slow,
    ),
  ],
)  # fmt: skip
def test_missing_classes_and_infinite_scores_are_noted_in_the_figures(
  tmp_path, scores, defects, expected
):
  data = curves_of(scores, defects)
  curves.draw(tmp_path / 'curves', data)
  assert {path.name for path in (tmp_path / 'curves').iterdir()} == NAMES
  assert expected in words(tmp_path / 'curves', 'curves')
  both = {'good'} < set(defects)
  assert ('Images: no curve' in words(tmp_path / 'curves', 'roc')) is not both


def test_the_summary_starts_with_defects_and_never_calls_review_missed():
  for scores, defects, expected in (
    ([1.0, 1.7, 1.8, 2.5, 2.6], ['good', 'good', 'a', 'a', 'b'],
     '3 defective images: 2 found (67 %), 1 to review (33 %), 0 missed (0 %). '
     '2 good images: 1 passed (50 %), 1 to review (50 %), 0 falsely rejected (0 %).'),
    ([1.0, 1.7], ['good', 'good'],
     '2 good images: 1 passed (50 %), 1 to review (50 %), 0 falsely rejected (0 %).'),
  ):  # fmt: skip
    data = curves_of(scores, defects, 2.0, 1.5)
    assert curves.summary(data) == expected
    of_labels = data._replace(thresholds=limits(2.0, review=1.5, labeled=10))
    assert curves.summary(of_labels) == expected + (
      ' The threshold was set on labeled images; if they include these, the numbers are optimistic.'
    )


def test_an_image_with_warnings_is_counted_as_its_result_is_labeled():
  data = curves_of([1.0, 1.2, 2.5], ['good', 'good', 'a'], 2.0, 1.5)
  warning = {'code': 'blurred', 'message': 'It is blurred.'}
  data = data._replace(warnings=[[], [warning], [warning]])
  assert curves.image_labels(data) == ['OK', 'review', 'NG']
  assert '2 good images: 1 passed (50 %), 1 to review (50 %)' in curves.summary(data)


def test_good_images_held_out_say_what_they_are_for(tmp_path):
  data = curves_of([1.0, 2.5], ['good', 'a'])._replace(calibration_scores=np.linspace(0, 1, 9))
  draw_some(tmp_path / 'normals', data, 'histogram')
  assert '<!-- (thresholds) -->' in words(tmp_path / 'normals', 'histogram')
  draw_some(tmp_path / 'labels', data._replace(thresholds=limits(2.0, labeled=10)), 'histogram')
  assert '<!-- good, held out -->' in words(tmp_path / 'labels', 'histogram')
  assert '<!-- (thresholds) -->' not in words(tmp_path / 'labels', 'histogram')


@pytest.mark.parametrize(('defect', 'missing'), [('good', 'defective'), ('crack', 'good')])
def test_without_curves_the_histogram_has_the_page(tmp_path, defect, missing):
  draw_some(tmp_path, curves_of([1.0, 2.5], [defect] * 2), 'curves')
  text = words(tmp_path, 'curves')
  assert f'There are no curves without {missing} images.' in text
  assert 'Score histograms' in text
  assert 'ROC' not in text
  with Image.open(tmp_path / 'curves.png') as picture:
    assert picture.height < 0.65 * picture.width


def test_a_threshold_that_nothing_exceeds_is_drawn_too(tmp_path):
  draw_some(tmp_path, curves_of([1.0, 2.0], ['good', 'a'], np.inf), 'pr')
  assert 'no alarms' in words(tmp_path, 'pr')


def test_the_hardest_types_come_first_and_the_easiest_of_many_as_one(tmp_path):
  defects = [f'type {i:02}' for i in range(14)]
  draw_some(tmp_path, curves_of(np.arange(14.0), defects, image=5.0), 'histogram')
  text = words(tmp_path, 'histogram')
  names = [name for name in defects if f'<!-- {name} -->' in text]
  assert names == defects[:9]
  assert '<!-- 5 other types -->' in text
  assert text.index('type 00') < text.index('type 08') < text.index('5 other types')


def test_shares_are_distinct_from_none_and_all():
  expected = {
    0.0: '0 %', 1.0: '100 %', 0.914: '91 %', 0.034: '3 %', 0.01: '1 %',
    0.0004: '0.04 %', 0.9997: '99.97 %', 0.996: '99.6 %', 0.001: '0.1 %', 0.125: '13 %',
  }  # fmt: skip
  assert {share: format_percent(share) for share in expected} == expected
