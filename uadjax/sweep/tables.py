"""Cells and Markdown tables for numbers of several runs: a center and a range."""

from collections.abc import Callable, Iterable, Sequence
import statistics
from typing import NamedTuple


class CenterAndRange(NamedTuple):
  """Mean or median of several numbers, with their minimum and maximum."""

  center: float
  low: float
  high: float


def center_and_range(
  values: Iterable[float | int | None],
  average: Callable[[Iterable[float]], float] = statistics.median,
) -> CenterAndRange | None:
  """Return the center and range of the values that are not None, or None if all are."""
  numbers = [value for value in values if value is not None]
  return CenterAndRange(average(numbers), min(numbers), max(numbers)) if numbers else None


def format_cell(value_range: CenterAndRange | None, digits: int, unit: float = 1.0) -> str:
  """Return 'center (low-high)' with numbers divided by `unit`, or a dash for None.

  If low and high look equal, return the center alone.
  """
  if value_range is None:
    return '—'
  center, low, high = (f'{value / unit:.{digits}f}' for value in value_range)
  return center if low == high else f'{center} ({low}-{high})'


def markdown_table(column_titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Return a Markdown table."""
  lines = [column_titles, ['---'] * len(column_titles), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
