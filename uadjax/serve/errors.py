"""Error of requests that the service rejects."""

from starlette.exceptions import HTTPException

RETRY_HEADERS = {'Retry-After': '1'}


class RequestError(HTTPException):
  """Request that the service rejects; the detail names the problem and how to fix it."""
