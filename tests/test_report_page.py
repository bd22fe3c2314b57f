"""Tests of the HTML report in a browser."""

import shlex
from typing import NamedTuple

import numpy as np
import page_layout
from PIL import Image
import pytest

from uadjax.data import transforms
from uadjax.data.records import Record
from uadjax.data.region_of_interest import RegionOfInterest
from uadjax.evaluation import curves, report
from uadjax.evaluation.report import gallery
from uadjax.model import calibration
from uadjax.numerics import metrics

HOSTILE = '<img src=x onerror=run()>\u2028"\'&amp;'
CLOSING = '</script><script>run()</script>'
THRESHOLDS = calibration.Thresholds(2.0, 3.0, 1.5, 'normals', 0.01, 0.05, 100, 0.01, 0.03, 299)
WARNING = {'code': 'no_content', 'message': f'It is black: {HOSTILE}.'}
DIRECTORY = "runs/Bob's parts/model"
ADVICE = {
  'message': f'Only 1 of 9 defects: {HOSTILE}.',
  'trade_off': [
    {'budget': 0.01, 'image_threshold': 2.0, 'expected_false_alarm_rate': 0.0125,
     'false_alarm_rate_bound': 0.03, 'defects_found': 1, 'option': '--budget 0.01'},
    {'budget': 0.1, 'image_threshold': 1.0, 'expected_false_alarm_rate': 0.09,
     'false_alarm_rate_bound': 0.2, 'defects_found': 7, 'option': '--budget 0.1'},
  ],
}  # fmt: skip


class Case(NamedTuple):
  """Data of a report: records, anomaly maps and scores."""

  records: list[Record]
  maps: list[np.ndarray]
  curve_data: curves.CurveData

  @property
  def scored(self):
    return list(zip(self.curve_data.defects, self.curve_data.scores.tolist(), strict=True))

  @property
  def not_ok(self):
    """Whether the images have warnings, which no threshold makes OK."""
    return [bool(warnings) for warnings in self.curve_data.warnings]

  @property
  def scores(self):
    return self.curve_data.scores.tolist()


def make(folder, defects, masks=True):
  rng = np.random.default_rng(0)
  good = np.array([defect == 'good' for defect in defects], bool)
  scores = np.where(good, rng.normal(1.3, 0.4, len(good)), rng.normal(2.4, 0.7, len(good)))
  scores = scores.round(3)  # The precision of the scores in the report.
  maps = [rng.gamma(2.0, 1.0, (16, 16)).astype(np.float32) for _ in defects]
  records = [make_record(folder, i, defect, rng, masks) for i, defect in enumerate(defects)]
  both = good.any() and (~good).any()
  pixels = None
  if masks and both:
    pixels = metrics.rank(rng.gamma(4, 1, 500), [rng.gamma(2, 1, 5000)], np.full(500, 0.01))
  curve_data = curves.CurveData(
    title=f'A model on {CLOSING}',
    thresholds=THRESHOLDS,
    scores=scores,
    defects=defects,
    warnings=[[WARNING] * (i % 5 == 0) for i in range(len(defects))],
    image_ranking=metrics.rank(scores[~good], [scores[good]]) if both else None,
    pixel_ranking=pixels,
    num_pixel_alarms=40,
    calibration_scores=rng.normal(1.3, 0.4, 50),
  )
  return Case(records, maps, curve_data)


def make_record(folder, i, defect, rng, masks):
  path = folder / (f'{HOSTILE}{i}.png' if i % 3 == 0 else f'{i}.png')
  Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
  if defect == 'good' or not masks:
    return Record(path, defect)
  mask = np.zeros((40, 60), np.uint8)
  mask[10:20, 20:35] = 255
  Image.fromarray(mask).save(folder / f'{i}_mask.png')
  return Record(path, defect, folder / f'{i}_mask.png')


def write(case, path, num_pictures=200):
  labels, limit = curves.image_labels(case.curve_data), THRESHOLDS.image_threshold
  chosen = gallery.choose(case.records, case.curve_data.scores, labels, limit, num_pictures)
  ops = transforms.parse('resize(20)|center_crop(16)')
  pictures = gallery.make_pictures(case.records, case.maps, chosen, ops)
  provenance = {
    'model': {'name': HOSTILE, 'directory': DIRECTORY, 'arrays_sha256': 'ab' * 32},
    'timing': {'fit_s': 1.25},
    'config': {'name': CLOSING},
  }
  report_metrics = {'image_auroc': 0.9, 'pixel_auroc': None, 'au_pro': None, 'counts': {'good': 1}}
  report_metrics['threshold_advice'] = ADVICE
  report.write(path, case.curve_data, report_metrics, case.records, pictures, provenance)
  return path


