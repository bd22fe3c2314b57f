"""Memory of this process: behavior of the C allocator, and peak usage; memory of the machine."""

from collections.abc import Callable
import ctypes
import mmap
import os
import sys

from uadjax.system import threads

try:
  import resource
except ImportError:  # Windows lacks it.
  resource = None

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1  # From glibc's malloc.h.


def retain_freed_pages() -> None:
  """Make glibc keep freed memory instead of returning it to the system after every step.

  XLA on a CPU allocates its working memory anew for each call. By default glibc maps and unmaps
  every large block, so that each training step pays for a page fault per 4 KiB. The cost depends
  on the machine and may be zero (experiments/README.md). Threads share one arena per core, because
  memory that is freed in one arena is of no use in another. Does nothing if the C library is not
  glibc.
  """
  if mallopt := _c_function('mallopt'):
    mallopt(_ARENA_MAX, threads.num_cores())
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


def release_free_memory() -> None:
  """Return free memory to the system, between phases that take gigabytes each.

  After `retain_freed_pages` the C library may keep freed memory that is too fragmented for another
  large array. Does nothing if the C library is not glibc.
  """
  if malloc_trim := _c_function('malloc_trim'):
    malloc_trim(0)


def allocate_pages(num_bytes: int) -> mmap.mmap:
  """Return zeroed memory with pages of its own, as a buffer for NumPy arrays.

  Unlike that of the C library, it is aligned, so that JAX takes arrays at multiples of 64 bytes
  without a copy, and it is returned to the system with the last array.
  """
  return mmap.mmap(-1, max(num_bytes, 1), access=mmap.ACCESS_COPY)


def peak_mb() -> int | None:
  """Return the peak resident size of this process, in MiB; None on Windows."""
  if resource is None:
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak // (1 << 20 if sys.platform == 'darwin' else 1 << 10)


def total_bytes() -> int | None:
  """Return the size of the machine's memory; None where the system does not report it."""
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  except (AttributeError, ValueError):  # Windows has no sysconf.
    return None


def _c_function(name: str) -> Callable[..., int] | None:
  return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith('linux') else None
