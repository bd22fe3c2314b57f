"""The page of the service in a browser: what people do there, and what it says then."""

import base64
import json
from pathlib import Path
import re
import shutil
import time
import urllib.error
import urllib.request

import pytest

from uadjax import create_model
from uadjax.serve import app as apps, settings as options

HOSTILE = '<img src=x onerror=run()>"\'&amp;.png'
TOKEN = 's3cret'
ROUTE = '/image-anomaly-detection'
# How many requests were under way at most, and whether what came from elsewhere ran.
WATCH = """
  window.run = () => { window.ran = true; };
  window.most = window.underWay = 0;
  const real = window.fetch;
  window.fetch = (...all) => {
    window.most = Math.max(window.most, ++window.underWay);
    return real(...all).finally(() => { window.underWay--; });
  };"""


@pytest.fixture(scope='module')
def photos(drawn, tmp_path_factory):
  """Photographs whose names are all different."""
  folder = tmp_path_factory.mktemp('photos')
  found = sorted((drawn / 'disc' / 'test').rglob('*.png'))
  names = [HOSTILE, *(f'part {number}.png' for number in range(1, len(found)))]
  return [Path(shutil.copy(path, folder / name)) for path, name in zip(found, names, strict=True)]


@pytest.fixture(scope='module')
def directory(trained):
  return trained('padim') / 'model'


@pytest.fixture(scope='module')
def results(directory, photos):
  """What `predict` says, by name of the image."""
  found = create_model(model_dir=directory).predict(photos)
  return {Path(one.input_path).name: one for one in found}


@pytest.fixture(scope='module')
def limits(results):
  """Of the model, and of one with thresholds among its scores: they disagree on some images."""
  own = next(iter(results.values())).limits
  scores = sorted(one.score for one in results.values())
  return {'disc': own, 'other': own._replace(review=scores[1], image=scores[3])}


@pytest.fixture(scope='module')
def directories(directory, limits, tmp_path_factory):
  other = shutil.copytree(directory, tmp_path_factory.mktemp('other') / 'model')
  manifest = json.loads((other / 'manifest.json').read_text())
  manifest['thresholds'] |= {key: getattr(limits['other'], key) for key in ('review', 'image')}
  (other / 'manifest.json').write_text(json.dumps(manifest))
  return {'disc': directory, 'other': other}


@pytest.fixture(scope='module')
def address(directories, served):
  with served(apps.build(options.Settings(directories, token=TOKEN, batch=1))) as url:
    yield f'{url}/'


@pytest.fixture
def expect():
  return pytest.importorskip('playwright.sync_api', reason='needs playwright').expect