def counts(case, review_threshold, image_threshold):
  """Return the number of images, OK, review and NG by defect type."""
  table = {}
  for name in set(case.curve_data.defects):
    rows = zip(case.scored, case.not_ok, strict=True)
    images = [(s, not_ok) for (defect, s), not_ok in rows if defect == name]
    num_ok = sum(s <= review_threshold and not not_ok for s, not_ok in images)
    num_ng = sum(s > image_threshold for s, _ in images)
    table[name] = [len(images), num_ok, len(images) - num_ok - num_ng, num_ng]
  return table


@pytest.fixture(scope='module')
def case(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  case = make(folder, ['good'] * 30 + [CLOSING] * 12 + ['scratch, long and hardly visible'] * 20)
  names = [f'{HOSTILE if i % 21 % 2 else "bolt "}{i % 21}' for i in range(62)]
  return case._replace(curve_data=case.curve_data._replace(parts=names))


@pytest.fixture(scope='module')
def file(case, tmp_path_factory):
  return write(case, tmp_path_factory.mktemp('report') / 'report.html')


@pytest.fixture
def show(browser):
  """Opens a report. Console messages, injected code and external requests fail the test."""
  pages, requests, messages = [], [], []

  def show(path, width=1280, height=900, scheme='light'):
    page = browser.new_page(viewport={'width': width, 'height': height}, color_scheme=scheme)
    page.add_init_script('window.run = () => { window.ran = true; };')
    page.on('request', lambda request: requests.append((request.url, path.as_uri())))
    page.on('console', lambda message: messages.append(message.text))
    page.on('pageerror', lambda error: messages.append(str(error)))
    page.goto(path.as_uri())
    pages.append(page)
    return page

  yield show
  for page in pages:
    assert page.evaluate('window.ran') is None
    page.close()
  assert messages == []
  external = [url for url, report_url in requests if url != report_url]
  assert [url for url in external if not url.startswith('data:')] == []


def table(page):
  """Return the displayed counts by defect type."""
  rows = page.locator('#defect-types tbody tr:not(.held-out)').all()
  counts_by_type = {}
  for row in rows:
    cells = row.locator('td.count').all_inner_texts()
    name = row.locator('th bdi').inner_text()
    counts_by_type[name] = [int(cell) for cell in cells[:4]]
  return counts_by_type


def thresholds(page):
  handles = '#review-threshold-handle', '#image-threshold-handle'
  return [float(page.get_attribute(handle, 'aria-valuenow')) for handle in handles]


def rate(page, name):
  """Return the number beside a name in the list of rates."""
  return page.inner_text(f'#numbers dt:text-is("{name}") + dd strong')


def assert_counted(page, case):
  expected = counts(case, *thresholds(page))
  assert table(page) == expected
  good = expected['good']
  defective = np.sum([n for name, n in expected.items() if name != 'good'], axis=0)
  # Defective images: NG, review, OK; good ones: OK, review, NG.
  order = [*((defective, i) for i in (3, 2, 1)), *((good, i) for i in (1, 2, 3))]
  tiles = page.locator('#key-numbers strong').all_inner_texts()
  assert tiles == [f'{numbers[i]} of {numbers[0]}' for numbers, i in order]
  missed = float(rate(page, 'Missed').split()[0])
  assert abs(missed - 100 * defective[1] / defective[0]) <= 0.5
  f1 = 2 * defective[3] / (defective[3] + good[3] + defective[0])
  assert rate(page, 'F1') == f'{f1:.3f}'
  precision = defective[3] / (defective[3] + good[3])
  assert abs(float(rate(page, 'Precision').split()[0]) - 100 * precision) <= 0.5
  # The operating point of the ROC curve follows the threshold.
  mark, grid = page.locator('#roc .mark.Images'), page.locator('#roc clipPath rect')
  box = {k: float(grid.get_attribute(k)) for k in ('x', 'y', 'width', 'height')}
  share = (float(mark.get_attribute('cx')) - box['x'] - 2) / (box['width'] - 4)
  assert share == pytest.approx(good[3] / good[0], abs=1e-6)


def test_dragging_a_threshold_moves_the_counts(show, file, case):
  page = show(file)
  assert thresholds(page) == [1.5, 2.0]
  assert_counted(page, case)
  for key, offset in (('image', -60), ('review', -90), ('image', 150)):
    previous = table(page)
    grip = page.locator(f'#{key}-threshold-handle .grip').bounding_box()
    x, y = grip['x'] + grip['width'] / 2, grip['y'] + grip['height'] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + offset, y + 3, steps=3)
    assert_counted(page, case)  # While dragging.
    page.mouse.up()
    assert_counted(page, case)  # After dragging.
    assert table(page) != previous
  page.click('#reset')
  assert thresholds(page) == [1.5, 2.0]


