"""`python -m uadjax`: the same as `uadjax`."""

import sys

from uadjax import cli

if __name__ == '__main__':
  sys.exit(cli.main())
