"""The ASGI application: PaddleX's route, the Open Inference Protocol, and the web page."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
import importlib.resources
import reprlib
import secrets
import time
import uuid

import fastapi
import pydantic
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

import uadjax
from uadjax.data.inputs import LoadedImage
from uadjax.serve import observability, protocol, requests, response_size, responses, schema
from uadjax.serve.errors import RequestError
from uadjax.serve.models import ServedModel
from uadjax.serve.service import Service
from uadjax.serve.settings import Settings

_UNAUTHENTICATED_PATHS = ('/', '/health', '/v2/health/live', '/v2/health/ready')
_PAGE_PREFIX = '/page/'


def build_app(
  settings: Settings,
  stop: Callable[[], object] = lambda: None,
  on_ready: Callable[[], object] = lambda: None,
) -> fastapi.FastAPI:
  """Build the application, which opens the models when it starts.

  Args:
    settings: validated settings of the service.
    stop: function that stops the server; it is called when a model cannot be opened or `on_ready`
      raises an OSError, after the error was stored in `app.state.service.failure`.
    on_ready: function to call once all models are open.
  """
  service = Service(settings)

  @contextlib.asynccontextmanager
  async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    opening_task = asyncio.create_task(service.open())

    def report_opening(task: asyncio.Task[None]) -> None:
      if task.cancelled():
        return
      service.failure = task.exception() or _failure_of(on_ready)
      if service.failure:
        stop()

    opening_task.add_done_callback(report_opening)
    yield
    opening_task.cancel()
    await asyncio.gather(opening_task, return_exceptions=True)
    await service.close()

  app = fastapi.FastAPI(
    title='uadjax',
    version=uadjax.__version__,
    description='Detects anomalies in images: anomaly score, anomaly map, and verdict.',
    lifespan=lifespan,
    # Both pages load scripts from the internet, which is often blocked in plant networks.
    docs_url=None,
    redoc_url=None,
  )
  app.state.service = service
  _add_middleware(app, service)
  _add_error_handlers(app)
  _add_routes(app, service)
  _add_page_routes(app)
  app.include_router(protocol.make_router(service))
  return app


def _failure_of(function: Callable[[], object]) -> OSError | None:
  """Call a function that prints; return the error if its output cannot be written."""
  try:
    function()
  except OSError as error:
    return error
  return None


def _add_middleware(app: fastapi.FastAPI, service: Service) -> None:
  """Add authentication, an id, metrics and a log line to every request."""

  @app.middleware('http')
  async def handle_request(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
  ) -> Response:
    start, log_id = time.perf_counter(), uuid.uuid4().hex
    request.state.log_id, request.state.log_fields = log_id, {}
    if _is_authorized(request, service.settings.token):
      try:
        response = await call_next(request)
      except asyncio.CancelledError:  # The time to drain is over.
        problem = 'The service is shutting down; send the request to another instance.'
        response = _error_response(request, 503, problem)
      except ClientDisconnect:
        problem = 'The client disconnected before its request was complete.'
        response = _error_response(request, 400, problem)
      except Exception:  # A bug: no request should cause it.
        observability.LOG.exception('internal_error', extra={'log_fields': {'logId': log_id}})
        response = _error_response(request, 500, 'Internal error; see the log of the service.')
    else:
      state = 'wrong' if 'authorization' in request.headers else 'missing'
      problem = f'The token is {state}; send Authorization: Bearer TOKEN.'
      response = _error_response(request, 401, problem, {'WWW-Authenticate': 'Bearer'})
    seconds = time.perf_counter() - start
    path = getattr(request.scope.get('route'), 'path', 'other')
    service.metrics.requests.labels(path, response.status_code).inc()
    service.metrics.request_seconds.labels(path).observe(seconds)
    response.headers['X-Log-Id'] = log_id
    if path in _UNAUTHENTICATED_PATHS[1:]:  # Health checks would fill the log.
      return response
    log_fields = {
      'logId': log_id,
      'client': request.client.host if request.client else '',
      'method': request.method,
      'path': request.url.path,
      'status': response.status_code,
      'ms': round(1000 * seconds, 1),
      **request.state.log_fields,
    }
    observability.LOG.info('request', extra={'log_fields': log_fields})
    return response


def _is_authorized(request: Request, token: str) -> bool:
  path = request.url.path
  if not token or path in _UNAUTHENTICATED_PATHS or path.startswith(_PAGE_PREFIX):
    return True
  scheme, _, credentials = request.headers.get('authorization', '').partition(' ')
  is_valid_token = secrets.compare_digest(credentials.strip().encode(), token.encode())
  return scheme.lower() == 'bearer' and is_valid_token


def _error_response(
  request: Request, status: int, problem: str, headers: responses.Headers = None
) -> Response:
  request.state.log_fields['problem'] = problem
  envelope = {'logId': request.state.log_id, 'errorCode': status, 'errorMsg': problem}
  content = {'error': problem} if _is_protocol(request) else envelope
  return responses.json_response(content, status, headers)


def _is_protocol(request: Request) -> bool:
  return request.url.path.startswith(protocol.PREFIX)


def _add_error_handlers(app: fastapi.FastAPI) -> None:
  """Answer every rejected request with the envelope, or with the protocol's error object."""

  @app.exception_handler(HTTPException)
  async def handle_http_exception(request: Request, error: HTTPException) -> Response:
    problem = error.detail
    if not isinstance(error, RequestError):  # The framework's, such as Not Found.
      problem += f': {request.method} {request.url.path}; /openapi.json lists all routes.'
    return _error_response(request, error.status_code, problem, dict(error.headers or {}))

  @app.exception_handler(pydantic.ValidationError)
  async def handle_validation_error(request: Request, error: pydantic.ValidationError) -> Response:
    text = '; '.join(map(_describe_validation_error, error.errors()))
    return _error_response(request, 400 if _is_protocol(request) else 422, text)