def test_thresholds_move_by_keyboard_and_by_number_and_never_cross(show, file, case):
  page = show(file)
  page.focus('#review-threshold-handle')
  for press in ('ArrowRight', 'Shift+ArrowRight', 'PageUp', 'ArrowLeft'):
    previous = thresholds(page)[0]
    page.keyboard.press(press)
    assert (thresholds(page)[0] > previous) == (press != 'ArrowLeft')
    assert_counted(page, case)
  page.keyboard.press('End')
  review_threshold, image_threshold = thresholds(page)
  assert review_threshold == image_threshold > max(case.scores)
  page.fill('#image-threshold', '1.234')
  page.keyboard.press('Enter')
  assert thresholds(page) == [1.234, 1.234]
  assert_counted(page, case)


def test_the_command_writes_the_thresholds_of_the_page(show, file):
  page = show(file)
  program = ['uadjax', 'threshold', DIRECTORY]
  assert not page.is_visible('#threshold-command')
  page.fill('#image-threshold', '1.234')  # The review threshold follows.
  page.keyboard.press('Enter')
  words = [*program, '--image-threshold', '1.234', '--review-threshold', '1.234']
  assert shlex.split(page.inner_text('#command')) == words
  page.fill('#pixel-threshold', '1.5')
  assert shlex.split(page.inner_text('#command')) == [*words, '--pixel-threshold', '1.5']
  page.click('#reset')
  assert not page.is_visible('#threshold-command')
  page.fill('#pixel-threshold', '1.5')
  assert shlex.split(page.inner_text('#command')) == [*program, '--pixel-threshold', '1.5']


def test_the_advice_of_the_evaluation_is_shown(show, file):
  page = show(file)
  assert ADVICE['message'] in page.text_content('#advice')
  rows = page.locator('#advice tbody tr').all()
  for row, want in zip(rows, ADVICE['trade_off'], strict=True):
    cells = row.locator('td').all_inner_texts()
    assert (cells[3], cells[4]) == (str(want['defects_found']), want['option'])


def parts_of(case, review_threshold, image_threshold):
  """Return the worst label, the number of images and whether one is defective, by part."""
  table = {}
  rows = zip(case.curve_data.parts, case.scored, case.not_ok, strict=True)
  for name, (defect, s), not_ok in rows:
    is_ok = s <= review_threshold and not not_ok
    label = 'NG' if s > image_threshold else 'OK' if is_ok else 'review'
    worst, number, is_defective = table.get(name, ('OK', 0, False))
    worst = max(worst, label, key=['OK', 'review', 'NG'].index)
    table[name] = worst, number + 1, is_defective or defect != 'good'
  return table


def texts(page, selector):
  """Return the texts of elements, with every white space as one blank."""
  return [' '.join(text.split()) for text in page.locator(selector).all_inner_texts()]


def test_parts_have_one_verdict_that_follows_the_thresholds(show, file, case):
  page = show(file)
  previous = None
  for threshold in (None, '1.2', '9'):
    if threshold:
      page.fill('#image-threshold', threshold)
      page.keyboard.press('Enter')
    parts = parts_of(case, *thresholds(page))
    assert parts != previous
    previous = parts
    parts_by_name = {' '.join(name.split()): values for name, values in parts.items()}
    lines = {f'Part {name} {label}' for name, (label, *_) in parts_by_name.items()}
    assert set(texts(page, '#tiles .part')) == lines
    counts = []
    for is_defective, order in ((True, ('NG', 'review', 'OK')), (False, ('OK', 'review', 'NG'))):
      labels = [label for label, _, defective in parts.values() if defective == is_defective]
      counts += [f'Parts: {labels.count(label)} of {len(labels)}' for label in order if labels]
    assert [text.split(',')[0] for text in texts(page, '.part-count') if text] == counts
    options = texts(page, '#part-filter option')[1:]
    assert set(options) == {
      f'{name}: {label}, {k} images' for name, (label, k, _) in parts_by_name.items()
    }
    severities = [parts_by_name[option.rpartition(':')[0]][0] for option in options]
    assert severities == sorted(severities, key=['NG', 'review', 'OK'].index)


