"""The process's own memory: how it is kept, and how much there was of it."""

import ctypes
import resource
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # Of mallopt, in glibc's malloc.h.


def retain_freed_pages() -> None:
  """Let glibc keep the memory that it was given, instead of returning it after every step.

  XLA on a CPU allocates its working memory anew for each call. By default glibc maps and unmaps
  every large block, so that each training step pays for a page fault per 4 KiB. What that costs
  varies with the machine, from nothing upward (experiments/README.md). Does nothing where the C
  library is not glibc.
  """
  if not sys.platform.startswith('linux'):
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)


def release_free_memory() -> None:
  """Return free memory to the system, between phases that take gigabytes each.

  After `keep_pages` the C library may keep what is freed, and hardly ever fits another large array
  into it. Does nothing where it is not glibc.
  """
  if not sys.platform.startswith('linux'):
    return
  malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if malloc_trim is not None:
    malloc_trim(0)


def peak_mb() -> int:
  """The largest resident size that the process has had, in MB."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak // (1 << 20 if sys.platform == 'darwin' else 1 << 10)
