"""The `uadjax` command: its options, one module per command, and its console output.

This package translates command lines to library calls, and results to console output. Only the
entry points import it.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Run a command and return its exit status; see `commands.main`."""
  from uadjax.cli import commands

  return commands.main(argv)
