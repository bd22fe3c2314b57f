"""Tests of the service's web page in a browser."""

import base64
import csv
import io
import json
from pathlib import Path
import re
import shlex
import shutil
import time
import urllib.error
import urllib.request

import numpy as np
import page_layout
from PIL import Image, ImageDraw
import pytest

from uadjax import create_model
from uadjax.inference.result import Result
from uadjax.serve import app as apps, settings as options

HOSTILE = '<img src=x onerror=run()>"\'&amp;.png'
TOKEN = 's3cret'
ROUTE = '/image-anomaly-detection'
IMAGE, REVIEW, PIXEL = 'imageThreshold', 'reviewThreshold', 'pixelThreshold'
# Records the maximum number of concurrent requests, and whether injected code ran.
RECORDER = """
  window.run = () => { window.ran = true; };
  window.maxRequests = window.numRequests = 0;
  const realFetch = window.fetch;
  window.fetch = (...options) => {
    window.maxRequests = Math.max(window.maxRequests, ++window.numRequests);
    return realFetch(...options).finally(() => { window.numRequests--; });
  };"""


@pytest.fixture(scope='module')
def photos(drawn, tmp_path_factory):
  """Images with distinct names."""
  folder = tmp_path_factory.mktemp('photos')
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))
  names = [HOSTILE, *(f'part {number}.png' for number in range(1, len(paths)))]
  return [Path(shutil.copy(path, folder / name)) for path, name in zip(paths, names, strict=True)]


@pytest.fixture(scope='module')
def results(directory, photos):
  """Results of `predict` by image name."""
  predictions = create_model(model_dir=directory).predict(photos)
  return {Path(result.input_path).name: result for result in predictions}


@pytest.fixture(scope='module')
def thresholds(results):
  """Thresholds of the model and of a copy with others, so that they disagree on some images."""
  calibrated = next(iter(results.values())).thresholds
  scores = sorted(result.score for result in results.values())
  changed_thresholds = calibrated._replace(review_threshold=scores[1], image_threshold=scores[3])
  return {'disc': calibrated, 'other': changed_thresholds}


@pytest.fixture(scope='module')
def directories(directory, thresholds, tmp_path_factory):
  other = shutil.copytree(directory, tmp_path_factory.mktemp('other') / 'model')
  manifest = json.loads((other / 'manifest.json').read_text())
  manifest['thresholds'] |= {
    key: getattr(thresholds['other'], key) for key in ('review_threshold', 'image_threshold')
  }
  (other / 'manifest.json').write_text(json.dumps(manifest))
  return {'disc': directory, 'other': other}


@pytest.fixture(scope='module')
def address(directories, served):
  with served(apps.build_app(options.Settings(directories, token=TOKEN, batch=1))) as url:
    yield f'{url}/'


@pytest.fixture
def expect():
  return pytest.importorskip('playwright.sync_api', reason='needs playwright').expect


