"""Progress: steps are announced, lines keep their pace, and bars appear where they can be shown."""

import collections
import io
import logging as levels
import time

from IPython import display
import nbformat
import pytest

from uadjax.system import logging, progress


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until its time is changed."""
  now = [0.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


@pytest.fixture
def lines(monkeypatch):
  """The messages that the console shows."""
  stream = io.StringIO()
  handler = levels.StreamHandler(stream)
  monkeypatch.setattr(logging, '_console_handler', lambda: handler)
  with logging.logging_to():
    yield lambda: stream.getvalue().splitlines()


@pytest.mark.parametrize('total', [7, 40, 1000, None])
@pytest.mark.parametrize('seconds', [1 / 64, 7 / 8, 4.0, 30.0])
def test_a_line_appears_every_10_s_or_10_percent_whichever_is_rarer(total, seconds, clock, lines):
  for _ in progress.show_progress(range(total or 100), total, 'Reading'):
    clock[0] += seconds
  done = [int(line.removeprefix('Reading: ').split()[0]) for line in lines()]
  gaps = [after - before for before, after in zip([0, *done], done, strict=False)]
  assert all(gap * seconds >= 10 and gap >= (total or 0) / 10 for gap in gaps)
  # No gap could have been an item shorter.
  assert all((gap - 1) * seconds < 10 or gap - 1 < (total or 0) / 10 for gap in gaps)
  rest = (total or 100) - (done[-1] if done else 0)
  assert rest * seconds <= max(10, (total or 0) / 10 * seconds) + seconds


def test_steps_are_announced_with_those_that_follow(lines):
  steps = [progress.Step(title) for title in ('check', 'fit', 'evaluation')]
  with progress.planned_steps(steps):
    progress.announce('check')
    steps.pop()  # There are no test images.
    progress.announce('fit')
  progress.announce('other')
  assert lines() == [
    'Next step: check; then fit, evaluation.', 'Next step: fit.', 'Next step: other.'
  ]  # fmt: skip


def test_the_remaining_time_includes_steps_of_known_time_and_names_the_others():
  steps = [progress.Step('calibration'), progress.Step('evaluation', 30), progress.Step('export')]
  with progress.planned_steps(steps):
    assert progress.remaining_time(5.0) == 'ETA 0:00:05'  # No step has begun.
    progress.announce('calibration')
    assert progress.remaining_time(5.0) == 'ETA 0:00:05, then evaluation, export'
    assert progress.remaining_time(5.0, 2.0) == 'ETA 0:01:05 with evaluation, then export'
  assert progress.remaining_time(5.0, 2.0) == 'ETA 0:00:05'


def test_a_line_has_the_time_of_images_that_later_steps_score(clock, lines):
  with progress.planned_steps([progress.Step('calibration'), progress.Step('evaluation', 30)]):
    progress.announce('calibration')
    for _ in progress.show_progress(range(4), 4, 'Calibrating', True):
      clock[0] += 10
  assert lines()[1] == 'Calibrating: 1 of 4, ETA 0:05:30 with evaluation'


def test_notebooks_show_bars(clock, monkeypatch):
  updates = []
  monkeypatch.setattr(logging.CONSOLE, 'is_jupyter', True)
  monkeypatch.setattr(display.DisplayHandle, 'display', lambda handle, content: None)
  monkeypatch.setattr(
    display.DisplayHandle, 'update', lambda handle, content: updates.append(content.data)
  )
  for _ in progress.show_progress('abcd', 4, '<i>'):
    clock[0] += 1
  with progress.progress_bar(8, 4, 'Fitting') as move:
    clock[0] += 4
    move(6, None, {})
  assert updates[0] == '&lt;i&gt; <progress value="1" max="4"></progress> 1/4, ETA 0:00:03'
  assert updates[4] == ''  # The bar disappears at its end.
  assert updates[5:] == ['Fitting <progress value="6" max="8"></progress> 6/8, ETA 0:00:04', '']
  with logging.console_level(verbose=False, quiet=True):
    assert [*progress.show_progress('abcd', 4, 'Reading')] == [*'abcd']
  assert len(updates) == 7


def test_a_notebook_updates_one_output_per_bar():
  nbclient = pytest.importorskip('nbclient', reason='needs the extra test')
  code = """
from uadjax.system import progress
progress._NOTEBOOK_INTERVAL_S = 0
for _ in progress.show_progress(range(300), 300, 'Waiting'): pass
"""
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
  counts = collections.Counter()

  class Client(nbclient.NotebookClient):
    def process_message(self, message, cell, cell_index):
      counts[message['msg_type']] += 1
      return super().process_message(message, cell, cell_index)

  Client(notebook, kernel_name='python3').execute()
  (output,) = notebook.cells[0].outputs
  assert output['data']['text/html'] == ''  # The bar disappears at its end.
  assert counts['display_data'] == 1
  assert counts['update_display_data'] == 301
  assert counts['stream'] == 0


@pytest.mark.parametrize(('verbose', 'quiet', 'num_shown'), [(0, 0, 2), (1, 0, 3), (0, 1, 1)])
def test_the_console_shows_details_on_request_and_the_file_has_all(
  verbose, quiet, num_shown, tmp_path, capfd
):
  with logging.console_level(bool(verbose), bool(quiet)), logging.logging_to(tmp_path / 'log'):
    for level in (levels.DEBUG, levels.INFO, levels.WARNING):
      logging.LOG.log(level, 'a message')
  assert capfd.readouterr().err.count('a message') == num_shown
  assert (tmp_path / 'log').read_text().count('a message') == 3
  assert not logging.is_quiet()
