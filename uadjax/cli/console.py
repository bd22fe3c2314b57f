"""Console output of the commands: colored text on a terminal, JSON lines for programs."""

import sys

from rich import console, table, text

from uadjax.system import files, logging, progress

# Signs duplicate the colors, which not every reader sees and not every terminal shows.
SIGNS = {'OK': ('✓', 'green'), 'review': ('?', 'yellow'), 'NG': ('✗', 'bold red')}
_STDOUT = console.Console(highlight=False)


def print_line(content: str | text.Text | table.Table) -> None:
  """Print text or a table to stdout; lines are not wrapped, so that paths can be copied."""
  if sys.stdout and sys.stdout.isatty() and progress.is_interactive():
    # The console of the progress bar prints above the bar.
    logging.CONSOLE.print(content, soft_wrap=True, highlight=False, markup=False)
    return
  # On a broken pipe Rich would exit with its own status; `print` raises BrokenPipeError instead.
  with _STDOUT.capture() as capture:
    _STDOUT.print(content, soft_wrap=True, markup=False)
  print(capture.get(), end='', flush=True)


def print_json(value: object) -> None:
  """Print a value as one line of ASCII JSON, which no locale or file name can break."""
  # Newlines occur only between items: JSON escapes those inside strings.
  print(files.to_json(value, 0, ensure_ascii=True).replace('\n', ''), flush=True)