@pytest.fixture
def show(browser, address):
  """Open the page; whatever it complains of or runs by the name of run fails the test."""
  contexts, said, asked = [], [], []

  def show(width=1280, scheme='light', token=TOKEN, before=lambda page: None):
    size = {'width': width, 'height': 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion='reduce')
    contexts.append(context)
    page = context.new_page()
    page.add_init_script(
      WATCH + f"sessionStorage.setItem('uadjax-token', '{token}');" * bool(token)
    )
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('request', lambda request: asked.append(request.url))
    before(page)
    page.goto(address)
    if token == TOKEN:
      page.wait_for_selector('#choice:not([hidden])', timeout=60000)
    return page

  yield show
  for context in contexts:
    assert context.pages[0].evaluate('window.ran') is None
    context.close()
  # Chromium itself tells of answers that are refusals.
  assert [text for text in said if not text.startswith('Failed to load resource')] == []
  assert [url for url in asked if not url.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture
def fed(show, photos, expect):
  """The page with all photographs judged."""

  def fed(**how):
    page = show(**how)
    page.set_input_files('#files-input', photos)
    expect(page.locator('#done')).to_have_text(f'{len(photos)} of {len(photos)} judged')
    return page

  return fed


def read(pattern, text):
  """A number in a text."""
  return float(re.findall(pattern, text)[0])


def cards(page):
  """Of each card in their order: name, then label and score by each model."""
  # The page draws what has changed in its next frame.
  page.evaluate('() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))')
  return page.evaluate("""() => [...document.querySelectorAll('#tiles li')].map((card) => [
    card.querySelector('.path').textContent,
    [...card.querySelectorAll('.verdict')].map((row) =>
      [row.querySelector('.badge')?.textContent, row.querySelector('.score')?.textContent])])""")


def labels(page):
  return {name: [label for label, _ in verdicts] for name, verdicts in cards(page)}


def label(score, review, image):
  return 'OK' if score <= review else 'review' if score <= image else 'NG'


def slider(page, key, panel=0):
  return page.locator('.panel').nth(panel).locator(f'input[type=range][data-key={key}]')


def number(page, key, panel=0):
  return page.locator('.panel').nth(panel).locator(f'input[type=number][data-key={key}]')


def picture(page, selector):
  return page.evaluate('(selector) => document.querySelector(selector).toDataURL()', selector)


def changed(page, selector, before):
  """Wait until a canvas shows something else, and stays so; a policy forbids to wait inside."""
  end, last = time.monotonic() + 20, before
  while (now := picture(page, selector)) in ('data:,', before) or now != last:
    assert time.monotonic() < end
    last = now
    page.wait_for_timeout(100)
  return now


def downloaded(page):
  with page.expect_download() as waiting:
    page.click('#download')
  return json.loads(Path(waiting.value.path()).read_text())


DROP = """(files) => {
  const carried = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name, { type: 'image/png' }));
  }
  %s
}"""
DROPPED = (
  DROP
  % """for (const kind of ['dragenter', 'dragover', 'drop']) {
    const given = { dataTransfer: carried, bubbles: true, cancelable: true };
    document.querySelector('main').dispatchEvent(new DragEvent(kind, given));
  }"""
)
PASTED = (
  DROP
  % """document.body.dispatchEvent(
    new ClipboardEvent('paste', { clipboardData: carried, bubbles: true }));"""
)


def carried(path):
  return [path.name, base64.b64encode(path.read_bytes()).decode()]


def test_what_is_dropped_or_pasted_is_judged_as_predict_judges_it(show, photos, results, expect):
  page = show()
  assert f"'{page.url}image-anomaly-detection?model=disc'" in page.inner_text('#curl')
  page.evaluate(DROPPED, [carried(path) for path in photos[:2]])
  expect(page.locator('#done')).to_have_text('2 of 2 judged')
  page.evaluate(PASTED, [carried(photos[2])])
  expect(page.locator('#done')).to_have_text('3 of 3 judged')
  results = [results[path.name] for path in photos[:3]]
  worst = sorted(results, key=lambda one: -one.score)
  expect(page.locator('#tiles .score')).to_have_count(3)
  found = cards(page)
  assert [name for name, _ in found] == [Path(one.input_path).name for one in worst]
  for (_, [(said, score)]), one in zip(found, worst, strict=True):
    assert said == one.label
    assert float(score) == pytest.approx(one.score, rel=1e-3)
  page.click('#clear')
  expect(page.locator('#tiles li')).to_have_count(0)
  expect(page.locator('#what')).to_be_visible()


def drop_folder(page, folder):
  """As the system does it: only then is a folder more than a name."""
  session = page.context.new_cdp_session(page)
  data = {'items': [], 'files': [str(folder)], 'dragOperationsMask': 1}
  for kind in ('dragEnter', 'dragOver', 'drop'):
    where = {'type': kind, 'x': 200, 'y': 300, 'data': data}
    session.send('Input.dispatchDragEvent', where)


@pytest.mark.slow
def test_a_folder_is_judged_in_natural_order_without_what_is_no_image(
  show, photos, tmp_path, expect
):
  for name in ('10.png', '9.png', 'deep/1.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(photos[1], tmp_path / name)
  (tmp_path / 'notes.txt').write_text('no image')
  page = show()
  for give in (
    lambda: page.set_input_files('#folder-input', tmp_path),
    lambda: drop_folder(page, tmp_path),
  ):
    give()
    expect(page.locator('#done')).to_have_text('3 of 3 judged')
    assert '1 file ' in page.inner_text('#left-out')
    page.select_option('#order', 'name')
    wanted = [f'{tmp_path.name}/{name}' for name in ('9.png', '10.png', 'deep/1.png')]
    expect(page.locator('#tiles .path')).to_have_text(wanted)
    page.click('#clear')


@pytest.mark.slow
def test_a_card_is_enlarged_by_keyboard_and_left_again(fed, results, expect):
  page = fed()
  page.locator('#tiles button').first.focus()
  page.keyboard.press('Enter')
  now = changed(page, '#views canvas', '')
  first = page.inner_text('#zoom-name')
  page.fill('dialog #opacity', '0')
  now = changed(page, '#views canvas', now)
  page.uncheck('#marked')
  page.uncheck('#boxes')
  expect(page.locator('#views summary')).to_have_text(
    re.compile(rf'^{len(results[first].regions)} region')
  )
  box = page.locator('#views canvas').bounding_box()
  page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 0.5 * box['height'])
  value = read(r'x 30, y 30: ([\d.]+)', page.inner_text('#cursor'))
  map = results[first].anomaly_map
  assert map[28:32, 28:32].min() * 0.99 < value < map[28:32, 28:32].max() * 1.01
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


def test_a_threshold_moved_by_keyboard_relabels_every_card(fed, results, expect):
  page = fed()
  scores = {name: one.score for name, one in results.items()}
  before = labels(page)
  assert before == {name: [one.label] for name, one in results.items()}
  calibrated = number(page, 'image').input_value()
  slider(page, 'image').focus()
  for press in ('End', 'Home', 'PageUp', 'PageUp', 'ArrowRight'):
    page.keyboard.press(press)
    review, image = (float(number(page, key).input_value()) for key in ('review', 'image'))
    assert review <= image
    want = {name: [label(score, review, image)] for name, score in scores.items()}
    assert labels(page) == want
    if press == 'End':
      assert ['NG'] not in want.values()
    if press == 'Home':
      assert set(map(tuple, want.values())) == {('NG',)}
  expect(page.locator('.tally')).to_contain_text(f'NG{list(want.values()).count(["NG"])}')
  page.click('text=As calibrated')
  expect(number(page, 'image')).to_have_value(calibrated)
  assert labels(page) == before


@pytest.mark.slow
def test_the_pixel_threshold_outlines_anew_at_once(fed, results, expect):
  page = fed()
  now = changed(page, '#tiles canvas', '')
  slider(page, 'pixel').focus()
  page.keyboard.press('Home')
  now = changed(page, '#tiles canvas', now)
  page.locator('#tiles button').first.click()
  told = page.locator('#views summary')
  expect(told).to_have_text('1 region')  # The whole image, and
  page.click('#views summary')
  expect(page.locator('.regions li')).to_contain_text('3600 of 3600')
  page.focus('dialog input[data-key=pixel]')
  page.keyboard.press('End')
  expect(told).to_have_text('0 regions')  # nothing of it.
  # Between them as many as there are in the map, which comes in 256 steps.
  one = results[page.inner_text('#zoom-name')]
  middle = float((one.anomaly_map.min() + one.anomaly_map.max()) / 2)
  page.fill('dialog input[type=number]', str(middle))
  page.keyboard.press('Enter')
  area = page.locator('.regions li').first
  expect(area).to_contain_text('peak')
  assert read(r'peak ([\d.]+)', area.inner_text()) == pytest.approx(one.anomaly_map.max(), rel=1e-3)
  inside = sum(read(r'; (\d+) of', li) for li in page.locator('.regions li').all_inner_texts())
  assert inside == pytest.approx((one.anomaly_map > middle).sum(), rel=0.05)


@pytest.mark.slow
def test_two_models_are_compared(fed, photos, results, limits, expect):
  page = fed()
  page.select_option('#second', 'other')
  expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos))
  want = {
    name: [label(one.score, own.review, own.image) for own in limits.values()]
    for name, one in results.items()
  }
  assert labels(page) == want
  apart = {name for name, (a, b) in want.items() if a != b}
  assert 0 < len(apart) < len(want)
  page.select_option('#show', 'disagree')
  assert set(labels(page)) == apart
  slider(page, 'image', 1).focus()  # Thresholds are each model's own.
  page.keyboard.press('End')
  page.select_option('#show', '')
  assert all(said[0] == want[name][0] for name, said in labels(page).items())
  assert all(said[1] != 'NG' for said in labels(page).values())
  page.select_option('#second', '')
  assert labels(page) == {name: [first] for name, (first, _) in want.items()}