@pytest.fixture
def show(browser, address):
  """Opens the page. Console messages, injected code and external requests fail the test."""
  contexts, messages, urls = [], [], []

  def show(width=1280, scheme='light', token=TOKEN, prepare=lambda page: None):
    size = {'width': width, 'height': 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion='reduce')
    contexts.append(context)
    page = context.new_page()
    page.add_init_script(
      RECORDER + f"sessionStorage.setItem('uadjax-token', '{token}');" * bool(token)
    )
    page.on('console', lambda message: messages.append(message.text))
    page.on('pageerror', lambda error: messages.append(str(error)))
    page.on('request', lambda request: urls.append(request.url))
    prepare(page)
    page.goto(address)
    if token == TOKEN:
      page.wait_for_selector('#model-choice:not([hidden])', timeout=60000)
    return page

  yield show
  for context in contexts:
    assert context.pages[0].evaluate('window.ran') is None
    context.close()
  # Chromium logs responses with an error status.
  assert [text for text in messages if not text.startswith('Failed to load resource')] == []
  assert [url for url in urls if not url.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture
def scored_page(show, photos, expect):
  """The page with all images scored."""

  def scored_page(**options):
    page = show(**options)
    page.set_input_files('#files-input', photos)
    expect(page.locator('#progress-text')).to_have_text(f'{len(photos)} of {len(photos)} scored')
    return page

  return scored_page


def read(pattern, text):
  """Return the first number that matches."""
  return float(re.findall(pattern, text)[0])


def cards(page):
  """Return the name and the (label, score) pairs of each card, in order."""
  # The page is updated in the next frame.
  page.evaluate('() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))')
  return page.evaluate("""() => [...document.querySelectorAll('#tiles li')].map((card) => [
    card.querySelector('.path').textContent,
    [...card.querySelectorAll('.verdict')].map((row) =>
      [row.querySelector('.badge')?.textContent, row.querySelector('.score')?.textContent])])""")


def labels(page):
  return {name: [label for label, _ in verdicts] for name, verdicts in cards(page)}


def label(score, review_threshold, image_threshold):
  return 'OK' if score <= review_threshold else 'review' if score <= image_threshold else 'NG'


def slider(page, key, panel=0):
  return page.locator('.panel').nth(panel).locator(f'input[type=range][data-key={key}]')


def number(page, key, panel=0):
  return page.locator('.panel').nth(panel).locator(f'input[type=number][data-key={key}]')


def picture(page, selector):
  return page.evaluate('(selector) => document.querySelector(selector).toDataURL()', selector)


def changed(page, selector, previous):
  """Wait until a canvas has changed and is stable; the page's policy forbids wait_for_function."""
  deadline, last = time.monotonic() + 20, previous
  while (current := picture(page, selector)) in ('data:,', previous) or current != last:
    assert time.monotonic() < deadline
    last = current
    page.wait_for_timeout(100)
  return current


def downloaded(page, button='#download'):
  with page.expect_download() as waiting:
    page.click(button)
  text = Path(waiting.value.path()).read_text()
  return json.loads(text) if button == '#download' else text


def with_thresholds(result, thresholds):
  """Return the result of a model with other thresholds."""
  source, ops, size = result._source, result._ops, result.size
  return Result(source, 'x', ops, thresholds, size, result.score, result.network_map)


TRANSFER = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: 'image/png' }));
  }
  %s
}"""
DROP_FILES = (
  TRANSFER
  % """for (const kind of ['dragenter', 'dragover', 'drop']) {
    const init = { dataTransfer: transfer, bubbles: true, cancelable: true };
    document.querySelector('main').dispatchEvent(new DragEvent(kind, init));
  }"""
)
PASTE_FILES = (
  TRANSFER
  % """document.body.dispatchEvent(
    new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }));"""
)


def encoded(path):
  return [path.name, base64.b64encode(path.read_bytes()).decode()]


def test_dropped_and_pasted_images_get_the_results_of_predict(show, photos, results, expect):
  page = show()
  assert f"'{page.url}image-anomaly-detection?model=disc'" in page.inner_text('#curl')
  page.evaluate(DROP_FILES, [encoded(path) for path in photos[:2]])
  expect(page.locator('#progress-text')).to_have_text('2 of 2 scored')
  page.evaluate(PASTE_FILES, [encoded(photos[2])])
  expect(page.locator('#progress-text')).to_have_text('3 of 3 scored')
  results = [results[path.name] for path in photos[:3]]
  by_score = sorted(results, key=lambda result: -result.score)
  expect(page.locator('#tiles .score')).to_have_count(3)
  displayed = cards(page)
  assert [name for name, _ in displayed] == [Path(result.input_path).name for result in by_score]
  for (_, [(displayed_label, score)]), result in zip(displayed, by_score, strict=True):
    assert displayed_label == result.label
    assert float(score) == pytest.approx(result.score, rel=1e-3)
  page.click('#clear')
  expect(page.locator('#tiles li')).to_have_count(0)
  expect(page.locator('#intro')).to_be_visible()


def drop_folder(page, folder):
  """Drop a folder as the operating system does; a synthetic event has no directory entries."""
  session = page.context.new_cdp_session(page)
  data = {'items': [], 'files': [str(folder)], 'dragOperationsMask': 1}
  for kind in ('dragEnter', 'dragOver', 'drop'):
    event = {'type': kind, 'x': 200, 'y': 300, 'data': data}
    session.send('Input.dispatchDragEvent', event)


@pytest.mark.slow
def test_images_of_a_folder_are_scored_in_natural_order_and_other_files_skipped(
  show, photos, tmp_path, expect
):
  for name in ('10.png', '9.png', 'deep/1.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(photos[1], tmp_path / name)
  (tmp_path / 'notes.txt').write_text('no image')
  page = show()
  for add_folder in (
    lambda: page.set_input_files('#folder-input', tmp_path),
    lambda: drop_folder(page, tmp_path),
  ):
    add_folder()
    expect(page.locator('#progress-text')).to_have_text('3 of 3 scored')
    assert '1 file ' in page.inner_text('#skipped')
    page.select_option('#order', 'added')
    expected = [f'{tmp_path.name}/{name}' for name in ('9.png', '10.png', 'deep/1.png')]
    expect(page.locator('#tiles .path')).to_have_text(expected)
    page.click('#clear')


@pytest.mark.slow
def test_a_card_is_enlarged_and_closed_by_keyboard(scored_page, results, expect):
  page = scored_page()
  page.locator('#tiles button').first.focus()
  page.keyboard.press('Enter')
  current = changed(page, '#views canvas', '')
  first = page.inner_text('#zoom-name')
  page.fill('dialog #opacity', '0')
  current = changed(page, '#views canvas', current)
  page.uncheck('#outlines')
  page.uncheck('#boxes')
  expect(page.locator('#views summary')).to_have_text(
    re.compile(rf'^{len(results[first].regions)} region')
  )
  box = page.locator('#views canvas').bounding_box()
  page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 0.5 * box['height'])
  value = read(r'x 30, y 30: ([\d.]+)', page.inner_text('#cursor'))
  center = results[first].anomaly_map[28:32, 28:32]
  assert center.min() * 0.99 < value < center.max() * 1.01
  page.focus('#close')
  page.keyboard.press('ArrowRight')
  expect(page.locator('#zoom-name')).not_to_have_text(first)
  second = page.inner_text('#zoom-name')
  page.keyboard.press('ArrowLeft')
  expect(page.locator('#zoom-name')).to_have_text(first)
  page.keyboard.press('ArrowRight')
  page.keyboard.press('Escape')
  expect(page.locator('#zoom')).to_be_hidden()
  focused = 'name => document.activeElement.querySelector(".path")?.textContent === name'
  page.wait_for_function(focused, arg=second)
  expect(page.locator('main #opacity')).to_be_visible()


def test_changing_a_threshold_by_keyboard_relabels_every_card(scored_page, results, expect):
  page = scored_page()
  scores = {name: result.score for name, result in results.items()}
  calibrated_labels = labels(page)
  assert calibrated_labels == {name: [result.label] for name, result in results.items()}
  calibrated = number(page, IMAGE).input_value()
  slider(page, IMAGE).focus()
  for press in ('End', 'Home', 'PageUp', 'PageUp', 'ArrowRight'):
    page.keyboard.press(press)
    review, image = (float(number(page, key).input_value()) for key in (REVIEW, IMAGE))
    assert review <= image
    expected = {name: [label(score, review, image)] for name, score in scores.items()}
    assert labels(page) == expected
    if press == 'End':
      assert ['NG'] not in expected.values()
    if press == 'Home':
      assert set(map(tuple, expected.values())) == {('NG',)}
  expect(page.locator('.label-counts')).to_contain_text(
    f'NG{list(expected.values()).count(["NG"])}'
  )
  shares = page.locator('.label-counts .count > span:last-child').all_inner_texts()
  assert sum(float(share.rstrip('%')) for share in shares) == pytest.approx(100, abs=1.5)
  expect(page.locator('#panels')).to_contain_text('NG (not good): rejected')
  page.click('text=Reset to calibrated')
  expect(number(page, IMAGE)).to_have_value(calibrated)
  assert labels(page) == calibrated_labels


def test_the_command_writes_the_thresholds_of_the_page_and_is_copied(
  scored_page, directory, expect
):
  def catch_copies(page):
    page.add_init_script('navigator.clipboard.writeText = async (text) => { window.copy = text; };')

  page = scored_page(prepare=catch_copies)
  box = page.locator('.threshold-command')
  expect(box).to_be_hidden()
  for key, value in ((REVIEW, '0.125'), (IMAGE, '0.25'), (PIXEL, '0.5')):
    number(page, key).fill(value)
    page.keyboard.press('Enter')
  words = ['uadjax', 'threshold', str(directory), '--image-threshold', '0.25']
  words += ['--review-threshold', '0.125', '--pixel-threshold', '0.5']
  expect(box.locator('pre')).to_have_text(shlex.join(words))
  box.locator('button').click()
  expect(box.locator('button')).to_have_text('Copied')
  assert page.evaluate('window.copy') == shlex.join(words)
  page.click('text=Reset to calibrated')
  expect(box).to_be_hidden()


@pytest.mark.slow
def test_the_pixel_threshold_updates_outlines_and_regions(scored_page, results, expect):
  page = scored_page()
  current = changed(page, '#tiles canvas', '')
  slider(page, PIXEL).focus()
  page.keyboard.press('Home')
  changed(page, '#tiles canvas', current)
  page.locator('#tiles button').first.click()
  summary = page.locator('#views summary')
  expect(summary).to_have_text('1 region')  # The whole image.
  page.click('#views summary')
  expect(page.locator('.regions li')).to_contain_text('3600 of 3600')
  page.focus('dialog input[data-key=pixelThreshold]')
  page.keyboard.press('End')
  # An image that is not OK always says where to look.
  expect(page.locator('.regions li').first).not_to_contain_text('3600 of 3600')
  expect(summary).to_have_text(re.compile('^[1-9]'))
  # The heatmap has 256 levels, hence the tolerances.
  anomaly_map = results[page.inner_text('#zoom-name')].anomaly_map
  middle = float((anomaly_map.min() + anomaly_map.max()) / 2)
  page.fill('dialog input[type=number]', str(middle))
  page.keyboard.press('Enter')
  area = page.locator('.regions li').first
  expect(area).to_contain_text('peak')
  assert read(r'peak ([\d.]+)', area.inner_text()) == pytest.approx(anomaly_map.max(), rel=1e-3)
  inside = sum(read(r'; (\d+) of', li) for li in page.locator('.regions li').all_inner_texts())
  assert inside == pytest.approx((anomaly_map > middle).sum(), rel=0.05)


@pytest.mark.slow
def test_two_models_are_compared(scored_page, photos, results, thresholds, expect):
  page = scored_page()
  page.select_option('#second-model', 'other')
  expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos))
  expected = {
    name: [
      label(result.score, model.review_threshold, model.image_threshold)
      for model in thresholds.values()
    ]
    for name, result in results.items()
  }
  assert labels(page) == expected
  disagreements = {name for name, (first, second) in expected.items() if first != second}
  assert 0 < len(disagreements) < len(expected)
  page.select_option('#filter', 'disagree')
  assert set(labels(page)) == disagreements
  slider(page, IMAGE, 1).focus()  # Each model has its own thresholds.
  page.keyboard.press('End')
  page.select_option('#filter', '')
  assert all(first == expected[name][0] for name, (first, _) in labels(page).items())
  assert all(second != 'NG' for _, second in labels(page).values())
  page.select_option('#second-model', '')
  assert labels(page) == {name: [first] for name, (first, _) in expected.items()}


@pytest.mark.slow
def test_the_download_has_the_results_of_predict_at_the_current_thresholds(
  scored_page, photos, results, thresholds, expect
):
  page = scored_page()
  page.select_option('#second-model', 'other')
  expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos))
  for key, value in ((REVIEW, '0.1'), (IMAGE, '0.2'), (PIXEL, '0.3')):
    number(page, key).fill(value)
    page.keyboard.press('Enter')
  summary = downloaded(page)
  first, second = summary['models']
  keys = 'image_threshold', 'review_threshold', 'pixel_threshold'
  assert first['thresholds'] == dict(zip(keys, (0.2, 0.1, 0.3), strict=True))
  assert [image['name'] for image in summary['images']] == [path.name for path in sorted(photos)]
  for image in summary['images']:
    for model, verdict in zip((first, second), image['verdicts'], strict=True):
      calibrated = thresholds[model['model']]
      result = with_thresholds(results[image['name']], calibrated)
      assert model['calibrated_thresholds'] == {key: getattr(calibrated, key) for key in keys}
      assert (verdict['score'], verdict['size']) == (result.score, list(result.size))
      current = model['thresholds']
      assert verdict['label'] == label(
        result.score, current['review_threshold'], current['image_threshold']
      )
      regions = [region._asdict() for region in result.regions]
      assert verdict['regions'] == json.loads(json.dumps(regions))
      assert verdict['regions_pixel_threshold'] == result.regions_pixel_threshold
      assert (verdict['peak'], verdict['at']) == (result.peak, list(result.at))
  assert second['thresholds'] == second['calibrated_thresholds']


def test_the_csv_file_has_the_results_and_no_formulas(show, photos, results, tmp_path, expect):
  shutil.copy(photos[1], tmp_path / '=1+1.png')
  (tmp_path / 'broken.png').write_bytes(b'no image')
  page = show()
  page.set_input_files('#files-input', [tmp_path / '=1+1.png', tmp_path / 'broken.png'])
  expect(page.locator('#progress-text')).to_have_text('1 of 2 scored, 1 failed')
  result = results[photos[1].name]
  text = downloaded(page, '#download-csv')
  row, broken = csv.DictReader(io.StringIO(text, newline=''))
  assert (row['name'], row['model'], row['label']) == ("'=1+1.png", 'disc', result.label)
  expected = [result.score, result.peak, *result.at, *result.size]
  columns = ('score', 'peak', 'x', 'y', 'height', 'width')
  assert [float(row[name]) for name in columns] == expected
  for name in ('image_threshold', 'review_threshold', 'pixel_threshold'):
    assert float(row[name]) == getattr(result.thresholds, name)
  assert (broken['name'], broken['score']) == ('broken.png', '')
  assert not row['error']
  assert broken['error']


@pytest.fixture(scope='module')
def camera_photos(photos, tmp_path_factory):
  """Images of parts from three cameras each, and one that shows no part."""
  folder = tmp_path_factory.mktemp('cameras')
  names = [f'bolt {i // 3}_cam{i % 3}.png' for i in range(len(photos))]
  shutil.copy(photos[0], folder / 'other.png')
  copies = [shutil.copy(path, folder / name) for path, name in zip(photos, names, strict=True)]
  return [*map(Path, copies), folder / 'other.png']


PATTERN = r'(?P<part>.+)_cam\d+'
SEVERITY = ['OK', 'review', 'failed', 'NG']


def shown_parts(page):
  """Return the name of the part and the label of the part on each card, by image."""
  cards(page)
  return page.evaluate("""() => Object.fromEntries([...document.querySelectorAll('#tiles li')]
    .map((card) => [card.querySelector('.path').textContent,
      card.querySelector('.part').checkVisibility() ? ['bdi', '.badge'].map((selector) =>
        card.querySelector(`.part ${selector}`).textContent) : []]))""")


def test_a_pattern_gives_one_verdict_per_part(show, camera_photos, tmp_path, expect):
  broken = tmp_path / 'bolt 0_cam9.png'
  broken.write_bytes(b'no image')
  page = show()
  count = len(camera_photos)
  page.set_input_files('#files-input', [*camera_photos, broken])
  expect(page.locator('#progress-text')).to_have_text(f'{count} of {count + 1} scored, 1 failed')
  assert not any(shown_parts(page).values())
  page.fill('#part-pattern', PATTERN)
  page.keyboard.press('Enter')
  previous = None
  for threshold in ('', '1e9', '0'):
    if threshold:
      number(page, IMAGE).fill(threshold)
      number(page, REVIEW).fill(threshold)
      page.keyboard.press('Enter')
    image_labels = {name: label for name, [label] in labels(page).items()}
    by_part = {}
    for name, label in image_labels.items():
      if name != 'other.png':
        by_part.setdefault(name.partition('_')[0], []).append(label)
    worst = {
      part: max(ordered_parts, key=SEVERITY.index) for part, ordered_parts in by_part.items()
    }
    assert worst != previous
    previous = worst
    expected = {name: [name.partition('_')[0]] for name in image_labels if name != 'other.png'}
    expected = {name: [part, worst[part]] for name, [part] in expected.items()}
    assert shown_parts(page) == {**expected, 'other.png': []}
    counts = ', '.join(f'{[*worst.values()].count(x)} {x}' for x in ('OK', 'review', 'NG'))
    expect(page.locator('#part-hint')).to_contain_text(f'{len(worst)} parts: {counts}')
    expect(page.locator('#part-hint')).to_contain_text('No match for 1 image.')
  rows = list(csv.DictReader(io.StringIO(downloaded(page, '#download-csv'), newline='')))
  assert {row['name']: [row['part'], row['part_label']] for row in rows} == {
    **expected, 'other.png': ['', '']
  }  # fmt: skip
  for image in downloaded(page)['images']:
    part_verdict = [image['part'], image['verdicts'][0]['part_label']] if 'part' in image else []
    assert part_verdict == expected.get(image['name'], [])
  page.select_option('#order', 'part')
  ordered_parts = [part for part, *_ in filter(None, shown_parts(page).values())]
  assert (
    sum(a != b for a, b in zip(ordered_parts[1:], ordered_parts[:-1], strict=True))
    == len(worst) - 1
  )
  for pattern, message in (('(', 'not a regular expression'), ('.+', 'no group'), ('', '')):
    page.fill('#part-pattern', pattern)
    page.keyboard.press('Enter')
    assert not any(shown_parts(page).values())
    expect(page.locator('#part-hint')).to_contain_text(message)


def refusal(address, content):
  """Return the message of the service for a file that is not an image."""
  headers = {'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'image/png'}
  request = urllib.request.Request(address + ROUTE[1:], content, headers)
  with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(request):
    pass
  with refused.value as response:
    return json.loads(response.read())['errorMsg']


def test_an_image_without_content_is_reviewed_and_says_why(show, tmp_path, expect):
  Image.new('RGB', (60, 60)).save(tmp_path / 'black.png')
  page = show()
  page.set_input_files('#files-input', tmp_path / 'black.png')
  expect(page.locator('#tiles .warnings')).to_have_text('no content')
  slider(page, REVIEW).focus()
  page.keyboard.press('End')  # No score is above the thresholds.
  assert labels(page) == {'black.png': ['review']}
  page.locator('#tiles button').click()
  expect(page.locator('#views .warnings')).to_contain_text('nearly uniform')


def test_a_broken_file_shows_its_error_and_other_images_are_scored(show, photos, tmp_path, expect):
  (tmp_path / 'broken.png').write_bytes(b'no image')
  page = show()
  page.set_input_files('#files-input', [tmp_path / 'broken.png', photos[0]])
  expect(page.locator('#progress-text')).to_have_text('1 of 2 scored, 1 failed')
  assert page.inner_text('.problem') == refusal(page.url, b'no image')
  page.select_option('#filter', 'failed')
  assert labels(page) == {'broken.png': ['failed']}
  page.locator('#tiles button').focus()
  page.keyboard.press('Enter')  # A failed image cannot be enlarged.
  assert not page.is_visible('#zoom')
  assert {
    image['name'] for image in downloaded(page)['images'] if 'error' in image['verdicts'][0]
  } == {'broken.png'}
  page.click('#retry')
  expect(page.locator('#progress-text')).to_have_text('1 of 2 scored, 1 failed')


@pytest.mark.slow
def test_a_file_that_is_too_large_is_not_sent(show, tmp_path, expect):
  page = show()
  with (tmp_path / 'large.png').open('wb') as file:
    file.truncate(options.Settings({}).max_bytes + 1)
  sent = []
  page.on('request', lambda request: sent.append(request.url))
  page.set_input_files('#files-input', [tmp_path / 'large.png'])
  expect(page.locator('#tiles')).to_contain_text('the maximum is 33554432')
  assert not [url for url in sent if ROUTE in url]


@pytest.mark.slow
def test_a_token_is_requested_and_stored_for_the_tab_only(show, photos, expect):
  page = show(token='')
  for word in ('wrong', TOKEN):
    page.wait_for_selector('#token:not([hidden])')
    assert page.evaluate('document.activeElement.id') == 'token-value'
    page.keyboard.type(word)
    page.keyboard.press('Enter')
    if word == 'wrong':
      expect(page.locator('#token-hint')).to_contain_text('rejected')
  page.wait_for_selector('#model-choice:not([hidden])')
  page.set_input_files('#files-input', photos[:1])
  expect(page.locator('#progress-text')).to_have_text('1 of 1 scored')
  assert not page.is_visible('#token')
  assert page.evaluate('localStorage.length') == 0
  page.reload()
  page.wait_for_selector('#model-choice:not([hidden])')


def busy(times, path):
  """Return a function that makes the first requests to a path fail with status 503."""
  num_remaining = [times]

  def answer(route):
    if num_remaining[0]:
      num_remaining[0] -= 1
      body = json.dumps({'errorCode': 503, 'errorMsg': 'Later <b>please</b>.'})
      route.fulfill(status=503, headers={'Retry-After': '1'}, body=body)
    else:
      route.continue_()

  return lambda page: page.route(re.compile(path), answer)


@pytest.mark.slow
def test_the_page_waits_until_the_models_are_ready(show, photos, expect):
  page = show(prepare=busy(1, '/models$'))
  expect(page.locator('#notice')).to_be_hidden()
  page = show(token=None, prepare=busy(10, '/models$'))
  expect(page.locator('#notice')).to_have_text('Later <b>please</b>.')
  page.set_input_files('#files-input', photos[0])
  expect(page.locator('#progress-text')).to_have_text('0 of 1 scored')


@pytest.mark.slow
def test_at_most_four_concurrent_requests_which_are_retried_while_busy(show, photos, expect):
  page = show(prepare=busy(3, ROUTE))
  page.set_input_files('#files-input', photos * 3)
  expect(page.locator('#notice')).to_have_text('Later <b>please</b>.')
  expect(page.locator('#progress-text')).to_have_text(
    f'{3 * len(photos)} of {3 * len(photos)} scored'
  )
  assert page.evaluate('window.maxRequests') == 4


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((element) => {
  const box = element.getBoundingClientRect();
  return element.checkVisibility() && !element.closest('.visually-hidden, .skip, svg, pre')
    && box.width > 0 && (box.left < -1 || box.right > innerWidth + 1);
}).map((element) => element.outerHTML)"""
# Contrast ratio of every visible text to its background.
CONTRASTS = """() => {
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  return [...document.querySelectorAll('body *')].filter((element) => element.checkVisibility()
    && !element.closest('svg') && [...element.childNodes].some((node) => node.nodeType === 3
      && node.data.trim())).map((element) => {
    const text = luminance(channels(getComputedStyle(element).color));
    const [a, b] = [text, luminance(background(element))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML];
  });
}"""
UNNAMED = """() => [...document.querySelectorAll('button, input, select, summary, [role]')]
  .filter((element) => element.checkVisibility() && !element.ariaLabel && !element.labels?.length
    && !element.textContent.trim() && !element.hasAttribute('aria-labelledby')
    && !element.matches('[role=status]')).map((element) => element.outerHTML)"""


