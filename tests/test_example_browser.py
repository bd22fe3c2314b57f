"""The example for browsers says there what `predict` says."""

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
PARTS = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'
# What npm says where there is no network, or a registry that does not serve.
AWAY = re.compile(
  r'ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ENOTCACHED|TIMEOUT|E403|E5\d\d'
)


class Quiet(server.SimpleHTTPRequestHandler):
  """Serves files, and tells nobody."""

  def log_message(self, format, *args):
    pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """The example's folder, with the version of onnxruntime-web that its README names."""
  npm = shutil.which('npm')
  if npm is None:
    pytest.skip('needs npm, for onnxruntime-web')
  folder = tmp_path_factory.mktemp('site')
  for name in ('index.html', 'score.js'):
    shutil.copy(EXAMPLE / name, folder)
  (version,) = set(re.findall(r'onnxruntime-web@([\d.]+\d)', (EXAMPLE / 'README.md').read_text()))
  # Not installed: of its 100 MB two files are needed.
  command = [npm, 'pack', f'onnxruntime-web@{version}', '--prefer-offline', '--fetch-retries=0']
  done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
  if done.returncode and (away := AWAY.search(done.stderr)):
    pytest.skip(f'needs onnxruntime-web of the npm registry, which is out of reach: {away[0]}')
  assert done.returncode == 0, done.stderr
  (packed,) = folder.glob('*.tgz')
  kept = folder / 'node_modules' / 'onnxruntime-web' / 'dist'
  kept.mkdir(parents=True)
  with tarfile.open(packed) as file:
    for name in PARTS:
      (kept / name).write_bytes(file.extractfile(f'package/dist/{name}').read())
  packed.unlink()
  return folder


@pytest.fixture(scope='module')
def address(site):
  handler = functools.partial(Quiet, directory=str(site))
  with server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as serving:
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{serving.server_port}'
    serving.shutdown()
    thread.join()


@pytest.fixture
def show(browser, address):
  """Open the page; whatever it complains of fails the test, and so does asking others."""
  pages, asked, said = [], [], []

  def show(query=''):
    page = browser.new_page()
    page.on('request', lambda request: asked.append(request.url))
    page.on('console', lambda message: said.append(message.text))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.goto(f'{address}/index.html{query}')
    pages.append(page)
    return page

  yield show
  for page in pages:
    page.close()
  assert said == []
  assert [url for url in asked if not url.startswith((address, 'data:', 'blob:'))] == []


@pytest.fixture(scope='module')
def model(browser, site, fitted):  # Those first: without them nothing is fitted.
  """A model whose graph is in the folder that is served."""
  directory = fitted('patchcore')
  exporter.export(model_dir.load(directory), output=site / 'model.onnx', camera=CAMERA)
  return create_model(model_dir=directory, device='cpu:0')


@pytest.fixture(scope='module')
def photos(drawn, site):
  """Pictures of the camera in the folder that is served: plain, gray, and of another gamma."""
  camera = transforms.parse(f'resize({CAMERA[0]}, {CAMERA[1]})')
  paths = sorted((drawn / 'disc' / 'test').rglob('*.png'))
  for i, path in enumerate(paths):
    Image.fromarray(camera.apply(image_io.decode(path))).save(site / f'{i}.png')
  first = Image.open(site / '0.png')
  first.convert('L').save(site / 'gray.png')
  linear = PngImagePlugin.PngInfo()  # Where browsers follow it, all becomes lighter.
  linear.add(b'gAMA', (100000).to_bytes(4, 'big'))
  primaries = 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000
  linear.add(b'cHRM', b''.join(value.to_bytes(4, 'big') for value in primaries))
  first.save(site / 'linear.png', pnginfo=linear)
  return [*(site / f'{i}.png' for i in range(len(paths))), site / 'gray.png', site / 'linear.png']


def result(page, photo):
  """What the page computed of a picture, once it has."""
  page.wait_for_function(
    '(name) => told.className || (window.result && told.textContent.startsWith(name))',
    arg=f'{photo.name}:',
    timeout=120_000,
  )
  assert page.get_attribute('#told', 'class') == '', page.text_content('#told')
  return page.evaluate('({...window.result, map: Array.from(window.result.map)})')


