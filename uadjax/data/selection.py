"""Selection of a few images that represent all of them."""

from collections.abc import Iterable, Sequence
import itertools
from typing import TypeVar

from uadjax.data.records import Record

Item = TypeVar('Item')


def interleave(groups: Iterable[Sequence[Item]]) -> list[Item]:
  """Return the first item of each group, then the second of each, and so on."""
  rounds = itertools.zip_longest(*groups)
  return [item for items in rounds for item in items if item is not None]


def order_evenly(items: Sequence[Item]) -> list[Item]:
  """Reorder items so that every prefix is spread evenly over all of them (van der Corput)."""
  num_bits = max(len(items) - 1, 1).bit_length()
  return [items[i] for i in sorted(range(len(items)), key=lambda i: f'{i:0{num_bits}b}'[::-1])]


def spread_over_defects(records: Iterable[Record], num_records: int) -> list[Record]:
  """Choose about equally many records of each defect, evenly spread over those of the defect."""
  by_defect: dict[str, list[Record]] = {}
  for record in records:
    by_defect.setdefault(record.defect, []).append(record)
  return interleave([order_evenly(group) for group in by_defect.values()])[:num_records]
