"""Near-duplicates are grouped, and parts that merely look alike are not."""

import io
import itertools

from hypothesis import example, given, settings, strategies as st
import numpy as np
from PIL import Image
import pytest

from uadjax.data import image_io, near_duplicates
from uadjax.data.layouts import scanning

SETS = 'mvtec_ad/bottle', 'mvtec_ad/screw', 'mvtec_ad/toothbrush', 'magnetic_tile'
QUALITIES = 95, 85, 75


def encoded(pixels, quality):
  """Pixels after JPEG in this quality."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
  return np.asarray(Image.open(file).convert('RGB'))


def part(seed):
  """A drawn part: aligned with all others but for a pixel or two, under noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:96, :96]
  center = 48 + rng.normal(0, 1.6, 2)
  disc = (y - center[0]) ** 2 + (x - center[1]) ** 2 < 36**2
  gray = np.where(disc, 170, 70) + np.where(disc & (x // 8 % 2 == 0), 15, 0)
  gray = np.clip(gray + rng.normal(0, 4, gray.shape), 0, 255).astype(np.uint8)
  return np.repeat(gray[..., None], 3, axis=2)


def grouped(images, names=None):
  fingerprints = np.stack([near_duplicates.fingerprint(image) for image in images])
  return near_duplicates.group(fingerprints, names or [f'{i}.png' for i in range(len(images))])


PARTS = [part(seed) for seed in range(30)]
CHANGES = {
  'copied': lambda image: image,
  'encoded': lambda image: encoded(image, 92),
  'brighter': lambda image: np.minimum(image, 254) + 1,
  'smaller': lambda image: np.asarray(Image.fromarray(image).resize((64, 64), 1)),
}


@pytest.mark.parametrize('change', ['copied', 'encoded', 'brighter'])
def test_an_image_saved_again_is_grouped_with_the_original(change):
  again = [CHANGES[change](image) for image in PARTS]
  n = len(PARTS)
  np.testing.assert_array_equal(grouped([*PARTS, *again]), np.tile(np.arange(n), 2))


def test_parts_that_look_alike_are_not_grouped():
  np.testing.assert_array_equal(grouped(PARTS), np.arange(len(PARTS)))


@pytest.mark.parametrize('count', [1, 2, 3, 4, 9])
def test_a_few_images_are_distinguished_too(count):
  np.testing.assert_array_equal(grouped(PARTS[:count]), np.arange(count))
  twice = [*PARTS[:count], *PARTS[:count]]
  np.testing.assert_array_equal(grouped(twice), np.tile(np.arange(count), 2))


def test_parts_of_many_kinds_are_not_grouped_by_their_kind():
  kinds = [np.roll(image, 12 * kind, axis=kind % 2) for kind in range(6) for image in PARTS[:5]]
  kinds += [255 - image for image in PARTS[:3]]  # A rare kind.
  np.testing.assert_array_equal(grouped(kinds), np.arange(len(kinds)))


def test_many_copies_of_a_few_images_are_as_many_groups():
  many = [encoded(image, quality) for quality in range(98, 84, -2) for image in PARTS[:4]]
  np.testing.assert_array_equal(grouped(many), np.tile(np.arange(4), len(many) // 4))


def test_a_still_video_is_one_group():
  rng = np.random.default_rng(0)
  still = [np.clip(PARTS[0] + rng.normal(0, 1, PARTS[0].shape), 0, 255) for _ in range(20)]
  groups = grouped([*PARTS[1:], *(image.astype(np.uint8) for image in still)])
  np.testing.assert_array_equal(groups, [*range(29), *[29] * 20])


def test_a_video_that_moves_slowly_is_one_group():
  frames = [np.roll(PARTS[0], shift, axis=1) for shift in range(1, 31)]
  blended = [
    (a * (1 - t) + b * t).astype(np.uint8)
    for a, b in itertools.pairwise(frames[:6])
    for t in np.linspace(0, 1, 30)
  ]
  groups = grouped([*PARTS[1:], *blended])
  assert len(set(groups[len(PARTS) - 1 :].tolist())) == 1
  np.testing.assert_array_equal(groups[: len(PARTS) - 1], np.arange(len(PARTS) - 1))


def test_exports_of_one_image_are_grouped_by_their_name():
  digits = [f'{i:032x}' for i in range(4)]
  names = [
    f'a/part_jpg.rf.{digits[0]}.jpg', f'a/other_jpg.rf.{digits[1]}.jpg',
    f'a/part_jpg.rf.{digits[2]}.jpg', 'a/part_jpg.png', f'a/part.rf.{digits[3][:8]}.jpg',
  ]  # fmt: skip
  np.testing.assert_array_equal(grouped(PARTS[:5], names), [0, 1, 0, 3, 4])


def slow_groups(fingerprints, ratio):
  """Connected components of the pairs, one image after the other."""
  n = len(fingerprints)
  x = fingerprints.astype(np.float64)
  distances = np.sqrt(((x[:, None] - x) ** 2).mean(axis=2))
  linked = distances <= np.minimum(ratio * np.median(distances, axis=1), ratio * 7.5)[:, None]
  linked |= linked.T | np.eye(n, dtype=bool)
  groups = np.arange(n)
  for _ in range(n):
    groups = np.array([groups[row].min() for row in linked])
  return groups


@settings(max_examples=50)
@example(4, 12, 8606430, 0.2)  # Of an even number, the median is a mean.
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.01, 0.2]))
def test_groups_equal_those_of_the_definition(n, kinds, seed, spread):
  rng = np.random.default_rng(seed)
  kind = rng.integers(0, kinds, n)
  x = rng.normal(0, 10, (kinds, 8))[kind] + rng.normal(0, spread, (n, 8))
  got = near_duplicates.group(x.astype(np.float32), [f'{i}.png' for i in range(n)])
  near = [slow_groups(x.astype(np.float32), 0.08 * scale).tolist() for scale in (0.99, 1, 1.01)]
  assert got.tolist() in near  # Rounding decides where a distance equals its limit.


@pytest.mark.slow
@pytest.mark.parametrize('name', SETS)
def test_real_parts_are_distinguished_and_their_copies_are_not(shared, name):
  paths = scanning.files_in(shared / 'data' / name / 'train' / 'good')
  images = [image_io.decode(path) for path in paths]
  n = len(images)
  alone = grouped(images)
  assert (alone != np.arange(n)).mean() <= 0.01
  copies = [encoded(image, quality) for quality in QUALITIES for image in images]
  np.testing.assert_array_equal(grouped(copies), np.tile(grouped(copies[:n]), len(QUALITIES)))


def test_the_copy_of_an_image_has_nearly_its_fingerprint():
  image = PARTS[0]
  values = near_duplicates.fingerprint(image)
  assert abs(values.mean()) < 1e-3
  for change in CHANGES.values():
    assert np.abs(near_duplicates.fingerprint(change(image)) - values).mean() < 1.5
  assert np.abs(near_duplicates.fingerprint(part(99)) - values).mean() > 1.5
