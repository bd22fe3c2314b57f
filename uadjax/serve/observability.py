"""Observability of the service: metrics for Prometheus, and a line of JSON for each request."""

import json
import logging
import time
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
LOG = logging.getLogger('uadjax.serve')
_LATENCY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
  """Prometheus metrics of one service, in a registry of its own."""

  def __init__(self) -> None:
    self.registry = CollectorRegistry()
    registry: dict[str, Any] = {'registry': self.registry}
    self.requests = Counter(
      'uadjax_requests', 'Requests by path and status.', ['path', 'status'], **registry
    )
    text = 'Seconds from the first byte of a request to its response.'
    options = {'buckets': _LATENCY_BUCKETS, **registry}
    self.request_seconds = Histogram('uadjax_request_seconds', text, ['path'], **options)
    self.scored_images = Counter('uadjax_images', 'Images scored.', ['model', 'label'], **registry)
    options = {'buckets': _BATCH_SIZE_BUCKETS, **registry}
    self.batch_sizes = Histogram('uadjax_batch_images', 'Images per batch.', ['model'], **options)
    text = 'Images in progress: read, queued or scored.'
    self.images_in_progress = Gauge('uadjax_images_under_way', text, **registry)

  def render(self) -> bytes:
    """Return the metrics in Prometheus' text format."""
    return prometheus_client.generate_latest(self.registry)


class JsonFormatter(logging.Formatter):
  """Formatter of log records as JSON, with fields passed as `extra={'log_fields': {...}}`."""

  def format(self, record: logging.LogRecord) -> str:
    """Format a record as one line of JSON."""
    timestamp = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))
    fields = {
      'time': f'{timestamp}.{int(record.msecs):03d}Z',
      'level': record.levelname,
      'message': record.getMessage(),
      **getattr(record, 'log_fields', {}),
    }
    if record.exc_info:
      fields['traceback'] = self.formatException(record.exc_info)
    return json.dumps(fields, ensure_ascii=False, default=str)
