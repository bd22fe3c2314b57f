"""The `uadjax` command: its options, one module per command, and what it prints.

Everything here turns words of a command line into calls of the library and results into text on the
console; nothing imports it but the entry points.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
  """Carry out a command; returns the exit status, see `commands.main`."""
  from uadjax.cli import commands

  return commands.main(argv)
