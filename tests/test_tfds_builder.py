"""The TFDS builder tells what the files tell."""

import shutil
import tarfile

import numpy as np
import pytest
import small_runs

from uadjax.data import demo, image_io, layouts, records as record_types

tfds = pytest.importorskip('tensorflow_datasets')
from uadjax.data.tfds_builders import mvtec_ad  # noqa: E402


@pytest.fixture
def tree(tmp_path):
  few = {'train': 3, 'test_good': 1, 'test_defect': 1, 'size': 24}
  root = demo.write_dataset(tmp_path / 'manual', **few, **small_runs.DISCS)
  shutil.copytree(root / 'disc', root / 'bottle')
  (root / 'bottle/ground_truth/spot/000_mask.png').unlink()
  return root


def prepared(tmp_path, root, name, **builder_kwargs):
  config = tfds.download.DownloadConfig(manual_dir=root, extract_dir=tmp_path / 'extracted')
  return tfds.load(
    name,
    data_dir=tmp_path / 'tfds',
    builder_kwargs=builder_kwargs,
    download_and_prepare_kwargs={'download_config': config},
  )


def assert_tells(loaded, splits: record_types.Splits):
  for name, records in splits._asdict().items():
    examples = {row['path'].decode(): row for row in tfds.as_numpy(loaded[name])}
    assert len(examples) == len(records)
    for record in records:
      (row,) = [row for path, row in examples.items() if str(record.path).endswith(path)]
      np.testing.assert_array_equal(row['image'], image_io.decode(record.path))
      assert row['label'] == record.is_anomalous
      assert row['defect'].decode() == record.defect
      assert row['has_mask'] == (record.mask is not None or not record.is_anomalous)
      mask = image_io.read_mask(record.mask) if record.mask else np.zeros((24, 24), bool)
      np.testing.assert_array_equal(row['mask'][..., 0] > 0, mask)


def test_official_names_and_any_other(tmp_path, tree):
  assert len(mvtec_ad.MvtecAd.BUILDER_CONFIGS) == 15
  assert_tells(prepared(tmp_path, tree, 'mvtec_ad/bottle'), layouts.load(tree, 'bottle'))
  loaded = prepared(tmp_path, tree, 'mvtec_ad', category='disc')
  assert_tells(loaded, layouts.load(tree, 'disc'))


def test_archive(tmp_path, tree):
  packed = tmp_path / 'packed'
  packed.mkdir()
  with tarfile.open(packed / 'mvtec_anomaly_detection.tar.xz', 'w:xz') as archive:
    archive.add(tree / 'bottle', 'bottle')
  assert_tells(prepared(tmp_path, packed, 'mvtec_ad/bottle'), layouts.load(tree, 'bottle'))