@pytest.mark.slow
def test_nothing_overflows_contrast_is_sufficient_and_controls_have_names(
  show, photos, tmp_path, expect
):
  (tmp_path / 'broken.png').write_bytes(b'no image')

  def assert_accessible(page):
    assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate(UNNAMED) == []
    contrasts = page.evaluate(CONTRASTS)
    assert contrasts
    assert [text for ratio, text in contrasts if ratio < 4.5] == []

  for width, scheme in ((390, 'light'), (390, 'dark'), (1280, 'dark')):
    page = show(width, scheme)
    assert_accessible(page)
    page.set_input_files('#files-input', [*photos, tmp_path / 'broken.png'])
    expect(page.locator('#progress-text')).to_contain_text('1 failed')
    assert_accessible(page)
    page.select_option('#second-model', 'other')
    expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos) + 2)
    assert_accessible(page)
    page.locator('#tiles button[aria-disabled=false]').first.click()
    expect(page.locator('#views summary').first).to_be_visible()
    assert_accessible(page)
    assert page.evaluate('document.querySelector("dialog").scrollWidth') <= width


GROUPS = (
  'body > *, main > *', 'header > *', '#drop > *', '.bar > *', '#progress > *', '.columns > *',
  '.strip text', '.label-counts > *', '.control > *', '.controls > *', '#tiles li',
  '#color-bars > *', '.verdicts > *', '#tiles .verdict > *', '#views .verdict > *',
  '#tiles button > *', '#tiles .part > *', '#images > *', '.zoom-head > *', '.zoom-buttons > *',
  '#views > *',
  '#views figure > *', 'figcaption > *', 'dialog[open] > *',
  '#views .holder, #views figcaption > *, #cursor, #zoom-tools > *',
)  # fmt: skip


