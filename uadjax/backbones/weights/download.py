"""Download of a file over HTTP that resumes after an interruption and verifies the checksum."""

import http.client
from pathlib import Path
import shutil
import urllib.error
import urllib.request

import rich.progress

from uadjax.errors import describe, Setting, WeightsError
from uadjax.system import files, logging, progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 10.0  # Limits the time without data, not the whole download.


def fetch(url: str, target: Path, digest: str) -> None:
  """Download a file whose SHA-256 begins with `digest`.

  An incomplete download is kept next to `target`, with the suffix `.part`, and resumed.

  Raises:
    WeightsError: the folder cannot be written, the download failed, or the checksum differs.
  """
  if reason := files.unwritable_reason(target.parent):
    hint = 'Set UADJAX_CACHE to a folder that can be written.'
    raise WeightsError(f'Cannot write {target} ({reason}).', hint=hint)
  partial_path = target.with_name(target.name + '.part')
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    _resume_download(url, partial_path)
    actual_digest = files.sha256(partial_path)
    if actual_digest.startswith(digest):
      partial_path.replace(target)
      return
    partial_path.unlink()
    problem = f'{url} is damaged: its SHA-256 is {actual_digest}, not {digest}…; it was removed.'
  except (OSError, http.client.HTTPException) as error:  # HTTPError and timeouts are OSErrors.
    problem = f'Could not download {url}: {describe(error)}.'
  other_file = Setting('backbone.weights', 'FILE')
  hint = f'Run again, put the file at {target}, or name another with ', other_file, '.'
  raise WeightsError(problem, key=other_file.key, hint=hint)


def _resume_download(url: str, partial_path: Path) -> None:
  """Append the missing bytes, or start again if the server does not support ranges."""
  num_bytes = partial_path.stat().st_size if partial_path.exists() else 0
  headers = {'Range': f'bytes={num_bytes}-'} if num_bytes else {}
  request = urllib.request.Request(url, headers=headers)
  try:
    response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
  except urllib.error.HTTPError as error:
    error.close()
    if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise
    return  # The file is complete or too long, which the checksum shows.
  is_resumed = response.headers.get('Content-Range', '').startswith(f'bytes {num_bytes}-')
  length = int(response.headers.get('Content-Length') or 0)
  name, is_hidden = partial_path.stem, not progress.is_interactive()
  logging.LOG.info('Downloading %s (%.0f MB).', name, length / 1e6)
  reader = rich.progress.wrap_file(
    response, length, description=name, console=logging.CONSOLE, disable=is_hidden
  )
  with response, reader as content, partial_path.open('ab' if is_resumed else 'wb') as file:
    shutil.copyfileobj(content, file, _CHUNK_BYTES)
    total_bytes = length + (num_bytes if is_resumed else 0)
    if file.tell() < total_bytes:
      raise OSError(f'it broke off after {file.tell()} of {total_bytes} bytes and can be resumed')
