"""Problems of a dataset, and their messages."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from uadjax.errors import DataError

ERROR, WARNING = 'error', 'warning'


class Problem(NamedTuple):
  """One problem of a dataset.

  Attributes:
    severity: ERROR, which prevents training, or WARNING, which may be intended.
    kind: short name that all problems of this kind share, such as 'size mismatch'.
    path: file or folder that has the problem.
    message: sentence that names the path, the problem and the fix.
  """

  severity: str
  kind: str
  path: Path
  message: str


def error(kind: str, path: Path, message: str) -> Problem:
  """Return a problem that prevents training."""
  return Problem(ERROR, kind, path, message)


def warning(kind: str, path: Path, message: str) -> Problem:
  """Return a problem that may be intended."""
  return Problem(WARNING, kind, path, message)


def raise_errors(problems: Iterable[Problem]) -> None:
  """Raise DataError with up to ten messages if any of the problems is an error."""
  messages = [problem.message for problem in problems if problem.severity == ERROR]
  if messages:
    count = f'{len(messages)} problems:\n  ' if len(messages) > 1 else ''
    raise DataError(f'{count}{join_messages(messages)}')


def join_messages(messages: Sequence[str], limit: int = 10) -> str:
  """Join the first messages, one per line, and append the number of those above the limit."""
  remainder = [f'and {len(messages) - limit} more'] if len(messages) > limit else []
  return '\n  '.join([*messages[:limit], *remainder])