def test_the_images_of_a_part_are_shown_together(show, file, case):
  page = show(file)
  page.select_option('#order', 'part')
  names = texts(page, '#tiles .part bdi')
  changes = sum(a != b for a, b in zip(names[1:], names[:-1], strict=True))
  assert changes == len(set(names)) - 1  # Adjacent.
  name = case.curve_data.parts[1]
  page.select_option('#part-filter', name)
  scores = [s for s, part in zip(case.scores, case.curve_data.parts, strict=True) if part == name]
  assert sorted(score for score, _ in tiles(page)) == sorted(scores)
  page.locator('#tiles button').first.click()
  assert f'part {name}' in page.inner_text('#zoom-info')


@pytest.mark.slow
def test_thresholds_move_by_touch(browser, file, case):
  context = browser.new_context(viewport={'width': 390, 'height': 844}, has_touch=True)
  page = context.new_page()
  page.goto(file.as_uri())
  page.locator('#image-threshold-handle').scroll_into_view_if_needed()
  grip = page.locator('#image-threshold-handle .grip').bounding_box()
  assert grip['height'] >= 22
  session = context.new_cdp_session(page)
  x, y = grip['x'] + grip['width'] / 2, grip['y'] + grip['height'] / 2
  for kind, touch_x in (('touchStart', x), ('touchMove', x - 30), ('touchMove', x - 70)):
    points = [{'x': touch_x, 'y': y}]
    session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
  session.send('Input.dispatchTouchEvent', {'type': 'touchEnd', 'touchPoints': []})
  assert thresholds(page)[1] < 2.0
  assert_counted(page, case)
  context.close()


def tiles(page):
  """Return score and verdict of each tile."""
  scores = page.locator('#tiles .score').all_inner_texts()
  return list(
    zip(map(float, scores), page.locator('#tiles .verdict').all_inner_texts(), strict=True)
  )


def misclassified_scores(case):
  """Return the scores of misclassified images, the farthest from the threshold first."""
  errors = [
    (s - 2.0 if defect == 'good' else 2.0 - s, s)
    for (defect, s), not_ok in zip(case.scored, case.not_ok, strict=True)
    if (s > 2.0 if defect == 'good' else s <= 1.5 and not not_ok)
  ]
  return [s for _, s in sorted(errors, reverse=True)]


@pytest.mark.slow
def test_the_gallery_shows_misclassified_images_first_and_sorts_and_filters(show, file, case):
  page = show(file)
  page.click('#more')
  expected = misclassified_scores(case)
  assert len(expected) > 3
  scores = [score for score, _ in tiles(page)]
  assert scores[: len(expected)] == expected
  assert sorted(scores) == sorted(case.scores)
  page.select_option('#order', 'high')
  assert [score for score, _ in tiles(page)] == sorted(case.scores, reverse=True)
  page.select_option('#order', 'low')
  assert [score for score, _ in tiles(page)] == sorted(case.scores)
  page.select_option('#label-filter', 'review')
  rows = zip(case.scores, case.not_ok, strict=True)
  reviewed = sorted(s for s, not_ok in rows if s <= 2.0 and (s > 1.5 or not_ok))
  assert [score for score, _ in tiles(page)] == reviewed
  assert sum('no content' in verdict for _, verdict in tiles(page)) > 2
  page.select_option('#label-filter', 'misclassified')
  assert sorted(score for score, _ in tiles(page)) == sorted(expected)
  page.select_option('#label-filter', '')
  page.select_option('#type-filter', label=CLOSING)
  scores = [s for defect, s in case.scored if defect == CLOSING]
  assert [score for score, _ in tiles(page)] == sorted(scores)
  page.fill('#review-threshold', '100')
  page.keyboard.press('Enter')
  verdicts = [verdict for _, verdict in tiles(page)]
  # Images with warnings are to review, and not missed.
  assert {verdict.startswith('OK') for verdict in verdicts} == {True, False}
  assert all(('missed' in verdict) == verdict.startswith('OK') for verdict in verdicts)


