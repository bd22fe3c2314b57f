"""The service as an ASGI application: PaddleX's route, the Open Inference Protocol, the page."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
import importlib.resources
import secrets
import time
from typing import Any

import fastapi
from fastapi import exceptions, responses
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

import uadjax
from uadjax.serve import (
  observability,
  protocol,
  requests,
  responses as response_writing,
  schema,
)
from uadjax.serve.service import Service
from uadjax.serve.settings import Settings

_OPEN_TO_ALL = ('/', '/health', '/v2/health/live', '/v2/health/ready')
_PAGES = '/page/'


def build(settings: Settings, stop: Callable[[], Any] = lambda: None) -> fastapi.FastAPI:
  """Make the application.

  Args:
    settings: checked.
    stop: called where a model cannot be opened; `app.state.service.failure` is why.
  """
  service = Service(settings)

  @contextlib.asynccontextmanager
  async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    opening = asyncio.create_task(service.open())

    def opened(task: asyncio.Task[None]) -> None:
      if not task.cancelled() and task.exception():
        service.failure = task.exception()
        stop()

    opening.add_done_callback(opened)
    yield
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await service.close()

  app = fastapi.FastAPI(
    title='uadjax',
    version=uadjax.__version__,
    description='Judges images: how anomalous, where, and whether that is too much.',
    lifespan=lifespan,
    docs_url=None,  # Both load their scripts from elsewhere, where a plant has no way to.
    redoc_url=None,
  )
  app.state.service = service
  _watch(app, service)
  _refusals(app)
  _routes(app, service)
  _pages(app)
  app.include_router(protocol.router(service))
  return app


def _watch(app: fastapi.FastAPI, service: Service) -> None:
  """Around every request: who may ask, what it is called, how long it took."""
  token = service.settings.token

  def known(request: Request) -> bool:
    path = request.url.path
    if not token or path in _OPEN_TO_ALL or path.startswith(_PAGES):
      return True
    kind, _, given = request.headers.get('authorization', '').partition(' ')
    right = secrets.compare_digest(given.strip().encode(), token.encode())
    return kind.lower() == 'bearer' and right

  @app.middleware('http')
  async def watched(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    began, log_id = time.perf_counter(), response_writing.new_log_id()
    request.state.log_id, request.state.told = log_id, {}
    if known(request):
      try:
        response = await answer(request)
      except asyncio.CancelledError:  # Time to drain is over.
        response = _refused(request, 503, 'The service stops; ask another.')
      except ClientDisconnect:
        response = _refused(request, 400, 'The client went before its request was whole.')
      except Exception:  # A fault of ours.
        observability.LOG.exception('fault', extra={'told': {'logId': log_id}})
        response = _refused(request, 500, 'The service failed; its log has why.')
    else:
      response = _refused(
        request, 401,
        'The token is wrong.' if 'authorization' in request.headers
        else 'A token is needed: send Authorization: Bearer TOKEN.',
        {'WWW-Authenticate': 'Bearer'},
      )  # fmt: skip
    seconds = time.perf_counter() - began
    route = request.scope.get('route')
    path = getattr(route, 'path', 'other')
    service.numbers.requests.labels(path, response.status_code).inc()
    service.numbers.seconds.labels(path).observe(seconds)
    response.headers['X-Log-Id'] = log_id
    if path in _OPEN_TO_ALL[1:]:  # Asked every few seconds.
      return response
    told = {
      'logId': log_id,
      'client': request.client.host if request.client else '',
      'method': request.method,
      'path': request.url.path,
      'status': response.status_code,
      'ms': round(1000 * seconds, 1),
      **request.state.told,
    }
    observability.LOG.info('request', extra={'told': told})
    return response


def _refused(
  request: Request, status: int, problem: str, headers: dict[str, str] | None = None
) -> Response:
  request.state.told['problem'] = problem
  if request.url.path.startswith(protocol.PREFIX):
    return response_writing.reply({'error': problem}, status, headers)
  return response_writing.reply(
    response_writing.envelope(request.state.log_id, status, problem), status, headers
  )


def _refusals(app: fastapi.FastAPI) -> None:
  """Every refusal has the envelope, or what the protocol has instead."""

  @app.exception_handler(requests.Refused)
  async def refused(request: Request, error: requests.Refused) -> Response:
    return _refused(request, error.status, error.problem, error.headers)

  @app.exception_handler(HTTPException)
  async def unknown(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    return _refused(request, error.status_code, f'{error.detail}: {request.url.path}', headers)

  @app.exception_handler(exceptions.RequestValidationError)
  async def invalid(request: Request, error: exceptions.RequestValidationError) -> Response:
    told = '; '.join(f'{".".join(map(str, one["loc"]))}: {one["msg"]}' for one in error.errors())
    return _refused(request, 422, told)


def _routes(app: fastapi.FastAPI, service: Service) -> None:
  @app.get('/health', responses=schema.HEALTH)
  async def health(request: Request) -> Response:
    """Whether the service runs; /v2/health/ready tells whether it is warm."""
    return response_writing.reply(response_writing.envelope(request.state.log_id, 0, 'Healthy'))

  @app.get('/models', responses=schema.MODELS)
  async def list_models(request: Request) -> Response:
    """Names, thresholds and preprocessing of the models, the first one first."""
    service.model('')
    about = [model.about() for model in service.models.values()]
    told = {'models': about, 'limits': service.settings.limits()}
    return response_writing.reply(
      response_writing.envelope(request.state.log_id, 0, response_writing.OK, result=told)
    )

  @app.get('/metrics', response_class=responses.PlainTextResponse)
  async def metrics() -> Response:
    """Numbers for Prometheus."""
    return Response(service.numbers.page(), media_type=observability.CONTENT_TYPE)

  @app.post('/image-anomaly-detection', responses=schema.VERDICT, openapi_extra=schema.ASKED)
  async def judge(request: Request) -> Response:
    """Judge an image: JSON as PaddleX has it, a form with a file, or the bytes of a file."""
    async with service.admitted():
      content = await requests.body(request, service.settings.max_bytes)
      asked = await requests.wanted(request, content)
      model = service.model(asked.model)
      async with service.turns:
        picture = await service.thread(
          requests.picture, asked.image, model.predictor.model.ops, service.settings
        )
        result = await service.judge(model, picture)
        told = await service.thread(
          response_writing.verdict,
          model.name,
          result,
          asked.visualize,
          asked.heatmap,
          asked.label_map,
        )
        whole = response_writing.envelope(request.state.log_id, 0, response_writing.OK, result=told)
        reply = await service.thread(response_writing.reply, whole)
      request.state.told = {
        'model': model.name, 'score': result.score, 'label': result.label,
        'bytes': len(content), 'size': list(result.size),
      }  # fmt: skip
      return reply


_TYPES = {'.html': 'text/html; charset=utf-8', '.css': 'text/css', '.js': 'text/javascript'}
_HEADERS = {
  'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; object-src 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache',
}


def _pages(app: fastapi.FastAPI) -> None:
  folder = importlib.resources.files('uadjax.serve') / 'page'
  files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name[0] not in '._'}
  shared = importlib.resources.files('uadjax') / 'web' / 'contour.js'
  files[shared.name] = shared.read_bytes()

  def shown(name: str) -> Response:
    suffix = name[name.rindex('.') :]
    return Response(files[name], headers=_HEADERS, media_type=_TYPES[suffix])

  @app.api_route('/', methods=['GET', 'HEAD'], include_in_schema=False)
  async def page() -> Response:
    return shown('index.html')

  @app.get(_PAGES + '{name}', include_in_schema=False)
  async def part(name: str) -> Response:
    if name not in files:
      raise HTTPException(404, 'Not Found')
    return shown(name)
