"""Numbers and commands as text."""

import math


def format_percent(share: float, digits: int = 1) -> str:
  """Format a share as a percentage that differs from 0 % and 100 % in this many digits."""
  distance = 100 * min(share, 1 - share)
  decimals = max(0, digits - 1 - math.floor(math.log10(distance) + 1e-9)) if distance > 0 else 0
  # Halves are rounded up, as in the report's script.
  number = f'{100 * share + 10.0 ** (-9 - decimals):.{decimals}f}'
  return f'{number.rstrip("0").rstrip(".") if decimals else number} %'


def install_command(extra: str) -> str:
  """Return the command that installs an extra of uadjax, which no package index has."""
  return f"pip install 'SOURCE[{extra}]', where SOURCE is the clone or the wheel of uadjax"