PIXELS = '(selector) => document.querySelector(selector).toDataURL()'


def changed(page, selector, previous):
  """Wait until the pixels of a canvas have changed, and return them."""
  test = f'([selector, previous]) => !["data:,", previous].includes(({PIXELS})(selector))'
  page.wait_for_function(test, arg=[selector, previous])
  return page.evaluate(PIXELS, selector)


@pytest.mark.slow
def test_an_image_to_review_says_where_to_look(show, tmp_path):
  small = make(tmp_path, ['good'] * 3)
  scores = np.array([1.0, 1.75, 2.5])  # OK, review, NG.
  places = [{'peak': 1.0, 'at': (i, 7), 'regions': []} for i in range(3)]
  maps = [np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)] * 3
  curve_data = small.curve_data._replace(scores=scores, warnings=[()] * 3, locations=places)
  page = show(write(Case(small.records, maps, curve_data), tmp_path / 'report.html'))
  canvas = '#tiles li:nth-child(2) canvas'
  page.locator(canvas).scroll_into_view_if_needed()
  page.fill('#opacity', '0')
  page.uncheck('#show-outlines')
  current = changed(page, canvas, '')
  page.check('#show-outlines')  # No map value exceeds the pixel threshold.
  current = changed(page, canvas, current)
  page.locator('#tiles button').nth(1).click()
  assert 'look at x 1, y 7' in page.inner_text('#zoom-info')
  page.click('#close')
  page.fill('#review-threshold', '1.8')  # It is OK now.
  page.keyboard.press('Enter')
  changed(page, canvas, current)


@pytest.mark.slow
def test_settings_change_the_pixels_of_the_pictures(show, file):
  page = show(file)
  page.select_option('#type-filter', label=CLOSING)
  canvas = '#tiles li:first-child canvas'
  page.locator(canvas).scroll_into_view_if_needed()
  current = changed(page, canvas, '')
  page.fill('#opacity', '0')
  current = changed(page, canvas, current)
  page.uncheck('#show-truth')
  current = changed(page, canvas, current)
  # The color bar is labeled with the pixel threshold and the upper end.
  assert page.inner_text('#color-bar').split() == ['3', '4.5']
  page.fill('#pixel-threshold', '1.5')
  assert page.inner_text('#color-bar').split() == ['1.5', '2.5']
  current = changed(page, canvas, current)
  page.uncheck('#show-outlines')
  changed(page, canvas, current)


@pytest.mark.slow
def test_a_picture_is_enlarged_and_closed(show, file):
  page = show(file)
  assert not page.is_visible('#zoom')
  page.locator('#tiles button').first.focus()
  page.keyboard.press('Enter')
  first = page.inner_text('#zoom-name')
  current = changed(page, '#zoom-canvas', '')
  page.keyboard.press('ArrowRight')
  assert page.inner_text('#zoom-name') != first
  current = changed(page, '#zoom-canvas', current)
  page.keyboard.press('+')
  current = changed(page, '#zoom-canvas', current)
  page.hover('#zoom-canvas')
  page.mouse.wheel(0, -300)
  current = changed(page, '#zoom-canvas', current)
  page.mouse.down()
  page.mouse.move(500, 500)
  page.mouse.up()
  current = changed(page, '#zoom-canvas', current)
  page.fill('#opacity', '0')  # The settings are in the dialog.
  changed(page, '#zoom-canvas', current)
  page.focus('#close')
  page.keyboard.press('ArrowLeft')
  assert page.inner_text('#zoom-name') == first
  page.keyboard.press('Escape')
  assert not page.is_visible('#zoom')
  assert page.is_visible('.card #opacity')
  assert page.evaluate('document.activeElement.closest("#tiles") !== null')


