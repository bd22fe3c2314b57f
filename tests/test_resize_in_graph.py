"""Graphs resize a camera's pixels as Pillow does, to the bit."""

import hypothesis
from hypothesis import strategies
import jax
from jax import numpy as jnp
import numpy as np

from uadjax.data import transforms
from uadjax.export import resize_in_graph

OPS = (
  'resize(32)',
  'resize(24, 40)',
  'resize(40)|center_crop(33, 31)',
  'keep_ratio(32)',
  'keep_ratio(48, 20)|center_crop(16)',
)
SIZES = ((32, 32), (57, 91), (200, 133), (20, 75), (13, 9), (32, 64))


def _noise(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def _shrunk(ops, image):
  frame = ops.frame(*image.shape[:2])
  shrink = jax.jit(lambda x: resize_in_graph.resize_images(x, frame, ops.height, ops.width))
  return np.asarray(shrink(image[None]))[0]


# Of every chain two sizes, of which some are shrunk and some enlarged: each is compiled.
CASES = [
  (text, size)
  for number, text in enumerate(OPS)
  for size in (SIZES[number % 3], SIZES[3 + number % 3])
]


def test_bytes_come_out_as_pillow_has_them():
  for text, size in CASES:
    ops, image = transforms.parse(text), _noise(size)
    np.testing.assert_array_equal(_shrunk(ops, image), ops.apply(image), f'{text}, {size}')


@hypothesis.given(
  strategies.tuples(strategies.integers(1, 90), strategies.integers(1, 90)),
  strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 40)),
  strategies.integers(0, 9),
)
@hypothesis.settings(max_examples=10)  # Each is compiled.
def test_at_any_two_sizes(before, after, seed):
  ops, image = transforms.parse(f'resize({after[0]}, {after[1]})'), _noise(before, seed)
  np.testing.assert_array_equal(_shrunk(ops, image), ops.apply(image))


def test_white_stays_white_and_black_black():
  ops = transforms.parse('resize(7, 11)')
  for value in (0, 255):
    image = np.full((50, 60, 3), value, np.uint8)
    np.testing.assert_array_equal(_shrunk(ops, image), image[:7, :11])


def test_maps_go_back_as_they_do_elsewhere():
  for text, size in CASES:
    ops = transforms.parse(text)
    maps = np.random.default_rng(1).normal(size=(2, ops.height, ops.width)).astype(np.float32)
    want = np.stack([ops.restore(map, *size).anomaly_map for map in maps])
    got = jax.jit(lambda maps, ops=ops, size=size: resize_in_graph.restore_maps(maps, ops, *size))(
      jnp.asarray(maps)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=f'{text}, {size}')