# Type of a validation error -> message that says what to do.
_MESSAGES = {
  **dict.fromkeys(('bool_parsing', 'bool_type'), 'must be true or false'),
  'extra_forbidden': 'unknown field; /openapi.json lists the fields',
}


def _describe_validation_error(error: ErrorDetails) -> str:
  """Return place, message and value of an error; a long value is shortened."""
  message = _MESSAGES.get(error['type'], error['msg'])
  text = ': '.join(filter(None, ('.'.join(map(str, error['loc'])), message)))
  is_scalar = isinstance(error['input'], str | int | float)
  return f'{text}, got {reprlib.repr(error["input"])}' if is_scalar else text


def _add_routes(app: fastapi.FastAPI, service: Service) -> None:
  @app.get('/health', responses=schema.HEALTH_RESPONSES)
  async def health(request: Request) -> Response:
    """Report that the service runs; /v2/health/ready reports whether its models are warm."""
    return responses.envelope(request.state.log_id, 'Healthy')

  @app.get('/models', responses=schema.MODELS_RESPONSES)
  async def list_models(request: Request) -> Response:
    """List name, readiness, thresholds and others of each model; the first is the default."""
    service.require_open()
    descriptions = [
      {**model.describe(), 'region': model.encode_region()} for model in service.models.values()
    ]
    result = {'models': descriptions, 'limits': service.settings.request_limits()}
    return responses.envelope(request.state.log_id, result=result)

  @app.get('/metrics', response_class=PlainTextResponse)
  async def metrics() -> Response:
    """Return the metrics in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=observability.CONTENT_TYPE)

  @app.post(
    '/image-anomaly-detection',
    responses=schema.VERDICT_RESPONSES,
    openapi_extra=schema.PREDICT_OPENAPI,
  )
  async def detect_anomalies(request: Request) -> Response:
    """Detect anomalies in an image: JSON as in PaddleX, a form with a file, or a raw file."""
    async with service.deadline():
      content = await service.read_body(request)
      image_or_url, options = await service.parse(requests.parse_request, request, content)
      model = service.get_model(options.model or '')
      is_url = isinstance(image_or_url, str)
      encoded_image = await service.download(image_or_url) if is_url else image_or_url
      with service.images.reserve():
        async with service.admission:
          image = await service.run_in_thread(
            _read_image, encoded_image, options, model, service.settings
          )
          result = await service.predict(model, image)
          part = service.judge_part(model, options.part, result) if options.part else None
          response = await service.run_in_thread(
            responses.verdict, request.state.log_id, model.name, result, options, part
          )
    request.state.log_fields = {
      'model': model.name, 'score': result.score, 'label': result.label,
      'warnings': result.warning_codes, 'bytes': len(content), 'size': list(result.size),
    }  # fmt: skip
    return response


def _read_image(
  encoded_image: bytes, options: requests.RequestOptions, model: ServedModel, settings: Settings
) -> LoadedImage:
  """Load an image, unless the response to it would be too large."""
  size = requests.read_size(encoded_image, settings)
  response_size.check_verdict(size, options, settings.max_answer_bytes)
  return requests.read_image(encoded_image, model.predictor.model, settings)


_MEDIA_TYPES = {'.html': 'text/html; charset=utf-8', '.css': 'text/css', '.js': 'text/javascript'}
_PAGE_HEADERS = {
  'Content-Security-Policy': "default-src 'self'; img-src 'self' blob: data:; object-src 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache',
}


def _add_page_routes(app: fastapi.FastAPI) -> None:
  package = importlib.resources.files('uadjax')
  folders = package / 'serve' / 'page', package / 'web'  # The latter is also that of the report.
  files = {
    file.name: file.read_bytes()
    for folder in folders
    for file in folder.iterdir()
    if file.name[0] not in '._'
  }

  @app.api_route('/', methods=['GET', 'HEAD'], include_in_schema=False)
  @app.get(_PAGE_PREFIX + '{name}', include_in_schema=False)
  async def page(request: Request) -> Response:
    name = request.path_params.get('name', 'index.html')
    if name not in files:
      raise HTTPException(404, 'Not Found')
    media_type = _MEDIA_TYPES[name[name.rindex('.') :]]
    return Response(files[name], headers=_PAGE_HEADERS, media_type=media_type)
