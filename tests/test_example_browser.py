"""Tests of the browser example: its results equal those of `predict`."""

import functools
from http import server
import json
from pathlib import Path
import re
import shutil
import subprocess
import tarfile
import threading

import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from uadjax import create_model
from uadjax.data import image_io, transforms
from uadjax.export import exporter
from uadjax.model import calibration, model_dir

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / 'docs' / 'examples' / 'browser'
CAMERA = 57, 75  # Neither square nor of the network's size.
RUNTIME_FILES = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
# Messages of npm without a network or registry.
UNREACHABLE = re.compile(
  r'ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ENOTCACHED|TIMEOUT|E403|E5\d\d'
)


class SilentHandler(server.SimpleHTTPRequestHandler):
  """Serves files without logging."""

  def log_message(self, format, *args):
    pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The example's folder, with the version of onnxruntime-web that its README names."""
  npm = shutil.which('npm')
  if npm is None:
    pytest.skip('needs npm, for onnxruntime-web')
  folder = tmp_path_factory.mktemp('site')
  for name in ('index.html', 'score.js', 'heatmap.js'):
    shutil.copy(EXAMPLE / name, folder)
  (version,) = set(re.findall(r'onnxruntime-web@([\d.]+\d)', (EXAMPLE / 'README.md').read_text()))
  # Two files are extracted instead of installing 100 MB.
  command = [npm, 'pack', f'onnxruntime-web@{version}', '--prefer-offline', '--fetch-retries=0']
  process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  if process.returncode and (match := UNREACHABLE.search(process.stderr)):
    pytest.skip(f'needs onnxruntime-web of the npm registry, which is unreachable: {match[0]}')
  assert process.returncode == 0, process.stderr
  (packed,) = folder.glob('*.tgz')
  dist = folder / 'node_modules' / 'onnxruntime-web' / 'dist'
  dist.mkdir(parents=True)
  with tarfile.open(packed) as file:
    for name in RUNTIME_FILES:
      (dist / name).write_bytes(file.extractfile(f'package/dist/{name}').read())
  packed.unlink()
  return folder


@pytest.fixture(scope='module')
def address(site):
  handler = functools.partial(SilentHandler, directory=str(site))
  with server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{serving.server_port}'
    serving.shutdown()
    thread.join()


@pytest.fixture
def show(browser, address):
  """Opens the page. Console messages and external requests fail the test."""
  pages, urls, messages = [], [], []

  def show(query=''):
    page = browser.new_page()
    page.on('request', lambda request: urls.append(request.url))
    page.on('console', lambda message: messages.append(message.text))
    page.on('pageerror', lambda error: messages.append(str(error)))
    page.goto(f'{address}/index.html{query}')
    pages.append(page)
    return page

  yield show
  for page in pages:
    page.close()
  assert messages == []
  assert [url for url in urls if not url.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture(scope='module')
def model(browser, site, fitted):  # The first two skip before a model is fitted.
  """A model whose graph is in the folder that is served."""
  directory = fitted('patchcore')
  exporter.export(model_dir.load(directory), output=site / 'model.onnx', camera_size=CAMERA)
  return create_model(model_dir=directory, device='cpu:0')


@pytest.fixture(scope='module')
def photos(drawn, site):
  """Camera images in the served folder: color, gray, and with another gamma."""
  camera = transforms.parse(f'resize({CAMERA[0]}, {CAMERA[1]})')
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))
  for i, path in enumerate(paths):
    Image.fromarray(camera.apply(image_io.decode(path))).save(site / f'{i}.png')
  first = Image.open(site / '0.png')
  first.convert('L').save(site / 'gray.png')
  linear = PngImagePlugin.PngInfo()  # A browser that applied it would lighten the image.
  linear.add(b'gAMA', (100000).to_bytes(4, 'big'))
  primaries = 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000
  linear.add(b'cHRM', b''.join(value.to_bytes(4, 'big') for value in primaries))
  first.save(site / 'linear.png', pnginfo=linear)
  return [*(site / f'{i}.png' for i in range(len(paths))), site / 'gray.png', site / 'linear.png']


STATUS_SHOWS = """(name) => {
  const status = document.getElementById('status');
  return status.className || (window.result && status.textContent.startsWith(name));
}"""


def result(page, photo):
  """Wait for the result of an image, and return it."""
  page.wait_for_function(
    STATUS_SHOWS,
    arg=f'{photo.name}:',
    timeout=120_000,
  )
  assert page.get_attribute('#status', 'class') == '', page.text_content('#status')
  return page.evaluate('({...window.result, map: Array.from(window.result.map)})')


