"""One file over HTTP: resumed where it broke off, checked before it gets its name."""

import hashlib
import http.client
from pathlib import Path
import sys
import urllib.error
import urllib.request

from rich import console, progress

from uadjax.errors import WeightsError

_CHUNK = 1 << 20
_TIMEOUT_S = 10.0  # Of silence, not of the whole file.


def fetch(url: str, target: Path, digest: str) -> None:
  """Download a file whose SHA-256 begins with `digest`; what has arrived so far is in `.part`.

  Raises:
    WeightsError: where it cannot be had, or is not what it should be.
  """
  part = target.with_name(target.name + '.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _continue(url, part)
    verify(part, digest, url)
    part.replace(target)
  except (OSError, http.client.HTTPException) as error:  # HTTP errors and timeouts are OSErrors.
    raise WeightsError(f'Could not download {url}: {error}.') from error


def verify(path: Path, digest: str, source: str) -> None:
  """Remove a file, and say so, unless its SHA-256 begins with `digest`."""
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if not found.startswith(digest):
    path.unlink()
    raise WeightsError(
      f'{source} is damaged: its SHA-256 should begin with {digest} and is {found}. '
      f'{path} was removed.'
    )


def _continue(url: str, part: Path) -> None:
  """Append what is missing, or start again where the server cannot continue."""
  have = part.stat().st_size if part.exists() else 0
  headers = {'Range': f'bytes={have}-'} if have else {}
  try:
    reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
  except urllib.error.HTTPError as error:
    error.close()
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    return  # All of it is here, or more than all: the checksum will tell.
  with reply:
    begins = reply.headers.get('Content-Range', '').startswith(f'bytes {have}-')
    resumed = reply.status == http.HTTPStatus.PARTIAL_CONTENT and begins
    have = have if resumed else 0
    length = reply.headers.get('Content-Length')
    total = have + int(length) if length else None
    with part.open('ab' if resumed else 'wb') as file:
      have = _copy(reply, file, part.stem, have, total)
  if total is not None and have < total:
    raise OSError(f'broke off after {have} of {total} bytes; the next run continues from there')


def _copy(reply, file, title: str, have: int, total: int | None) -> int:
  columns = (
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
  )
  screen = console.Console(file=sys.stderr)
  with progress.Progress(*columns, console=screen, disable=not screen.is_terminal) as bar:
    task = bar.add_task(title, completed=have, total=total)
    while chunk := reply.read(_CHUNK):
      file.write(chunk)
      have += len(chunk)
      bar.update(task, completed=have)
  return have