@pytest.mark.slow
def test_the_download_says_what_predict_says_at_the_thresholds_as_set(
  fed, photos, results, limits, expect
):
  page = fed()
  page.select_option('#second', 'other')
  expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos))
  for key, value in (('review', '0.1'), ('image', '0.2'), ('pixel', '0.3')):
    number(page, key).fill(value)
    page.keyboard.press('Enter')
  told = downloaded(page)
  first, second = told['models']
  assert first['thresholds'] == {'image': 0.2, 'review': 0.1, 'pixel': 0.3}
  assert [image['name'] for image in told['images']] == [path.name for path in sorted(photos)]
  for image in told['images']:
    for model, said in zip((first, second), image['verdicts'], strict=True):
      one, own = results[image['name']], limits[model['model']]
      assert model['thresholds_as_calibrated'] == {
        key: getattr(own, key) for key in ('image', 'review', 'pixel')
      }
      assert (said['score'], said['size']) == (one.score, list(one.size))
      at = model['thresholds']
      assert said['label'] == label(one.score, at['review'], at['image'])
      assert said['regions'] == json.loads(json.dumps([part._asdict() for part in one.regions]))
      assert said['regions_above'] == one.limits.pixel
  assert second['thresholds'] == second['thresholds_as_calibrated']


def refusal(address, content):
  """What the service says of bytes that are no image."""
  headers = {'Authorization': f'Bearer {TOKEN}', 'Content-Type': 'image/png'}
  asked = urllib.request.Request(address + ROUTE[1:], content, headers)
  with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(asked):
    pass
  with refused.value as answer:
    return json.loads(answer.read())['errorMsg']


