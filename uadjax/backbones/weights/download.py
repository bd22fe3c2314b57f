"""Download of a file over HTTP that resumes after an interruption and verifies the checksum."""

import hashlib
import http.client
from pathlib import Path
import sys
import urllib.error
import urllib.request

from rich import console, progress

from uadjax.errors import WeightsError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 10.0  # Limits the time without data, not the whole download.


def fetch(url: str, target: Path, digest: str) -> None:
  """Download a file whose SHA-256 begins with `digest`.

  An incomplete download is kept next to `target`, with the suffix `.part`, and resumed.

  Raises:
    WeightsError: the download failed, or the checksum differs.
  """
  partial_path = target.with_name(target.name + '.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _resume_download(url, partial_path)
    verify(partial_path, digest, url)
    partial_path.replace(target)
  except (OSError, http.client.HTTPException) as error:  # HTTPError and timeouts are OSErrors.
    raise WeightsError(f'Could not download {url}: {error}.') from error


def verify(path: Path, digest: str, source: str) -> None:
  """Delete a file and raise WeightsError unless its SHA-256 begins with `digest`."""
  with path.open('rb') as file:
    actual_digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if not actual_digest.startswith(digest):
    path.unlink()
    raise WeightsError(
      f'{source} is damaged: its SHA-256 must begin with {digest}, but is {actual_digest}. '
      f'{path} was removed.'
    )


def _resume_download(url: str, partial_path: Path) -> None:
  """Append the missing bytes, or start again if the server does not support ranges."""
  num_bytes = partial_path.stat().st_size if partial_path.exists() else 0
  headers = {'Range': f'bytes={num_bytes}-'} if num_bytes else {}
  try:
    response = urllib.request.urlopen(
      urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
    )
  except urllib.error.HTTPError as error:
    error.close()
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    return  # The file is complete or too long, which the checksum shows.
  with response:
    range_matches = response.headers.get('Content-Range', '').startswith(f'bytes {num_bytes}-')
    is_resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and range_matches
    num_bytes = num_bytes if is_resumed else 0
    content_length = response.headers.get('Content-Length')
    total_bytes = num_bytes + int(content_length) if content_length else None
    with partial_path.open('ab' if is_resumed else 'wb') as file:
      num_bytes = _copy_with_progress(response, file, partial_path.stem, num_bytes, total_bytes)
  if total_bytes is not None and num_bytes < total_bytes:
    raise OSError(
      f'it broke off after {num_bytes} of {total_bytes} bytes; the next run resumes there'
    )


def _copy_with_progress(response, file, title: str, num_bytes: int, total_bytes: int | None) -> int:
  columns = (
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TransferSpeedColumn(),
    progress.TimeRemainingColumn(),
  )
  terminal = console.Console(file=sys.stderr)
  with progress.Progress(*columns, console=terminal, disable=not terminal.is_terminal) as bar:
    task = bar.add_task(title, completed=num_bytes, total=total_bytes)
    while chunk := response.read(_CHUNK_BYTES):
      file.write(chunk)
      num_bytes += len(chunk)
      bar.update(task, completed=num_bytes)
  return num_bytes
