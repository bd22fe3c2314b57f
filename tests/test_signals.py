"""Whoever asks a program to stop is heard, wherever it is."""

import gc
import os
import signal
import sys
import time

import pytest

from uadjax.errors import Interrupted
from uadjax.system import signals


class Ends:
  """Is asked to stop while it ends, from where Python lets no exception out."""

  def __init__(self, number):
    self.number = number
    self.itself = self  # So that it ends with a collection.

  def __del__(self):
    os.kill(os.getpid(), self.number)
    for _ in range(1000):  # Here the handler is run.
      pass


@pytest.fixture(autouse=True)
def little_to_collect():
  """Set garbage of other tests aside: to look through all of it takes seconds."""
  gc.collect()
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_an_object_ends_is_heard(number):
  hook = sys.unraisablehook

  def stopped():
    with signals.raise_on_signal():
      Ends(number)
      gc.collect()
      time.sleep(10)

  began = time.monotonic()
  with pytest.raises(Interrupted, match=number.name) as error:
    stopped()
  assert error.value.signal_number == number
  assert time.monotonic() - began < 9  # While it sleeps.
  assert sys.unraisablehook is hook


def test_other_unraisable_exceptions_reach_the_usual_hook(monkeypatch):
  reported = []
  monkeypatch.setattr(sys, 'unraisablehook', reported.append)

  class Fails:
    def __del__(self):
      raise ValueError('as ever')

  with signals.raise_on_signal():
    Fails()
    gc.collect()
  assert [str(unraisable.exc_value) for unraisable in reported] == ['as ever']