def test_a_broken_file_says_so_and_the_others_are_judged(show, photos, tmp_path, expect):
  (tmp_path / 'broken.png').write_bytes(b'no image')
  page = show()
  page.set_input_files('#files-input', [tmp_path / 'broken.png', photos[0]])
  expect(page.locator('#done')).to_have_text('1 of 2 judged, 1 failed')
  assert page.inner_text('.problem') == refusal(page.url, b'no image')
  page.select_option('#show', 'failed')
  assert labels(page) == {'broken.png': ['failed']}
  page.locator('#tiles button').focus()
  page.keyboard.press('Enter')  # There is nothing to enlarge.
  assert not page.is_visible('#zoom')
  assert {
    image['name'] for image in downloaded(page)['images'] if 'error' in image['verdicts'][0]
  } == {'broken.png'}
  page.click('#again')
  expect(page.locator('#done')).to_have_text('1 of 2 judged, 1 failed')


@pytest.mark.slow
def test_a_file_that_is_too_large_is_not_sent(show, tmp_path, expect):
  page = show()
  with (tmp_path / 'large.png').open('wb') as file:
    file.truncate(options.Settings({}).max_bytes + 1)
  sent = []
  page.on('request', lambda request: sent.append(request.url))
  page.set_input_files('#files-input', [tmp_path / 'large.png'])
  expect(page.locator('#tiles')).to_contain_text('33554432 are the most')
  assert not [url for url in sent if ROUTE in url]


@pytest.mark.slow
def test_a_token_is_asked_for_and_kept_in_the_tab(show, photos, expect):
  page = show(token='')
  for word in ('wrong', TOKEN):
    page.wait_for_selector('#token:not([hidden])')
    assert page.evaluate('document.activeElement.id') == 'token-value'
    page.keyboard.type(word)
    page.keyboard.press('Enter')
    if word == 'wrong':
      expect(page.locator('#token-told')).to_contain_text('refused')
  page.wait_for_selector('#choice:not([hidden])')
  page.set_input_files('#files-input', photos[:1])
  expect(page.locator('#done')).to_have_text('1 of 1 judged')
  assert not page.is_visible('#token')
  assert page.evaluate('localStorage.length') == 0
  page.reload()
  page.wait_for_selector('#choice:not([hidden])')


def busy(times, path):
  """The first requests are refused as by a service that has too much to do."""
  left = [times]

  def answer(route):
    if left[0]:
      left[0] -= 1
      told = json.dumps({'errorCode': 503, 'errorMsg': 'Later <b>please</b>.'})
      route.fulfill(status=503, headers={'Retry-After': '1'}, body=told)
    else:
      route.continue_()

  return lambda page: page.route(re.compile(path), answer)


