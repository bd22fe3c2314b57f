import numpy as np
import pytest

from uadjax.errors import ModelError
from uadjax.model import incremental_state

ARRAYS = {'n': np.float32(5), 'mean': np.arange(6, dtype=np.float32).reshape(1, 2, 3)}
RNG = np.random.default_rng(0)
IMAGES = incremental_state.LearnedImages(
  num_tiles=np.array([1, 2, 1]),
  tile_ids=np.array([0, 1, 4, 5], np.int32),
  groups=np.array([0, 0, 2]),
  fingerprints=RNG.random((3, 4), np.float32),
  export_keys=np.array([0, 7, 0]),
  stored_rows=np.array([0, 2]),
  sizes=np.array([[3, 5], [2, 4]]),
  pixels=RNG.integers(0, 255, 3 * (3 * 5 + 2 * 4), np.uint8),
)


@pytest.fixture
def folder(tmp_path):
  incremental_state.save_state_arrays(tmp_path, ARRAYS)
  incremental_state.save_images(tmp_path, IMAGES)
  return tmp_path


def assert_same(arrays):
  assert arrays.keys() == ARRAYS.keys()
  for name, value in ARRAYS.items():
    assert arrays[name].dtype == value.dtype
    np.testing.assert_array_equal(arrays[name], value)


def test_a_loaded_state_equals_the_saved_one(folder):
  before = incremental_state.load(folder)
  assert_same(before.state_arrays)
  assert before.num_images == 3
  for got, want in zip(before.images, IMAGES, strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('mapped', [False, True])
def test_kept_arrays_are_there_before_the_rest(tmp_path, mapped):
  incremental_state.save_state_arrays(tmp_path, ARRAYS)
  arrays = incremental_state.load_state_arrays(tmp_path, mapped)
  assert_same(arrays)
  assert isinstance(arrays['mean'], np.memmap) == mapped


def test_writes_into_a_mapped_array_stay_in_memory(folder):
  """As a detector does that consumes what it is given."""
  incremental_state.load_state_arrays(folder, memory_map=True)['mean'][:] = 0.0
  assert_same(incremental_state.load_state_arrays(folder, memory_map=True))


def test_a_loaded_state_does_not_need_its_files(folder):
  before = incremental_state.load(folder)
  for path in folder.iterdir():
    path.unlink()
  assert_same(before.state_arrays)
  assert not isinstance(before.state_arrays['mean'], np.memmap)  # Which would break with the file.


def test_there_is_no_pickle_in_it(tmp_path):
  with pytest.raises(ValueError, match='pickle'):
    incremental_state.save_state_arrays(tmp_path, {'any': np.array([object()])})


def test_the_notes_come_last(tmp_path):
  """So a folder that was left halfway is not taken for a whole one."""
  incremental_state.save_state_arrays(tmp_path, ARRAYS)
  with pytest.raises(ModelError, match='does not hold'):
    incremental_state.load(tmp_path)


def pickled(path):
  np.save(path, np.array([{}]), allow_pickle=True)


def halved(path):
  path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
  'harm',
  [
    lambda d: (d / 'state.json').unlink(),
    lambda d: (d / 'state.json').write_text('{'),
    lambda d: (d / 'state.json').write_text('{}'),
    lambda d: (d / 'state.json').write_text('[]'),
    lambda d: (d / 'state.json').write_bytes(b'\xff'),
    lambda d: (d / 'mean.npy').unlink(),
    lambda d: (d / 'mean.npy').write_bytes(b''),
    lambda d: (d / 'mean.npy').write_bytes(b'harm'),
    lambda d: (d / 'mean.npy').write_bytes(b'PK\x03\x04harm'),
    lambda d: halved(d / 'mean.npy'),
    lambda d: pickled(d / 'mean.npy'),
    lambda d: (d / 'images_tile_ids.npy').unlink(),
    lambda d: halved(d / 'images_pixels.npy'),
    lambda d: [path.unlink() for path in d.iterdir()],
  ],
)
def test_a_harmed_folder_gets_one_clear_error(folder, harm):
  harm(folder)
  with pytest.raises(ModelError) as caught:
    incremental_state.load(folder)
  assert str(folder) in str(caught.value)
  assert 'fit.extend' in str(caught.value)


def test_a_missing_folder_gets_the_same(tmp_path):
  with pytest.raises(ModelError, match=r'fit\.extend'):
    incremental_state.load(tmp_path / 'nothing')
