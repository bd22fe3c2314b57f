"""Command `python -m uadjax.main --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]`."""

from collections.abc import Sequence
import sys

from uadjax.system import compilation_cache


def main(argv: Sequence[str] | None = None) -> int:
  """Run the experiment that the flags describe, and return the exit status.

  It is 0 for success, 1 for a failure, 2 for an invalid flag or setting, and 130 or 143 if Ctrl-C
  or SIGTERM stopped the run.
  """
  compilation_cache.enable()
  from uadjax.experiment import command  # Imports JAX, which must find the cache enabled.

  return command.run(sys.argv[1:] if argv is None else argv)


if __name__ == '__main__':
  sys.exit(main())
