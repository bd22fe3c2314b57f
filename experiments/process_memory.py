"""Memory of a process and its descendants, sampled while they run. Linux only.

The sum of the proportional set sizes (PSS) counts each page once, however many of the processes
share it. Other processes of the machine that map the same files, such as the libraries of the same
Python environment, reduce it.
"""

import contextlib
from pathlib import Path
import time
from typing import NamedTuple

_PROC = Path('/proc')
# Reading PSS takes milliseconds per gigabyte. It is not read again until the resident size, of
# which reading is cheap, has changed by this share.
_MIN_CHANGE = 0.002


class MemoryPeak(NamedTuple):
  """Largest memory of a process and its descendants together.

  Attributes:
    pss_mb: sum of the proportional set sizes, in MiB.
    rss_mb: sum of the resident sizes at that time, in MiB. Shared pages count several times.
    seconds: time from the start of the sampler.
    phase: last line of output of the process before that time.
  """

  pss_mb: float
  rss_mb: float
  seconds: float
  phase: str


class PeakSampler:
  """Finds the largest sum of PSS over samples of a process and its descendants.

  Attributes:
    pss_kb: largest sum of PSS so far, in KiB.
    rss_kb: sum of the resident sizes at that time, in KiB.
    seconds: time from the creation of the sampler to that time.
  """

  def __init__(self, pid: int):
    """Create a sampler for a process, without a sample."""
    self.pss_kb, self.rss_kb, self.seconds = 0, 0, 0.0
    self._pid, self._start_time, self._last_rss_kb = pid, time.perf_counter(), 0

  def sample(self) -> bool:
    """Take a sample, and return whether it is the largest one so far."""
    pids, rss_kb = [], 0
    for pid, size in _resident_kb(self._pid).items():
      pids.append(pid)
      rss_kb += size
    # PSS is at most the resident size, so that a smaller resident size cannot be a new peak.
    has_changed = abs(rss_kb - self._last_rss_kb) > _MIN_CHANGE * self._last_rss_kb
    if rss_kb <= self.pss_kb or not has_changed:
      return False
    self._last_rss_kb, pss_kb = rss_kb, sum(map(_pss_kb, pids))
    if pss_kb <= self.pss_kb:
      return False
    self.pss_kb, self.rss_kb = pss_kb, rss_kb
    self.seconds = time.perf_counter() - self._start_time
    return True


def _resident_kb(root: int) -> dict[int, int]:
  """Return the resident size in KiB of a process and each of its descendants.

  A child that shares all memory of its parent, as `vfork` makes it, is omitted.
  """
  sizes, pending, distinct = {}, [root], set()
  while pending:
    pid = pending.pop()
    with contextlib.suppress(OSError):  # A process may end at any time.
      statistics = (_PROC / str(pid) / 'statm').read_text()
      if statistics not in distinct:
        distinct.add(statistics)
        sizes[pid] = 4 * int(statistics.split()[1])
      for path in (_PROC / str(pid) / 'task').glob('*/children'):
        pending += map(int, path.read_text().split())
  return sizes


def _pss_kb(pid: int) -> int:
  """Return the proportional set size of a process in KiB; 0 if it has ended."""
  with contextlib.suppress(OSError):
    for line in (_PROC / str(pid) / 'smaps_rollup').read_text().splitlines():
      if line.startswith('Pss:'):
        return int(line.split()[1])
  return 0
