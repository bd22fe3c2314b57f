"""Device meshes and placement of arrays; the only module that uses Mesh and NamedSharding.

Meshes have one axis, `data`. The rows of a batch are sharded along it, and so are the leaves of the
fitted state whose `PartitionSpec` in the detector's `ShardingSpecs` says so.
"""

from collections.abc import Sequence
import contextlib
import math
import os
from typing import Any, TypeAlias, TypeVar

import jax
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from uadjax.errors import ConfigError, MissingDevice, refuse, Setting
from uadjax.numerics.collectives import Shards, SINGLE_SHARD
from uadjax.system import threads
from uadjax.types import PyTree

Mesh = jax.sharding.Mesh
Device: TypeAlias = Any  # One of jax.devices(), whose class JAX does not export as a type.
Tree = TypeVar('Tree')

_DEVICE_COUNT_FLAG = 'xla_force_host_platform_device_count'
_ROWS_PER_CORE = 2
_PLATFORMS = {'auto': None, 'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}  # As JAX names them.


def select_devices(name: str) -> list[Device]:
  """Return the JAX devices selected by `auto`, `cpu`, `gpu`, `gpu:0,1` or `tpu`.

  Raises:
    ConfigError: `name` is malformed, or an index is out of range or repeated.
    MissingDevice: JAX finds no such device.
  """
  platform, _, numbers = str(name).partition(':')  # Users may pass a number.
  if platform not in _PLATFORMS:
    raise ConfigError(f'Unknown device {name!r}; choose auto, cpu, gpu, gpu:0,1 or tpu.')
  try:
    available = jax.devices(_PLATFORMS[platform])
  except RuntimeError:
    platforms = (*sorted({d.platform for d in jax.devices()}),)
    message = f'JAX finds no {platform} for device={name!r}; it finds {platforms}.'
    install = ", or install JAX for that device, such as pip install 'jax[cuda13]' for NVIDIA."
    hint = 'Use ', Setting('device', 'auto'), install
    raise MissingDevice(message, key='device', value=name, allowed=platforms, hint=hint) from None
  if not numbers:
    return available
  devices = {str(index): device for index, device in enumerate(available)}
  indices = [number.strip() for number in numbers.split(',')]
  if len(set(indices) & devices.keys()) < len(indices):
    allowed = f'different devices from 0 to {len(available) - 1}, such as {platform}:0'
    raise ConfigError(f'device={name!r} must name {allowed}.')
  return [devices[index] for index in indices]


def local_devices(devices: Sequence[Device]) -> list[Device]:
  """Return the devices that belong to this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def make_mesh(device: str, axis_size: int, batch_size: int) -> Mesh:
  """Return a mesh of at most `axis_size` devices that divides a batch evenly.

  Devices that would need a padded batch stay idle, because padding would change the BatchNorm
  statistics of STFPM.

  Args:
    device: name of the devices, as for `select_devices`.
    axis_size: number of devices (the setting mesh.data); -1 for all.
    batch_size: number of images in a batch, over all processes.

  Raises:
    ConfigError: there are fewer devices, or processes cannot get equal shares of a batch.
  """
  available = select_devices(device)
  num_devices = len(available) if axis_size == -1 else axis_size
  if not 0 < num_devices <= len(available):
    allowed = f'1 to {len(available)}, or -1 for all devices'
    message = f'A mesh of {axis_size} devices is out of range: {device!r} allows {allowed}.'
    refuse('mesh.data', axis_size, message, 'Use ', Setting('mesh.data', -1), '.', allowed=allowed)
  num_processes = jax.process_count()
  if num_devices < num_processes:
    message = f'{num_processes} processes need a device each, but the mesh has {num_devices}.'
    hint = 'Use ', Setting('mesh.data', -1), ' for all devices, or start fewer processes.'
    refuse('mesh.data', axis_size, message, *hint, allowed=f'at least {num_processes}, or -1')
  if batch_size % num_processes:
    message = f'{num_processes} processes cannot share batches of {batch_size} images evenly.'
    allowed = f'a multiple of {num_processes}'
    hint = 'Set ', Setting('fit.batch_size'), f' to {allowed}.'
    refuse('fit.batch_size', batch_size, message, *hint, allowed=allowed)
  devices_per_process = max(
    n for n in range(1, num_devices // num_processes + 1) if batch_size % (n * num_processes) == 0
  )
  by_process = [[d for d in available if d.process_index == i] for i in range(num_processes)]
  return mesh_of([d for local in by_process for d in local[:devices_per_process]])


def mesh_of(devices: Sequence[Device]) -> Mesh:
  """Return a mesh with these devices along the axis `data`."""
  return Mesh(np.array(devices), ('data',))


def use_cores_as_devices() -> None:
  """Make JAX treat every CPU core as a device, unless the environment sets a device count.

  Has no effect after JAX's first computation. XLA leaves most of one core idle when it runs a
  convolution on two; with one device per core, two cores take two thirds of the time
  (experiments/README.md).
  """
  xla_flags = os.environ.get('XLA_FLAGS', '')
  is_configured = 'JAX_NUM_CPU_DEVICES' in os.environ or _DEVICE_COUNT_FLAG in xla_flags
  num_devices: Any = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
  if not is_configured and num_devices == -1:
    with contextlib.suppress(RuntimeError):  # JAX is initialized and keeps its devices.
      jax.config.update('jax_num_cpu_devices', threads.num_cores())


def shards(mesh: Mesh) -> Shards:
  """Return the `Shards` of a mesh: one per device."""
  return Shards(mesh) if mesh.size > 1 else SINGLE_SHARD


def micro_batch_size(mesh: Mesh, batch_size: int) -> int:
  """Return the number of images per feature extraction step, a multiple of the mesh size.

  On a CPU it is small, so that activations stay in the caches (experiments/README.md). On other
  devices it covers the whole batch.
  """
  rows_per_device = math.ceil(batch_size / mesh.size)
  is_cpu = mesh.devices.ravel()[0].platform == 'cpu'
  return mesh.size * (min(rows_per_device, _ROWS_PER_CORE) if is_cpu else rows_per_device)


def state_mesh(mesh: Mesh, shard_state: str) -> Mesh:
  """Return the mesh over which the fitted state is sharded: `mesh` or its first device.

  Args:
    mesh: the mesh of the run.
    shard_state: 'always', 'never', or 'auto' for always except on the CPU of a single process,
      whose devices share one memory.
  """
  shares_memory = mesh.devices.ravel()[0].platform == 'cpu' and jax.process_count() == 1
  is_unsharded = shard_state == 'never' or (shard_state == 'auto' and shares_memory)
  return single_device_mesh(mesh) if is_unsharded else mesh


def single_device_mesh(mesh: Mesh) -> Mesh:
  """Return a mesh that has only the first device of `mesh`."""
  return Mesh(mesh.devices.ravel()[:1], mesh.axis_names)


def replicate(mesh: Mesh, tree: Tree, copy: bool = False) -> Tree:
  """Replicate every leaf on every device of the mesh.

  Args:
    mesh: the devices.
    tree: the arrays.
    copy: whether to copy leaves that already lie on the devices, so that the result may be donated.
      Without copies, all CPU devices of a process share the memory of a leaf.
  """
  if copy:
    tree = _copy_tree(tree)
  elif mesh.devices.flat[0].platform == 'cpu' and jax.process_count() == 1:
    # JAX takes aligned NumPy arrays without a copy, and views of its own arrays are aligned.
    tree = jax.tree.map(np.asarray, tree)
  return put_on_mesh(mesh, tree, P())


def abstract(mesh: Mesh, tree: PyTree, spec: P) -> PyTree:
  """Return the shapes of arrays that `put_on_mesh` would place by one spec, for compilation."""
  sharding = NamedSharding(mesh, spec)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


@jax.jit
def _copy_tree(tree: PyTree) -> PyTree:
  return jax.tree.map(jnp.copy, tree)  # Copying under jit compiles once instead of per shape.


def put_on_mesh(mesh: Mesh, tree: Tree, specs: PyTree) -> Tree:
  """Place arrays on the mesh.

  Args:
    mesh: the devices.
    tree: the arrays; with several processes, each process holds all of them.
    specs: `PartitionSpec`s of leaves or whole subtrees of `tree`.
  """
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  return jax.tree.map(_put_array, tree, jax.tree.broadcast(shardings, tree))


def _put_array(x: Any, sharding: NamedSharding) -> jax.Array:
  """Place an array that every process holds in full; each process copies only its own shards."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_put_array(jax.random.key_data(x), sharding))
  array = np.asarray(x)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(mesh: Mesh, tree: PyTree) -> PyTree:
  """Return the tree as NumPy arrays on the host, gathered from the devices of all processes."""
  if jax.process_count() > 1:
    tree = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
  return jax.device_get(tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Return the sharding of a batch: rows distributed over the devices of the mesh."""
  return NamedSharding(mesh, P('data') if mesh.size > 1 else P())


def shard_batch(mesh: Mesh, batch: Tree) -> Tree:
  """Shard the rows of a batch over the mesh; each process passes the rows of its own devices."""
  sharding = NamedSharding(mesh, P('data'))
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)

  def put_local_rows(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put_local_rows, batch)
