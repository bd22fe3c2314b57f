"""The memory of a command is that of its process and its children together, at its peak."""

import sys

import pytest
import subprocess_runs

# Allocates 50 MB, and the same again in a child that shares no memory, then frees all of it.
_SCRIPT = """
import subprocess, sys, time
block = b'x' * 50_000_000
print('one process', flush=True)
child = "block = b'x' * 50_000_000; print('both', flush=True); import time; time.sleep(0.5)"
subprocess.run([sys.executable, '-S', '-c', child])
del block
print('none', flush=True)
time.sleep(0.2)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_peak_is_that_of_all_processes_together():
  command = [sys.executable, '-S', '-c', _SCRIPT]
  completed = subprocess_runs.run_command(command, sample_memory=True)
  memory = completed.memory
  assert 95 < memory.pss_mb <= memory.rss_mb < 145
  assert memory.phase == 'both'
  assert completed.stdout.split() == ['one', 'process', 'both', 'none']
  assert subprocess_runs.run_command([*command[:-1], '1']).memory is None
