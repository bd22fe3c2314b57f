"""What can be wrong with a data set, and how it is told."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from uadjax.errors import DataError

ERROR, WARNING = 'error', 'warning'
_MAX_MESSAGES = 10  # Sentences; the rest is counted.


class Problem(NamedTuple):
  """One thing that is wrong.

  Attributes:
    severity: ERROR, which nothing can be learned from, or WARNING, which is legal.
    kind: what it is, in a word or three; the same for all problems of a kind.
    path: the file or folder to look at.
    message: a sentence that names it, and the way out.
  """

  severity: str
  kind: str
  path: Path
  message: str


def error(kind: str, path: Path, message: str) -> Problem:
  """Make a problem that refuses training."""
  return Problem(ERROR, kind, path, message)


def warning(kind: str, path: Path, message: str) -> Problem:
  """Make a problem that may be meant so."""
  return Problem(WARNING, kind, path, message)


def raise_errors(problems: Iterable[Problem]) -> None:
  """Raise DataError where one of them is an error, with up to ten sentences."""
  messages = [problem.message for problem in problems if problem.severity == ERROR]
  if len(messages) == 1:
    raise DataError(messages[0])
  if messages:
    raise DataError(f'{len(messages)} things are wrong:\n  {join_messages(messages)}')


def join_messages(messages: Sequence[str]) -> str:
  """Up to ten sentences in lines of their own, and how many more there are."""
  remainder = [f'and {len(messages) - _MAX_MESSAGES} more'] if len(messages) > _MAX_MESSAGES else []
  return '\n  '.join([*messages[:_MAX_MESSAGES], *remainder])
