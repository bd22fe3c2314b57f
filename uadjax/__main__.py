"""Entry point of `python -m uadjax`, which runs the `uadjax` command."""

import sys

from uadjax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