def check(got, want):
  np.testing.assert_allclose(got['score'], want.score, rtol=1e-4)
  map = np.reshape(got['map'], (got['height'], got['width']))
  np.testing.assert_allclose(map, want.anomaly_map, rtol=1e-4)


@pytest.mark.slow
def test_the_browser_gives_the_score_the_map_and_the_label_of_predict(show, model, photos):
  page = show(f'?model=model.onnx&image={photos[0].name}')
  for photo, want in zip(photos, model.predict([*photos]), strict=True):
    if photo != photos[0]:
      page.set_input_files('#image-file', photo)
    got = result(page, photo)
    check(got, want)
    assert got['label'] == want.label


@pytest.mark.slow
def test_files_are_chosen_and_dropped(show, site, model, photos):
  first, second = model.predict(photos[:2])
  page = show()
  page.set_input_files('#graph-file', [site / 'model.onnx.json', site / 'model.onnx'])
  page.set_input_files('#image-file', photos[0])
  check(result(page, photos[0]), first)
  page.evaluate(
    """async (name) => {
      const data = new DataTransfer();
      data.items.add(new File([await (await fetch(name)).blob()], name));
      const dropped = new DragEvent('drop', { dataTransfer: data, bubbles: true });
      document.body.dispatchEvent(dropped);
    }""",
    photos[1].name,
  )
  check(result(page, photos[1]), second)
  assert page.text_content('#label').endswith(second.label)


@pytest.mark.slow
def test_labels_are_by_the_thresholds_beside_the_graph(show, site, model, photos):
  page = show()
  page.set_input_files('#graph-file', site / 'model.onnx')
  page.set_input_files('#image-file', photos[0])
  score = result(page, photos[0])['score']
  assert result(page, photos[0])['label'] == ''
  assert 'choose the .json' in page.text_content('#told')
  about = json.loads((site / 'model.onnx.json').read_text())
  limits = calibration.Limits(**about['thresholds'])
  for review, image in ((score, 2 * score), (score / 2, score), (score / 3, score / 2)):
    moved = limits._replace(review=review, image=image)
    text = json.dumps({**about, 'thresholds': moved._asdict()}).encode()
    file = {'name': 'moved.json', 'mimeType': 'application/json', 'buffer': text}
    page.evaluate('window.result = undefined')
    page.set_input_files('#graph-file', file)
    assert result(page, photos[0])['label'] == calibration.label(score, moved)


@pytest.mark.slow
def test_what_cannot_be_scored_is_told(show, site, model, photos, tmp_path):
  page = show('?model=model.onnx')
  Image.new('RGB', (60, 40)).save(tmp_path / 'small.png')
  Image.new('RGBA', CAMERA[::-1], (9, 9, 9, 100)).save(tmp_path / 'glass.png')
  (tmp_path / 'text.png').write_text('no picture')
  (tmp_path / 'text.onnx').write_text('no graph')
  (tmp_path / 'odd.json').write_text('{}')
  for name, told in (
    ('small.png', '60 × 40 pixels, and model.onnx takes 75 × 57.*--include-resize 40x60'),
    ('glass.png', 'without alpha'),
    ('text.png', 'no picture'),
    ('text.onnx', 'cannot be opened'),
    ('odd.json', 'no thresholds'),
  ):
    page.set_input_files('#image-file', tmp_path / name)
    page.wait_for_function(f"document.querySelector('#told.wrong')?.textContent.includes('{name}')")
    assert re.search(told, page.text_content('#told'))
    assert page.is_hidden('#result')
    assert page.evaluate('window.result') is None


@pytest.mark.slow
def test_it_fits_a_phone_and_a_keyboard(show, model, photos):
  page = show(f'?model=model.onnx&image={photos[0].name}')
  page.set_viewport_size({'width': 390, 'height': 844})
  result(page, photos[0])
  assert page.evaluate('document.documentElement.scrollWidth') == 390
  page.evaluate('document.activeElement.blur()')
  reached = []
  for _ in range(3):
    page.keyboard.press('Tab')
    reached.append(page.evaluate('document.activeElement.id'))
  assert reached == ['graph-file', 'image-file', 'heat']
  before = page.evaluate('picture.toDataURL()')
  page.keyboard.press('Home')
  assert page.evaluate('picture.toDataURL()') != before
