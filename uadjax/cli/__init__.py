"""The `uadjax` command: its options, one module per command, and its console output.

This package translates command lines to library calls, and results to console output. Only the
entry points import it.
"""

from uadjax.cli.commands import main as main