def test_labels_are_explained_and_a_model_of_other_images_is_noticed(show, tmp_path):
  case = make(tmp_path, ['good'] * 41)
  for scores, num_warnings in ((np.full(41, 9.0), 1), (np.full(41, 1.0), 0)):
    case = case._replace(curve_data=case.curve_data._replace(scores=scores))
    page = show(write(case, tmp_path / 'report.html', 0))
    warnings = page.locator('#warnings li').all_inner_texts()
    assert len(warnings) == num_warnings
    assert all('41 of 41 good images are NG' in warning for warning in warnings)
    assert 'NG (not good)' in page.inner_text('#label-legend')


def test_names_are_shown_as_text(show, file):
  page = show(file)
  assert page.title() == f'A model on {CLOSING}'
  assert page.inner_text('h1') == f'A model on {CLOSING}'
  assert page.locator('#defect-types th', has_text=CLOSING).count() == 1
  assert page.locator('#tiles .path', has_text='<img src=x').count() > 5
  assert page.locator('#provenance dd', has_text='<img src=x').count() == 1
  assert page.locator('img').count() == 0
  assert page.locator('script').count() == 3


def test_injected_html_neither_runs_nor_sends_requests(browser, file, tmp_path):
  injected = '<script>run()</script><img src="http://127.0.0.1:9/x.png" onerror="run()">'
  (tmp_path / 'report.html').write_text(file.read_text().replace('</body>', f'{injected}</body>'))
  page, refused = browser.new_page(), []
  page.add_init_script('window.run = () => { window.ran = true; };')
  page.on('requestfailed', lambda request: refused.append((request.url, request.failure)))
  page.goto((tmp_path / 'report.html').as_uri())
  assert page.locator('#key-numbers li').count() == 6
  assert page.evaluate('window.ran') is None
  assert refused == [
    ('http://127.0.0.1:9/x.png', 'csp')
  ]  # Blocked by the policy, not by the network.
  page.close()


@pytest.mark.slow
def test_hovering_over_a_curve_shows_its_values(show, file):
  page = show(file)
  page.locator('#roc svg').scroll_into_view_if_needed()
  page.hover('#roc svg')
  tooltip = page.locator('#roc .tooltip')
  assert tooltip.is_visible()
  assert 'false alarms' in tooltip.text_content()


