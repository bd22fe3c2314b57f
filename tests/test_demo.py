"""Laws of the drawn data set."""

import hashlib
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from uadjax import data
from uadjax.data import datasets, demo, preprocess


def digest(root: Path) -> dict[str, str]:
  return {
    str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


def test_same_seed_same_bytes(tmp_path):
  few = {'train': 2, 'test_good': 1, 'test_defect': 1, 'size': 48}
  first = digest(demo.draw(tmp_path / 'a', **few))
  assert len(first) == 2 + 1 + 3 * 2
  assert first == digest(demo.draw(tmp_path / 'b', **few))
  assert first == digest(demo.draw(tmp_path / 'b', **few))  # Over what is there.
  assert len(set(first.values()) & set(digest(demo.draw(tmp_path / 'c', 1, **few)).values())) == 0


def test_is_a_data_set_with_exact_masks(tmp_path):
  train, test = datasets.load(demo.draw(tmp_path), 'disc')
  assert (len(train), len(test)) == (24, 24)
  assert {record.defect for record in test} == {'good', 'missing', 'scratch', 'spot'}
  for record in test:
    assert preprocess.image_size(record.path) == (96, 96)
    assert (record.mask is not None) == record.anomalous
    if record.mask:
      assert 8 < preprocess.read_mask(record.mask).sum() < 96 * 96 / 20


def test_interrupted_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setitem(demo._DEFECTS, 'spot', fail)
  with pytest.raises(KeyboardInterrupt):
    demo.draw(tmp_path, size=32, train=1, test_good=1, test_defect=1)
  assert list(tmp_path.iterdir()) == []


def test_load_falls_back_on_the_demo(tmp_path, monkeypatch):
  monkeypatch.setenv('UADJAX_CACHE', str(tmp_path))
  config = ml_collections.ConfigDict(
    {'root': '', 'category': '', 'layout': 'auto', 'mask_threshold': 0}
  )
  splits = data.load(config)
  assert len(splits.train) == 24
  assert data.load(config) == splits
  config.update({'root': str(demo.cached()), 'category': 'disc'})
  assert data.load(config) == splits


def test_good_parts_vary_and_defects_stand_out(tmp_path):
  train, test = datasets.load(demo.draw(tmp_path), 'disc')
  good = np.stack([preprocess.decode(record.path) for record in train]).astype(float)
  assert 3 < good.std(axis=0).mean() < 40
  for record in test:
    if record.mask:
      image = preprocess.decode(record.path).mean(axis=-1)
      mask = preprocess.read_mask(record.mask)
      usual = good.mean(axis=(0, -1))
      assert abs(image - usual)[mask].mean() > 2 * abs(image - usual)[~mask].mean()
