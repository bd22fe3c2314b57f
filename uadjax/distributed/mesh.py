"""Placement: the only room that knows meshes and NamedSharding.

One axis, `data`: rows of a batch are split over it, and of what is learned what `Split` names.
"""

from collections.abc import Callable, Sequence
import contextlib
import functools
import math
import os
from typing import Any, TypeVar

import jax
from jax import numpy as jnp
import numpy as np

from uadjax.errors import ConfigError, MissingDevice, Setting
from uadjax.numerics.collectives import Shards, SINGLE_SHARD
from uadjax.system import threads

Mesh = jax.sharding.Mesh
Tree = TypeVar('Tree')

_DEVICE_COUNT_FLAG = 'xla_force_host_platform_device_count'
_MAX_REPLICATED_BYTES = 2 << 30  # Bytes.
_ROWS_PER_CORE = 2
_SHARD_STATE_CHOICES = 'auto', 'always', 'never'
_PLATFORMS = {'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}


def select_devices(name: str) -> list[Any]:
  """The devices that `auto`, `cpu`, `gpu`, `gpu:0,1` or `tpu` names."""
  platform, _, numbers = name.partition(':')
  if platform != 'auto' and platform not in _PLATFORMS:
    raise ConfigError(f'Unknown device {name!r}; choose auto, cpu, gpu, gpu:0,1 or tpu.')
  try:
    available = jax.devices() if platform == 'auto' else jax.devices(_PLATFORMS[platform])
  except RuntimeError:
    platforms = sorted({d.platform for d in jax.devices()})
    raise MissingDevice(
      f'No {platform} for device={name!r}: JAX finds {platforms} here.',
      key='device',
      value=name,
      allowed=tuple(platforms),
      hint=(
        'Use ',
        Setting('device', 'auto'),
        ", or install JAX for it, such as pip install 'jax[cuda13]' for NVIDIA.",
      ),
    ) from None
  if not numbers:
    return available
  try:
    indices = [range(len(available))[int(number)] for number in numbers.split(',')]
    if min(map(int, numbers.split(','))) < 0 or len(set(indices)) < len(indices):
      raise IndexError
    return [available[index] for index in indices]
  except (ValueError, IndexError):
    raise ConfigError(
      f'device={name!r} must name different devices of 0 to {len(available) - 1}, such as {platform}:0.'
    ) from None


def local_devices(devices: Sequence[Any]) -> list[Any]:
  """Those of this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def make_mesh(device: str, axis_size: int, batch_size: int) -> Mesh:
  """A mesh over `data` devices, -1 for all, of which a batch of `rows` divides over evenly.

  A batch that STFPM's BatchNorm sees cannot be padded, so devices stay idle rather than that.
  """
  available = select_devices(device)
  num_devices = len(available) if axis_size == -1 else axis_size
  if not 0 < num_devices <= len(available):
    raise ConfigError(
      f'mesh.data={axis_size}, but {device!r} has 1 to {len(available)} devices; -1 takes all.'
    )
  num_processes = jax.process_count()
  if batch_size % num_processes or num_devices < num_processes:
    raise ConfigError(
      f'Batches of {batch_size} images on {num_devices} devices cannot be shared evenly by {num_processes} processes; '
      f'use a fit.batch_size that is a multiple of {num_processes}, and mesh.data=-1.'
    )
  devices_per_process = max(
    n for n in range(1, num_devices // num_processes + 1) if batch_size % (n * num_processes) == 0
  )
  devices_by_process = [
    [d for d in available if d.process_index == process_index]
    for process_index in range(num_processes)
  ]
  return mesh_of([d for local in devices_by_process for d in local[:devices_per_process]])


def mesh_of(devices: Sequence[Any]) -> Mesh:
  """A mesh of these devices."""
  return Mesh(np.array(devices), ('data',))


def use_cores_as_devices() -> None:
  """Let JAX see every core of the CPU as a device, unless told how many; before it computes.

  XLA leaves most of a core idle when it runs a convolution on two; with a device for each, two
  cores take two thirds of the time (experiments/README.md).
  """
  is_configured = 'JAX_NUM_CPU_DEVICES' in os.environ or _DEVICE_COUNT_FLAG in os.environ.get(
    'XLA_FLAGS', ''
  )
  num_devices: Any = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
  if not is_configured and num_devices == -1:
    with contextlib.suppress(RuntimeError):  # It has computed before, and keeps what it has.
      jax.config.update('jax_num_cpu_devices', threads.num_cores())


@functools.cache  # What is compiled for it is found again by it.
def shards(mesh: Mesh) -> Shards:
  """As many parts as the mesh has devices."""
  if mesh.size == 1:
    return SINGLE_SHARD

  def shard_map(f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    def partition_spec(is_sharded: bool) -> jax.sharding.PartitionSpec:
      return jax.sharding.PartitionSpec(*mesh.axis_names if is_sharded else ())

    (axis_name,) = mesh.axis_names
    return jax.shard_map(
      functools.partial(f, axis_name=axis_name),
      mesh=mesh,
      in_specs=jax.tree.map(partition_spec, in_specs),
      out_specs=jax.tree.map(partition_spec, out_specs),
      check_vma=False,  # It cannot tell that what all have gathered is the same on all.
    )

  return Shards(mesh.size, shard_map)


def micro_batch_size(mesh: Mesh, batch_size: int) -> int:
  """How many images of a batch to compute features of at once: a multiple of the devices.

  On a CPU few, whose activations stay in its caches (experiments/README.md); else all of them.
  """
  rows_per_device = math.ceil(batch_size / mesh.size)
  is_cpu = mesh.devices.ravel()[0].platform == 'cpu'
  return mesh.size * (min(rows_per_device, _ROWS_PER_CORE) if is_cpu else rows_per_device)


def state_mesh(mesh: Mesh, shard_state: str) -> Mesh:
  """The devices over which what is learned is split: 'auto', 'always' or 'never'.

  The devices of one CPU share their memory: there it stays in one piece, unless told otherwise.

  Raises:
    ConfigError: `split` is none of these.
  """
  if shard_state not in _SHARD_STATE_CHOICES:
    raise ConfigError(
      f'mesh.shard_state must be one of {_SHARD_STATE_CHOICES}, got {shard_state!r}.'
    )
  shares_memory = mesh.devices.ravel()[0].platform == 'cpu' and jax.process_count() == 1
  is_unsharded = shard_state == 'never' or (shard_state == 'auto' and shares_memory)
  return single_device_mesh(mesh) if is_unsharded else mesh


def single_device_mesh(mesh: Mesh) -> Mesh:
  """A mesh of its first device alone."""
  return Mesh(mesh.devices.ravel()[:1], mesh.axis_names)


def mesh_that_fits(mesh: Mesh, tree: Any) -> Mesh:
  """The mesh; of CPU devices, which share their memory, only one where copies would fill it."""
  return (
    mesh
    if len(devices_that_fit(mesh.devices.ravel().tolist(), tree)) > 1
    else single_device_mesh(mesh)
  )


def devices_that_fit(devices: Sequence[Any], tree: Any) -> Sequence[Any]:
  """The devices; of those of a CPU only the first where copies of the tree would fill memory."""
  num_bytes = len(devices) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  return (
    devices[:1] if devices[0].platform == 'cpu' and num_bytes > _MAX_REPLICATED_BYTES else devices
  )


def replicate(mesh: Mesh, tree: Tree, copy: bool = False) -> Tree:
  """Put every leaf on every device; `own` copies also what is there, so that it may be donated."""
  return put_on_mesh(mesh, _copy_tree(tree) if copy else tree, False)


@jax.jit
def _copy_tree(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)  # One compilation, where single copies would be many.


def put_on_mesh(mesh: Mesh, tree: Tree, is_sharded: Any) -> Tree:
  """Split what is to be, along the first axis, and put the rest on every device.

  Args:
    mesh: whose devices there are parts for.
    tree: of arrays.
    split: True or False, for the leaves of the tree or for whole subtrees.
  """

  def tree_shardings(is_sharded: bool, subtree: Any) -> Any:
    return jax.tree.map(
      lambda _: _named_sharding(mesh, *mesh.axis_names if is_sharded else ()), subtree
    )

  shardings = jax.tree.map(tree_shardings, is_sharded, tree)
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  return jax.tree.map(_put_array, tree, shardings)


def _put_array(x: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
  """Of what every process has whole, its own part."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_put_array(jax.random.key_data(x), sharding))
  array = np.asarray(x)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(mesh: Mesh, tree: Any) -> Any:
  """On the host, as NumPy arrays, wherever it was computed."""
  if jax.process_count() > 1:
    tree = jax.jit(lambda tree: tree, out_shardings=_named_sharding(mesh))(tree)
  return jax.device_get(tree)


def batch_sharding(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Where the rows of a batch are."""
  return _named_sharding(mesh, *mesh.axis_names if mesh.size > 1 else ())


def shard_batch(mesh: Mesh, batch: Tree) -> Tree:
  """Put each device's share of the rows on it; a process gives those of its own devices."""
  sharding = _named_sharding(mesh, 'data')
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)

  def put_local_rows(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put_local_rows, batch)


def _named_sharding(mesh: Mesh, *axes: Any) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