@pytest.mark.slow
def test_nothing_overlaps_on_a_phone(show, photos, tmp_path, expect):
  Image.new('RGB', (60, 60)).save(tmp_path / 'black.png')
  page = show(390)
  assert page_layout.collisions(page, GROUPS) == []
  page.set_input_files('#files-input', [*photos, tmp_path / 'black.png'])
  count = len(photos) + 1
  page.fill('#part-pattern', '(?P<part>.).*')
  page.keyboard.press('Enter')
  expect(page.locator('#progress-text')).to_have_text(f'{count} of {count} scored')
  for second_model in ('', 'other'):
    page.select_option('#second-model', second_model)
    # Those of images and of parts.
    expect(page.locator('#tiles .badge')).to_have_count(2 * count * (2 if second_model else 1))
    for threshold in ('0', '1e9'):  # The texts of the thresholds are at the edges.
      number(page, IMAGE).fill(threshold)
      page.keyboard.press('Enter')
      assert page_layout.collisions(page, GROUPS) == []
    page.locator('#tiles button[aria-disabled=false]').first.click()
    expect(page.locator('#views summary').first).to_be_visible()
    assert page_layout.collisions(page, GROUPS) == []
    page.click('#close')


def test_an_image_to_review_says_where_to_look(scored_page, results, expect):
  page = scored_page()
  scores = [result.score for result in results.values()]
  number(page, REVIEW).fill(str(min(scores) - 1e-3))
  page.keyboard.press('Enter')
  number(page, IMAGE).fill(str(max(scores) + 1e-3))
  page.keyboard.press('Enter')
  number(page, PIXEL).fill('1e9')  # No map value exceeds it.
  page.keyboard.press('Enter')
  page.locator('#tiles button').first.click()
  result = results[page.inner_text('#zoom-name')]
  place = f'look at x {result.at[0]}, y {result.at[1]}'
  expect(page.locator('#views .verdict')).to_contain_text(place)
  expect(page.locator('#views summary')).to_have_text(re.compile(r'^[1-9]\d* regions?$'))