@pytest.mark.slow
def test_it_waits_until_the_models_are_warm(show, expect):
  page = show(before=busy(1, '/models$'))
  expect(page.locator('#notice')).to_be_hidden()
  page = show(token=None, before=busy(10, '/models$'))
  expect(page.locator('#notice')).to_have_text('Later <b>please</b>.')


@pytest.mark.slow
def test_four_at_a_time_and_again_where_there_is_no_time(show, photos, expect):
  page = show(before=busy(3, ROUTE))
  page.set_input_files('#files-input', photos * 3)
  expect(page.locator('#notice')).to_have_text('Later <b>please</b>.')
  expect(page.locator('#done')).to_have_text(f'{3 * len(photos)} of {3 * len(photos)} judged')
  assert page.evaluate('window.most') == 4


STICKS_OUT = """() => [...document.querySelectorAll('body *')].filter((one) => {
  const box = one.getBoundingClientRect();
  return one.checkVisibility() && !one.closest('.unseen, .skip, svg, pre') && box.width > 0
    && (box.left < -1 || box.right > innerWidth + 1);
}).map((one) => one.outerHTML)"""
# Lightness of text before what lies below it, for all text that is seen.
CONTRASTS = """() => {
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const below = (one) => {
    for (; one; one = one.parentElement) {
      const color = parts(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  return [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
    && !one.closest('svg') && [...one.childNodes].some((node) => node.nodeType === 3
      && node.data.trim())).map((one) => {
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(below(one))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.outerHTML];
  });
}"""
NAMELESS = """() => [...document.querySelectorAll('button, input, select, summary, [role]')]
  .filter((one) => one.checkVisibility() && !one.ariaLabel && !one.labels?.length
    && !one.textContent.trim() && !one.hasAttribute('aria-labelledby')
    && !one.matches('[role=status]')).map((one) => one.outerHTML)"""


@pytest.mark.slow
def test_nothing_overflows_all_is_readable_and_has_a_name(show, photos, tmp_path, expect):
  (tmp_path / 'broken.png').write_bytes(b'no image')

  def right(page):
    assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']
    assert page.evaluate(STICKS_OUT) == []
    assert page.evaluate(NAMELESS) == []
    contrasts = page.evaluate(CONTRASTS)
    assert contrasts
    assert [text for ratio, text in contrasts if ratio < 4.5] == []

  for width, scheme in ((390, 'light'), (390, 'dark'), (1280, 'dark')):
    page = show(width, scheme)
    right(page)
    page.set_input_files('#files-input', [*photos, tmp_path / 'broken.png'])
    expect(page.locator('#done')).to_contain_text('1 failed')
    right(page)
    page.select_option('#second', 'other')
    expect(page.locator('#tiles .badge')).to_have_count(2 * len(photos) + 2)
    right(page)
    page.locator('#tiles button[aria-disabled=false]').first.click()
    expect(page.locator('#views summary').first).to_be_visible()
    right(page)
    assert page.evaluate('document.querySelector("dialog").scrollWidth') <= width


REACHABLE = """(within) => [...document.querySelectorAll(within)].flatMap((part) =>
  [...part.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')])
  .filter((one) => one.checkVisibility() && !one.disabled)
  .map((one) => { one.dataset.met = 'no'; }).length"""
MET = """() => {
  const one = document.activeElement;
  if (one.dataset.met !== 'no') return;
  const { outlineStyle, outlineWidth } = getComputedStyle(one);
  one.dataset.met = outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2 ? 'seen' : 'unseen';
}"""


def test_tab_reaches_everything_and_is_seen(fed):
  page = fed()
  for within in ('body', 'dialog'):
    if within == 'dialog':
      page.locator('#tiles button').first.click()
      page.wait_for_selector('#views summary')
    count = page.evaluate(REACHABLE, within)
    assert count > 8
    for _ in range(count + 4):
      page.keyboard.press('Tab')
      page.evaluate(MET)
    assert page.locator(f'{within} [data-met=no]').count() == 0
    assert page.locator(f'{within} [data-met=unseen]').count() == 0
