"""Numbers of several runs as cells of a table: a center, and what the others lie between."""

from collections.abc import Callable, Iterable, Sequence
import statistics
from typing import Any, NamedTuple


class Spread(NamedTuple):
  """A mean or median, and what it lies between."""

  center: float
  low: float
  high: float


def spread(
  values: Iterable[float | int | None],
  center: Callable[[Iterable[float]], float] = statistics.median,
) -> Spread | None:
  """The center and range of those that are numbers; None if none is."""
  numbers = [value for value in values if value is not None]
  return Spread(center(numbers), min(numbers), max(numbers)) if numbers else None


def cell(spread: Spread | None, digits: int) -> str:
  """The center, and the range unless it is one number."""
  if spread is None:
    return '—'
  center, low, high = (f'{value:.{digits}f}' for value in spread)
  return center if low == high else f'{center} ({low}-{high})'


def markdown(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table."""
  lines = [titles, ['---'] * len(titles), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)