REACHABLE = """(within) => [...document.querySelectorAll(within)].flatMap((parent) =>
  [...parent.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')])
  .filter((element) => element.checkVisibility() && !element.disabled)
  .map((element) => { element.dataset.focused = 'no'; }).length"""
CHECK_FOCUS = """() => {
  const element = document.activeElement;
  if (element.dataset.focused !== 'no') return;
  const { outlineStyle, outlineWidth } = getComputedStyle(element);
  const isVisible = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2;
  element.dataset.focused = isVisible ? 'visible' : 'invisible';
}"""


def test_tab_reaches_every_control_with_a_visible_focus(scored_page):
  page = scored_page()
  for within in ('body', 'dialog'):
    if within == 'dialog':
      page.locator('#tiles button').first.click()
      page.wait_for_selector('#views summary')
    count = page.evaluate(REACHABLE, within)
    assert count > 8
    for _ in range(count + 4):
      page.keyboard.press('Tab')
      page.evaluate(CHECK_FOCUS)
    assert page.locator(f'{within} [data-focused=no]').count() == 0
    assert page.locator(f'{within} [data-focused=invisible]').count() == 0


def saved_region(page):
  """Return the mask of a region that was drawn, and the name of its file."""
  with page.expect_download() as waiting:
    page.click('#region-save')
  mask = np.asarray(Image.open(waiting.value.path()).convert('L')) > 127
  return mask, waiting.value.suggested_filename


