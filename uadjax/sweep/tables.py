"""Numbers of several runs as cells of a table: a center, and what the others lie between."""

from collections.abc import Callable, Iterable, Sequence
import statistics
from typing import Any, NamedTuple


class CenterAndRange(NamedTuple):
  """A mean or median, and what it lies between."""

  center: float
  low: float
  high: float


def center_and_range(
  values: Iterable[float | int | None],
  average: Callable[[Iterable[float]], float] = statistics.median,
) -> CenterAndRange | None:
  """The center and range of those that are numbers; None if none is."""
  numbers = [value for value in values if value is not None]
  return CenterAndRange(average(numbers), min(numbers), max(numbers)) if numbers else None


def format_cell(value_range: CenterAndRange | None, digits: int) -> str:
  """The center, and the range unless it is one number."""
  if value_range is None:
    return '—'
  center, low, high = (f'{value:.{digits}f}' for value in value_range)
  return center if low == high else f'{center} ({low}-{high})'


def markdown_table(column_titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table."""
  lines = [column_titles, ['---'] * len(column_titles), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