GROUPS = (
  'body > *, main > *', 'nav a', '#key-numbers li', '#ranking-metrics li', '#thresholds > *',
  '.bar > *', '#numbers > div', '#numbers > div > *', '#numbers dd > *',
  '#histogram .name, #histogram .tick',
  '#histogram .grip, #histogram .name', '#histogram-hint > *', '#roc svg > text:not(.tooltip)',
  '#pr svg > text:not(.tooltip)', '#pro svg > text:not(.tooltip)', '#curves figure',
  '.legend li > *', '#tiles li', '.caption > *', '.caption .verdict > *',
  '.caption .part > *', '#key-numbers li > *',
  '#defect-types td, #defect-types th', '.defect-type > *', '.properties > div > *',
  '.zoom-head > *', '.zoom-buttons > *', '#zoom-info > *', 'dialog[open] > *',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
def test_nothing_overlaps_or_is_cut_off(show, file, width):
  page = show(file, width)
  assert page.evaluate('document.documentElement.scrollWidth') <= width
  assert page_layout.collisions(page, GROUPS) == []
  page.locator('#tiles button').first.click()
  assert page_layout.collisions(page, GROUPS) == []
  assert page.evaluate('document.querySelector("dialog").scrollWidth') <= width


COLUMNS = """() => [...document.querySelectorAll('#defect-types tr')].map((row) =>
  [...row.children].map((cell) => Math.round(cell.getBoundingClientRect().right)))"""
LINES = """() => [...document.querySelectorAll('#defect-types :is(td, thead th)')].map((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell.firstChild);
  return range.getClientRects().length;
})"""


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
def test_numbers_are_aligned_with_their_headings_in_one_line(show, file, width):
  page = show(file, width)
  columns = page.evaluate(COLUMNS)
  assert columns == [columns[0]] * len(columns)
  assert set(page.evaluate(LINES)) == {1}


@pytest.mark.slow
def test_the_report_follows_the_color_scheme(show, file):
  def lightness(scheme):
    page = show(file, scheme=scheme)
    colors = [
      page.evaluate(f'getComputedStyle(document.body).{name}')
      for name in ('backgroundColor', 'color')
    ]
    return [sum(map(int, color[4:-1].split(','))) for color in colors]

  light, dark = lightness('light'), lightness('dark')
  assert light[0] - light[1] > 500
  assert dark[1] - dark[0] > 500


@pytest.mark.slow
def test_every_control_has_a_name(show, file):
  page = show(file)
  unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select, [role]')]
    .filter((e) => e.checkVisibility() && !e.ariaLabel && !e.labels?.length && !e.textContent.trim()
      && !e.getAttribute('aria-labelledby')).map((e) => e.outerHTML)""")
  assert unnamed == []


@pytest.mark.slow
@pytest.mark.parametrize(('defects', 'masks', 'pictures', 'sentences'), [
  (['good'] * 3, True, 200, ['without defective images', 'No defective images']),
  (['cut'] * 3, True, 200, ['without good images', 'No good images']),
  (['good', 'cut', 'cut'], False, 200, ['no curve without masks']),
  (['good'], True, 200, ['without defective images']),
  (['good', 'cut'], True, 0, ['This report has no pictures.']),
  ([], True, 0, ['There are no test images.', 'This report has no pictures.']),
])  # fmt: skip
def test_missing_parts_are_replaced_by_a_sentence(
  show, tmp_path, defects, masks, pictures, sentences
):
  small = make(tmp_path, defects, masks)
  page = show(write(small, tmp_path / 'report.html', pictures), 390)
  text = page.inner_text('body')
  for sentence in sentences:
    assert sentence in text
  for placeholder in ('NaN', 'undefined', 'null', 'Infinity', 'Part'):
    assert placeholder not in text
  assert page_layout.collisions(page, GROUPS) == []
  if defects:
    page.focus('#image-threshold-handle')
    page.keyboard.press('ArrowRight')
    assert table(page) == counts(small, *thresholds(page))


@pytest.mark.slow
def test_the_number_of_pictures_is_limited_but_every_image_is_counted(show, case, tmp_path):
  page = show(write(case, tmp_path / 'report.html', 9))
  assert page.locator('#tiles li').count() == 9
  assert '9 of 9 pictures, of 62 images' in page.inner_text('#visible-count')
  assert_counted(page, case)


@pytest.mark.slow
def test_scores_that_are_infinite_or_span_decades_are_shown(show, tmp_path):
  wide = make(tmp_path, ['good'] * 4 + ['cut'] * 4)
  scores = np.array([0.001, 0.01, 0.1, 0.2, 1.8, 40, 900, np.inf])
  good = np.arange(8) < 4
  ranking = metrics.rank(scores[~good], [scores[good]])
  curve_data = wide.curve_data._replace(
    scores=scores, image_ranking=ranking, calibration_scores=None
  )
  wide = wide._replace(curve_data=curve_data)
  page = show(write(wide, tmp_path / 'report.html'))
  assert table(page) == counts(wide, 1.5, 2.0)
  page.focus('#image-threshold-handle')
  page.keyboard.press('ArrowLeft')
  assert 1.5 < thresholds(page)[1] < 2.0
  page.keyboard.press('Home')
  assert table(page) == counts(wide, *thresholds(page))


def test_pixels_outside_of_the_region_of_interest_are_dimmed(show, tmp_path):
  case = make(tmp_path, ['good'] * 2)
  for record in case.records:
    Image.new('RGB', (60, 40), 'white').save(record.path)
  mask = np.zeros((40, 60), bool)
  mask[:, :40] = True
  ops = transforms.parse('resize(16)').with_region(RegionOfInterest(mask))
  pictures = gallery.make_pictures(case.records, case.maps, [0, 1], ops)
  path = tmp_path / 'report.html'
  report.write(path, case.curve_data, {'counts': {'good': 2}}, case.records, pictures, {})
  page = show(path)
  canvas = '#tiles li:first-child canvas'
  page.locator(canvas).scroll_into_view_if_needed()
  current = changed(page, canvas, '')
  page.fill('#opacity', '0')
  page.uncheck('#show-outlines')
  changed(page, canvas, current)
  inside, outside = page.evaluate(
    """(selector) => {
      const canvas = document.querySelector(selector);
      const { width, height } = canvas;
      const row = canvas.getContext('2d').getImageData(0, height >> 1, width, 1).data;
      return [0.3, 0.85].map((share) => row[4 * Math.floor(share * width)]);
    }""", canvas,
  )  # fmt: skip
  assert inside > 250
  assert outside == pytest.approx(0.4 * 255, abs=6)