def assert_close(actual, expected):
  np.testing.assert_allclose(actual['score'], expected.score, rtol=1e-4)
  anomaly_map = np.reshape(actual['map'], (actual['height'], actual['width']))
  np.testing.assert_allclose(anomaly_map, expected.anomaly_map, rtol=1e-4)


@pytest.mark.slow
def test_the_browser_gives_the_score_the_map_and_the_label_of_predict(show, model, photos):
  page = show(f'?model=model.onnx&image={photos[0].name}')
  for photo, expected in zip(photos, model.predict([*photos]), strict=True):
    if photo != photos[0]:
      page.set_input_files('#image-file', photo)
    actual = result(page, photo)
    assert_close(actual, expected)
    assert actual['label'] == calibration.label(expected.score, expected.thresholds)


@pytest.mark.slow
def test_files_are_chosen_and_dropped(show, site, model, photos):
  first, second = model.predict(photos[:2])
  page = show()
  page.set_input_files('#graph-file', [site / 'model.onnx.json', site / 'model.onnx'])
  page.set_input_files('#image-file', photos[0])
  assert_close(result(page, photos[0]), first)
  page.evaluate(
    """async (name) => {
      const data = new DataTransfer();
      data.items.add(new File([await (await fetch(name)).blob()], name));
      const dropped = new DragEvent('drop', { dataTransfer: data, bubbles: true });
      document.body.dispatchEvent(dropped);
    }""",
    photos[1].name,
  )
  assert_close(result(page, photos[1]), second)
  label = calibration.label(second.score, second.thresholds)
  assert page.text_content('#label').endswith(label)


@pytest.mark.slow
def test_labels_are_by_the_thresholds_beside_the_graph(show, site, model, photos):
  page = show()
  page.set_input_files('#graph-file', site / 'model.onnx')
  page.set_input_files('#image-file', photos[0])
  score = result(page, photos[0])['score']
  assert result(page, photos[0])['label'] == ''
  assert 'choose the .json' in page.text_content('#status')
  metadata = json.loads((site / 'model.onnx.json').read_text())
  thresholds = calibration.Thresholds(**metadata['thresholds'])
  for review, image in ((score, 2 * score), (score / 2, score), (score / 3, score / 2)):
    changed_thresholds = thresholds._replace(review_threshold=review, image_threshold=image)
    text = json.dumps({**metadata, 'thresholds': changed_thresholds._asdict()}).encode()
    file = {'name': 'thresholds.json', 'mimeType': 'application/json', 'buffer': text}
    page.evaluate('window.result = undefined')
    page.set_input_files('#graph-file', file)
    assert result(page, photos[0])['label'] == calibration.label(score, changed_thresholds)


@pytest.mark.slow
def test_unusable_files_show_an_error(show, site, model, photos, tmp_path):
  page = show('?model=model.onnx')
  Image.new('RGB', (60, 40)).save(tmp_path / 'small.png')
  Image.new('RGBA', CAMERA[::-1], (9, 9, 9, 100)).save(tmp_path / 'glass.png')
  (tmp_path / 'text.png').write_text('no picture')
  (tmp_path / 'text.onnx').write_text('no graph')
  (tmp_path / 'odd.json').write_text('{}')
  for name, message in (
    ('small.png', '60 × 40 pixels, but model.onnx requires 75 × 57.*--include-resize 40x60'),
    ('glass.png', 'without alpha'),
    ('text.png', 'not an image'),
    ('text.onnx', 'cannot be opened'),
    ('odd.json', 'no thresholds'),
  ):
    page.set_input_files('#image-file', tmp_path / name)
    page.wait_for_function(
      f"document.querySelector('#status.error')?.textContent.includes('{name}')"
    )
    assert re.search(message, page.text_content('#status'))
    assert page.is_hidden('#result')
    assert page.evaluate('window.result') is None


@pytest.mark.slow
def test_the_page_fits_a_phone_and_is_usable_by_keyboard(show, site, model, photos):
  metadata = json.loads((site / 'model.onnx.json').read_text())
  metadata['thresholds']['pixel_threshold'] = 0.0  # So that the anomaly map is visible.
  (site / 'visible.json').write_text(json.dumps(metadata))
  page = show(f'?model=model.onnx&metadata=visible.json&image={photos[0].name}')
  page.set_viewport_size({'width': 390, 'height': 844})
  result(page, photos[0])
  assert page.evaluate('document.documentElement.scrollWidth') == 390
  page.evaluate('document.activeElement.blur()')
  focused = []
  for _ in range(3):
    page.keyboard.press('Tab')
    focused.append(page.evaluate('document.activeElement.id'))
  assert focused == ['graph-file', 'image-file', 'opacity']
  previous = page.evaluate('canvas.toDataURL()')
  page.keyboard.press('Home')
  assert page.evaluate('canvas.toDataURL()') != previous
