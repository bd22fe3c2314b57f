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
from uadjax.numerics.collectives import SINGLE_SHARD, Shards
from uadjax.system import threads

Mesh = jax.sharding.Mesh
Tree = TypeVar('Tree')

_COUNT = 'xla_force_host_platform_device_count'
_COPIES = 2 << 30  # Bytes.
_ROWS_OF_A_CORE = 2
_SPLIT = 'auto', 'always', 'never'
_PLATFORMS = {'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}


def devices(name: str) -> list[Any]:
  """The devices that `auto`, `cpu`, `gpu`, `gpu:0,1` or `tpu` names."""
  platform, _, numbers = name.partition(':')
  if platform != 'auto' and platform not in _PLATFORMS:
    raise ConfigError(f'Unknown device {name!r}; choose auto, cpu, gpu, gpu:0,1 or tpu.')
  try:
    found = jax.devices() if platform == 'auto' else jax.devices(_PLATFORMS[platform])
  except RuntimeError:
    here = sorted({d.platform for d in jax.devices()})
    raise MissingDevice(
      f'No {platform} for device={name!r}: JAX finds {here} here.',
      key='device',
      value=name,
      allowed=tuple(here),
      hint=(
        'Use ',
        Setting('device', 'auto'),
        ", or install JAX for it, such as pip install 'jax[cuda13]' for NVIDIA.",
      ),
    ) from None
  if not numbers:
    return found
  try:
    chosen = [range(len(found))[int(number)] for number in numbers.split(',')]
    if min(map(int, numbers.split(','))) < 0 or len(set(chosen)) < len(chosen):
      raise IndexError
    return [found[number] for number in chosen]
  except (ValueError, IndexError):
    raise ConfigError(
      f'device={name!r} must name different devices of 0 to {len(found) - 1}, such as {platform}:0.'
    ) from None


def own(devices: Sequence[Any]) -> list[Any]:
  """Those of this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def make_mesh(device: str, data: int, rows: int) -> Mesh:
  """A mesh over `data` devices, -1 for all, of which a batch of `rows` divides over evenly.

  A batch that STFPM's BatchNorm sees cannot be padded, so devices stay idle rather than that.
  """
  found = devices(device)
  asked = len(found) if data == -1 else data
  if not 0 < asked <= len(found):
    raise ConfigError(
      f'mesh.data={data}, but {device!r} has 1 to {len(found)} devices; -1 takes all.'
    )
  hosts = jax.process_count()
  if rows % hosts or asked < hosts:
    raise ConfigError(
      f'Batches of {rows} images on {asked} devices cannot be shared evenly by {hosts} processes; '
      f'use a fit.batch_size that is a multiple of {hosts}, and mesh.data=-1.'
    )
  of_each = max(n for n in range(1, asked // hosts + 1) if rows % (n * hosts) == 0)
  of_host = [[d for d in found if d.process_index == host] for host in range(hosts)]
  return of([d for own in of_host for d in own[:of_each]])


def of(devices: Sequence[Any]) -> Mesh:
  """A mesh of these devices."""
  return Mesh(np.array(devices), ('data',))


def cpu_devices_of_cores() -> None:
  """Let JAX see every core of the CPU as a device, unless told how many; before it computes.

  XLA leaves most of a core idle when it runs a convolution on two; with a device for each, two
  cores take two thirds of the time (experiments/README.md).
  """
  told = 'JAX_NUM_CPU_DEVICES' in os.environ or _COUNT in os.environ.get('XLA_FLAGS', '')
  count: Any = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
  if not told and count == -1:
    with contextlib.suppress(RuntimeError):  # It has computed before, and keeps what it has.
      jax.config.update('jax_num_cpu_devices', threads.cores())


@functools.cache  # What is compiled for it is found again by it.
def shards(mesh: Mesh) -> Shards:
  """As many parts as the mesh has devices."""
  if mesh.size == 1:
    return SINGLE_SHARD

  def over(function: Callable[..., Any], given: Any, gives: Any) -> Callable[..., Any]:
    def where(split: bool) -> jax.sharding.PartitionSpec:
      return jax.sharding.PartitionSpec(*mesh.axis_names if split else ())

    (name,) = mesh.axis_names
    return jax.shard_map(
      functools.partial(function, axis=name),
      mesh=mesh,
      in_specs=jax.tree.map(where, given),
      out_specs=jax.tree.map(where, gives),
      check_vma=False,  # It cannot tell that what all have gathered is the same on all.
    )

  return Shards(mesh.size, over)


def rows_at_once(mesh: Mesh, batch_size: int) -> int:
  """How many images of a batch to compute features of at once: a multiple of the devices.

  On a CPU few, whose activations stay in its caches (experiments/README.md); else all of them.
  """
  share = math.ceil(batch_size / mesh.size)
  cpu = mesh.devices.ravel()[0].platform == 'cpu'
  return mesh.size * (min(share, _ROWS_OF_A_CORE) if cpu else share)


def apart(mesh: Mesh, split: str) -> Mesh:
  """The devices over which what is learned is split: 'auto', 'always' or 'never'.

  The devices of one CPU share their memory: there it stays in one piece, unless told otherwise.

  Raises:
    ConfigError: `split` is none of these.
  """
  if split not in _SPLIT:
    raise ConfigError(f'mesh.split must be one of {_SPLIT}, got {split!r}.')
  one_memory = mesh.devices.ravel()[0].platform == 'cpu' and jax.process_count() == 1
  whole = split == 'never' or (split == 'auto' and one_memory)
  return first(mesh) if whole else mesh


def first(mesh: Mesh) -> Mesh:
  """A mesh of its first device alone."""
  return Mesh(mesh.devices.ravel()[:1], mesh.axis_names)


def sparing(mesh: Mesh, tree: Any) -> Mesh:
  """The mesh; of CPU devices, which share their memory, only one where copies would fill it."""
  return mesh if len(enough(mesh.devices.ravel().tolist(), tree)) > 1 else first(mesh)


def enough(devices: Sequence[Any], tree: Any) -> Sequence[Any]:
  """The devices; of those of a CPU only the first where copies of the tree would fill memory."""
  needed = len(devices) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  return devices[:1] if devices[0].platform == 'cpu' and needed > _COPIES else devices


def replicate(mesh: Mesh, tree: Tree, own: bool = False) -> Tree:
  """Put every leaf on every device; `own` copies also what is there, so that it may be donated."""
  return place(mesh, _copied(tree) if own else tree, False)


@jax.jit
def _copied(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)  # One compilation, where single copies would be many.


def place(mesh: Mesh, tree: Tree, split: Any) -> Tree:
  """Split what is to be, along the first axis, and put the rest on every device.

  Args:
    mesh: whose devices there are parts for.
    tree: of arrays.
    split: True or False, for the leaves of the tree or for whole subtrees.
  """

  def where(split: bool, part: Any) -> Any:
    return jax.tree.map(lambda _: _on(mesh, *mesh.axis_names if split else ()), part)

  places = jax.tree.map(where, split, tree)
  if jax.process_count() == 1:
    return jax.device_put(tree, places)
  return jax.tree.map(_put, tree, places)


def _put(x: Any, where: jax.sharding.NamedSharding) -> jax.Array:
  """Of what every process has whole, its own part."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, where)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_put(jax.random.key_data(x), where))
  whole = np.asarray(x)
  return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def everywhere(mesh: Mesh, tree: Any) -> Any:
  """On the host, as NumPy arrays, wherever it was computed."""
  if jax.process_count() > 1:
    tree = jax.jit(lambda tree: tree, out_shardings=_on(mesh))(tree)
  return jax.device_get(tree)


def of_rows(mesh: Mesh) -> jax.sharding.NamedSharding:
  """Where the rows of a batch are."""
  return _on(mesh, *mesh.axis_names if mesh.size > 1 else ())


def split(mesh: Mesh, batch: Tree) -> Tree:
  """Put each device's share of the rows on it; a process gives those of its own devices."""
  where = _on(mesh, 'data')
  if jax.process_count() == 1:
    return jax.device_put(batch, where)

  def own(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, where)
    return jax.make_array_from_process_local_data(where, np.asarray(x))

  return jax.tree.map(own, batch)


def _on(mesh: Mesh, *axes: Any) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