def test_a_region_is_drawn_and_saved_in_pixels_of_the_image(scored_page, results, expect):
  page = scored_page()
  page.locator('#tiles button').first.click()
  name = page.inner_text('#zoom-name')
  page.click('#draw-region')
  expect(page.locator('#region-save')).to_be_disabled()
  box = page.locator('#region-canvas').bounding_box()
  h, w = results[name].size

  def at(x, y):
    return box['x'] + x * box['width'], box['y'] + y * box['height']

  def drag(start, end):
    page.mouse.move(*at(*start))
    page.mouse.down()
    page.mouse.move(*at(*end), steps=3)
    page.mouse.up()

  def drawn(*polygons):
    picture = Image.new('L', (8 * w, 8 * h))
    for polygon in polygons:
      ImageDraw.Draw(picture).polygon([(8 * w * x, 8 * h * y) for x, y in polygon], fill=255)
    return np.asarray(picture.resize((w, h), Image.Resampling.BOX)) > 127

  def assert_saved(*polygons):
    mask, file = saved_region(page)
    assert file == f'{Path(name).stem}_roi.png'
    assert mask.shape == (h, w)
    # Rounding of the pointer's position moves an edge by less than a pixel.
    assert (mask != drawn(*polygons)).sum() <= 0.02 * mask.size

  rectangle = (0.1, 0.2), (0.5, 0.2), (0.5, 0.6), (0.1, 0.6)
  triangle = (0.4, 0.4), (0.9, 0.5), (0.6, 0.9)
  drag(rectangle[0], rectangle[2])
  assert_saved(rectangle)
  page.select_option('#region-tool', 'polygon')
  for corner in (*triangle, triangle[0]):  # The first one again ends it.
    page.mouse.click(*at(*corner))
  assert_saved(rectangle, triangle)
  page.mouse.click(*at(0.05, 0.05))
  page.click('#region-undo')  # The corner of a polygon that is not complete.
  assert_saved(rectangle, triangle)
  page.mouse.click(*at(0.05, 0.05))
  page.keyboard.press('Escape')  # The same; the dialog stays open.
  assert_saved(rectangle, triangle)
  page.click('#region-undo')
  assert_saved(rectangle)
  page.click('#region-clear')
  expect(page.locator('#region-save')).to_be_disabled()
  page.click('#region-close')
  expect(page.locator('#region')).to_be_hidden()
  expect(page.locator('#zoom')).to_be_visible()


