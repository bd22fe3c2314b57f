"""Laws of the drawn data set."""

from concurrent import futures
import functools
import hashlib
import itertools
from pathlib import Path

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage
import small_runs

from uadjax import data
from uadjax.data import checks, demo, image_io, layouts
from uadjax.data.demo import rendering
from uadjax.data.settings import DataSettings
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import threads

FEW = {'train': 2, 'test_good': 1, 'test_defect': 1}
FEW_DISCS = {**FEW, **small_runs.DISCS}
KINDS = [(category, kind) for category in demo.CATEGORIES for kind in demo.defect_names(category)]
# Sums of all values of the first good and the first spotted picture, 32 pixels wide.
DRAWN = {
  'board': [249091, 248163],
  'disc': [84569, 83895],
  'fabric': [122447, 116685],
  'steel': [133513, 130847],
  'wood': [353987, 360581],
}


def digest(root: Path) -> dict[str, str]:
  return {
    str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A few of everything."""
  few = {'train': 4, 'test_good': 2, 'test_defect': 1, 'size': 64}
  root = tmp_path_factory.mktemp('whole')
  return demo.write_dataset(root, **few, categories=demo.CATEGORIES, defects=demo.defect_names())


def test_images_are_rendered_on_as_many_cores_as_the_process_may_use(tmp_path, monkeypatch):
  num_threads = []
  pool = futures.ThreadPoolExecutor

  def make_pool(count, *args):
    num_threads.append(count)
    return pool(count, *args)

  monkeypatch.setattr(futures, 'ThreadPoolExecutor', make_pool)
  monkeypatch.setattr(threads, 'num_cores', lambda: 3)
  demo.write_dataset(tmp_path, **FEW_DISCS, size=32)
  assert num_threads == [3]


def test_same_seed_same_bytes(tmp_path):
  few = {**FEW_DISCS, 'size': 48}
  first = digest(demo.write_dataset(tmp_path / 'a', **few))
  assert len(first) == 2 + 1 + 3 * 2
  assert first == digest(demo.write_dataset(tmp_path / 'b', **few))
  assert first == digest(demo.write_dataset(tmp_path / 'b', **few))  # Over what is there.
  assert (
    len(set(first.values()) & set(digest(demo.write_dataset(tmp_path / 'c', 1, **few)).values()))
    == 0
  )


def test_a_picture_depends_on_no_other(tmp_path):
  all_of_it = {'size': 32, 'categories': demo.CATEGORIES, 'defects': demo.defect_names()}
  few = digest(demo.write_dataset(tmp_path / 'few', **FEW, **all_of_it))
  more = digest(
    demo.write_dataset(tmp_path / 'more', train=3, test_good=2, test_defect=2, **all_of_it)
  )
  spots = {'size': 32, 'categories': ['disc'], 'defects': ['spot']}
  alone = digest(demo.write_dataset(tmp_path / 'one', **FEW, **spots))
  assert few.items() <= more.items()
  assert alone.items() <= few.items()
  assert len(set(more.values())) == len(more)  # And no two are the same, masks included.


def test_the_drawing_is_that_of_its_version():
  """Who changes a picture must change demo.VERSION, or old caches are taken for new."""
  for category in demo.CATEGORIES:
    sums = [
      int(rendering.render_image(category, part, defect, 0, 0, 32).pixels.sum(dtype=np.int64))
      for part, defect in (('train', 'good'), ('test', 'spot'))
    ]
    # A last bit of another processor's arithmetic may round a pixel or two the other way.
    np.testing.assert_allclose(sums, DRAWN[category], atol=4, err_msg=category)


def test_categories_and_defects_of_the_demo_dataset():
  assert sorted([*demo.TEXTURES, *demo.OBJECTS]) == list(demo.CATEGORIES)
  assert min(len(demo.TEXTURES), len(demo.OBJECTS)) >= 2
  assert demo.defect_names() == ['contamination', 'deformation', 'missing', 'scratch', 'spot']
  for category in demo.OBJECTS:
    assert demo.defect_names(category) == demo.defect_names()
  for category in demo.TEXTURES:
    assert {'contamination', 'deformation', 'spot'} <= set(demo.defect_names(category))


def test_the_mask_is_where_a_defect_shows_and_nowhere_else():
  for (category, kind), number in itertools.product(KINDS, range(3)):
    image, case = (
      rendering.render_image(category, 'test', kind, number, 7, 128),
      (category, kind, number),
    )
    difference = abs(image.pixels.astype(int) - image.defect_free).max(axis=-1)
    assert not difference[~image.mask].any(), case
    near = ndimage.maximum_filter(difference, 5)  # A bright and a dark flank meet at no difference.
    assert near[image.mask].min() >= 3, case
    assert 4 < image.mask.sum() < 128 * 128 / 5, case


def test_a_twin_is_good():
  for category in demo.CATEGORIES:
    good = rendering.render_image(category, 'test', 'good', 0, 0, 32)
    assert not good.mask.any(), category
    np.testing.assert_array_equal(good.pixels, good.defect_free, category)


def test_no_size_is_too_small_for_a_defect():
  for (category, kind), size in itertools.product(KINDS, (16, 24, 51)):
    image = rendering.render_image(category, 'test', kind, 0, 0, size)
    assert image.pixels.shape[:2] == image.mask.shape == (size, size), (category, kind, size)
    assert image.mask.any(), (category, kind, size)


def test_a_check_finds_nothing_wrong(whole):
  for category in demo.CATEGORIES:
    report = checks.check(whole, category)
    assert report.problems == (), category
    train, test = report.splits
    assert (len(train), len(test)) == (4, 2 + len(demo.defect_names(category))), category
    assert {record.defect for record in test} == {'good', *demo.defect_names(category)}, category
    for record in (*train, *test):
      assert image_io.image_size(record.path) == (64, 64), record
      assert (record.mask is not None) == record.is_anomalous, record


def test_a_picture_uses_the_range_and_clips_little(whole):
  for category in demo.CATEGORIES:
    for record in layouts.load(whole, category).train:
      values = image_io.decode(record.path)
      low, high = np.percentile(values, [1, 99])
      assert high - low > 30, record
      assert np.isin(values, (0, 255)).mean() < 0.02, record


def test_some_cameras_see_color(whole):
  def mode(category):
    with Image.open(whole / category / 'train/good/000.png') as image:
      return image.mode

  assert {mode(category) for category in demo.CATEGORIES} == {'L', 'RGB'}


def test_good_pictures_vary_and_defects_stand_out(whole):
  for category in demo.CATEGORIES:
    train, test = layouts.load(whole, category)
    good = np.stack([image_io.decode(record.path) for record in train]).astype(float)
    assert 1.5 < good.std(axis=0).mean() < 60, category
    images = [
      rendering.render_image(category, 'test', r.defect, 0, 0, 64) for r in test if r.is_anomalous
    ]
    differences = [
      abs(image.pixels.astype(float) - image.defect_free)[image.mask].mean() for image in images
    ]
    assert np.mean(differences) > 8, category  # Levels: of five times the noise.


def test_interrupted_leaves_nothing(tmp_path, monkeypatch):
  take = rendering.render_image

  def fail(category, *job, **options):
    if category == 'wood':
      raise KeyboardInterrupt
    return take(category, *job, **options)

  monkeypatch.setattr(rendering, 'render_image', fail)
  demo.write_dataset(tmp_path, **FEW_DISCS, size=32)
  before = digest(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    demo.write_dataset(tmp_path, 1, **FEW, size=32, categories=['disc', 'wood'])
  assert digest(tmp_path) == before
  assert [path.name for path in tmp_path.iterdir()] == ['disc']


def test_unknown_categories_and_defects_are_refused(tmp_path):
  with pytest.raises(UnknownName, match=r"category 'dics'.*'disc'"):
    demo.write_dataset(tmp_path, categories=['dics'])
  with pytest.raises(UnknownName, match=r"defect 'crack'.*'scratch'"):
    demo.write_dataset(tmp_path, defects=['crack'])
  with pytest.raises(ConfigError, match='at least 16'):
    demo.write_dataset(tmp_path, size=8)
  assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope='module')
def cover(tmp_path_factory):
  """One good and one defective image of the large product."""
  counts = {'train': 1, 'test_good': 0, 'test_defect': 1}
  return demo.write_large_dataset(tmp_path_factory.mktemp('large'), **counts) / 'cover'


def test_the_large_product_has_defects_of_about_ten_pixels(cover):
  for defect in demo.LARGE_DEFECTS:
    path = cover / 'test' / defect / '000.png'
    assert image_io.image_size(path) == demo.LARGE_SIZE == (1536, 2048), defect
    mask = image_io.decode(cover / 'ground_truth' / defect / '000_mask.png')[..., 0] > 0
    for indices in np.nonzero(mask):
      assert 8 <= indices.max() - indices.min() + 1 <= 17, defect
    region = image_io.decode(cover / demo.REGION_FILE)[..., 0]
    assert region[mask].min() == 255, defect


def test_the_mask_of_a_large_image_is_where_it_differs(cover):
  image = rendering.render_cover('test', 'chip', 0, 0)
  difference = abs(image.pixels.astype(int) - image.defect_free).max(axis=-1)
  assert not difference[~image.mask].any()
  assert difference[image.mask].mean() > 20
  pixels = image_io.decode(cover / 'test' / 'chip' / '000.png')
  np.testing.assert_array_equal(pixels[..., :1], image.pixels)  # The same seed, the same image.


def test_large_images_of_two_seeds_differ(cover):
  image = rendering.render_cover('train', 'good', 0, 1)
  pixels = image_io.decode(cover / 'train' / 'good' / '000.png')
  assert (pixels[..., :1] != image.pixels).mean() > 0.5
  assert not image.mask.any()


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """An empty cache, of small pictures."""
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  monkeypatch.setattr(demo, 'write_dataset', functools.partial(demo.write_dataset, size=16))
  return tmp_path


def config(category=''):
  return DataSettings(category=category)


def test_load_falls_back_on_the_demo(cache):
  splits = data.load(config())
  assert len(splits.train) == 60
  assert len(splits.test) == 15 + 4 * len(demo.defect_names('disc'))
  before = digest(cache)
  assert data.load(config('disc')) == splits
  assert digest(cache) == before
  settings = DataSettings(str(demo.cached_dataset()), 'disc')
  assert data.load(settings) == splits


def test_a_category_is_drawn_when_first_asked_for(cache):
  assert data.expand(config()) == ['disc']
  assert data.expand(config('all')) == list(demo.CATEGORIES)
  assert data.expand(config('textures')) == list(demo.TEXTURES)
  assert list(cache.iterdir()) == []
  splits = data.load(config('steel'))
  assert len(splits.train) == 60
  assert [path.name for path in demo.cached_dataset('steel').iterdir()] == ['steel']
  with pytest.raises(UnknownName, match=r"'bottle'.*'board'"):
    data.load(config('bottle'))
