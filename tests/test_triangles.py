"""Packed triangles are the definition, and the model file and the state store nothing else."""

from typing import NamedTuple

import hypothesis
from hypothesis import strategies as st
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from uadjax.errors import ModelError
from uadjax.model import array_file, incremental_state
from uadjax.numerics import triangles
from uadjax.numerics.triangles import Triangles

SHAPE = 2, 3  # Of the map of matrices.


class Tree(NamedTuple):
  """A fitted state with a map of matrices between other arrays."""

  mean: jax.Array
  factors: Triangles
  bits: jax.Array


def squares(d, symmetric=False, seed=0):
  x = np.random.default_rng(seed).normal(size=(*SHAPE, d, d)).astype(np.float32)
  return x + x.mT if symmetric else np.tril(x)


def slow_pack(matrices):
  """Row by row, entry by entry."""
  d = matrices.shape[-1]
  return np.stack([matrices[..., i, j] for i in range(d) for j in range(i + 1)], axis=-1)


@hypothesis.given(d=st.integers(1, 9), symmetric=st.booleans(), block=st.sampled_from([1, 1 << 20]))
def test_triangles_are_the_definition_and_unpack_to_the_matrices(d, symmetric, block):
  matrices = squares(d, symmetric)
  wrapped = Triangles(matrices)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(triangles, '_BLOCK_BYTES', block)
    packed = np.concatenate([*wrapped.pack_blocks()])
    assert packed.nbytes == wrapped.packed_bytes
    packed = packed.reshape(wrapped.packed_shape)
    np.testing.assert_array_equal(packed, slow_pack(matrices))
    out = np.zeros_like(matrices)
    triangles.unpack(packed, out, symmetric)
  np.testing.assert_array_equal(out, matrices)
  assert triangles.num_rows(packed.shape[-1]) == d
  diagonal = packed[..., triangles.diagonal_positions(d)]
  np.testing.assert_array_equal(diagonal, np.diagonal(matrices, axis1=-2, axis2=-1))


def tree(d=5):
  return Tree(jnp.arange(6.0), Triangles(jnp.asarray(squares(d))), jnp.array([True, False]))


def template(tree):
  return array_file.leaves_by_path(jax.eval_shape(lambda: tree))


def test_the_model_file_has_triangles_and_is_read_as_matrices(tmp_path):
  fitted = tree()
  digest = array_file.save_arrays(tmp_path, fitted)
  path = tmp_path / array_file.ARRAYS_FILE
  content = safetensors.numpy.load_file(path)
  assert content.keys() == {'mean', 'factors', 'bits'}
  np.testing.assert_array_equal(content['factors'], slow_pack(squares(5)))
  arrays, actual_digest = array_file.read_arrays(path, template(fitted), ())
  assert actual_digest == digest
  leaves = [arrays[name] for name in template(fitted)]
  jax.tree.map(np.testing.assert_array_equal, leaves, jax.tree.leaves(fitted))
  for leaf in leaves:
    assert leaf.ctypes.data % 64 == 0  # So that JAX takes it without a copy.


def test_triangles_of_another_size_are_refused(tmp_path):
  array_file.save_arrays(tmp_path, tree(4))
  path = tmp_path / array_file.ARRAYS_FILE
  with pytest.raises(
    ModelError, match=r'factors must have .* \(2, 3, 15\), but has .*\(2, 3, 10\)'
  ):
    array_file.read_arrays(path, template(tree(5)), ())


@pytest.mark.parametrize('mapped', [False, True])
def test_the_state_has_triangles(tmp_path, mapped):
  matrices = squares(5, symmetric=True)
  incremental_state.save_state_arrays(tmp_path, {'n': np.float32(3), 'm2': Triangles(matrices)})
  arrays = incremental_state.load_state_arrays(tmp_path, mapped)
  assert arrays['n'] == 3
  np.testing.assert_array_equal(arrays['m2'], slow_pack(matrices))
  np.testing.assert_array_equal(np.load(tmp_path / 'm2.npy'), slow_pack(matrices))