def test_a_model_with_a_region_shows_it(browser, served, trained, tmp_path, expect):
  mask = np.zeros((60, 60), bool)
  mask[:, :40] = True
  Image.fromarray(mask).save(tmp_path / 'roi.png')
  directory = trained('padim', f'--config.data.roi={tmp_path}/roi.png') / 'model'
  Image.new('RGB', (60, 60), 'white').save(tmp_path / 'white.png')
  with served(apps.build_app(options.Settings({'disc': directory}, batch=1))) as url:
    (description,) = json.load(urllib.request.urlopen(f'{url}/models'))['result']['models']
    region = Image.open(io.BytesIO(base64.b64decode(description['region'])))
    np.testing.assert_array_equal(np.asarray(region), mask)
    page = browser.new_page()
    page.goto(url)
    page.wait_for_selector('#model-choice:not([hidden])', timeout=60000)
    page.set_input_files('#files-input', tmp_path / 'white.png')
    expect(page.locator('#progress-text')).to_have_text('1 of 1 scored')
    page.fill('#opacity', '0')
    page.uncheck('#outlines')
    changed(page, '#tiles canvas', '')
    inside, outside = page.evaluate("""() => {
      const canvas = document.querySelector('#tiles canvas');
      const { width, height } = canvas;
      const row = canvas.getContext('2d').getImageData(0, height >> 1, width, 1).data;
      return [0.3, 0.85].map((share) => row[4 * Math.floor(share * width)]);
    }""")
    assert inside == 255
    assert outside == pytest.approx(0.4 * 255, abs=2)
    page.close()
