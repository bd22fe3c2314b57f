"""Whatever is sent, the service answers as its OpenAPI description says, and never fails.

That a string is no image is not said there, so that what the description allows may be refused.
"""

import contextlib
import json
from pathlib import Path
import threading
import time

import hypothesis
from hypothesis import strategies as st
import pytest
import requests
import schemathesis
from schemathesis.specs.openapi import checks
import uvicorn

from uadjax import main
from uadjax.data import demo
from uadjax.serve import app as apps, settings as options

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'padim.py'
SMALL = (
  '--config.data.ops=resize(32)',
  '--config.detector.layers=layer1',
  '--config.detector.channels=4',
  '--config.backbone.weights=random',
  '--config.fit.batch_size=4',
  '--config.evaluate.do_eval=false',
  '--config.data.category=disc',
)


@contextlib.contextmanager
def served(application):
  """Run in a thread; yields the address."""
  server = uvicorn.Server(uvicorn.Config(application, port=0, log_config=None, access_log=False))
  thread = threading.Thread(target=server.run)
  thread.start()
  end = time.monotonic() + 60
  while not (server.started and application.state.service.ready):
    assert time.monotonic() < end
    time.sleep(0.05)
  port = server.servers[0].sockets[0].getsockname()[1]
  yield f'http://127.0.0.1:{port}'
  server.should_exit = True
  thread.join()


@pytest.fixture(scope='module')
def api(tmp_path_factory):
  drawn = demo.draw(tmp_path_factory.mktemp('drawn'), size=40, train=6, test_good=1, test_defect=1)
  workdir = tmp_path_factory.mktemp('disc')
  where = f'--config.data.root={drawn}', f'--workdir={workdir}'
  assert main.main([f'--config={CONFIG}', *SMALL, *where]) == 0
  settings = options.Settings({'disc': workdir / 'model'}, max_bytes=100_000)
  with served(apps.build(settings)) as address:
    yield schemathesis.openapi.from_url(f'{address}/openapi.json')


def test_every_answer_is_as_described(api):
  operations = [found.ok() for found in api.get_all_operations()]
  assert len(operations) > 8
  for operation in operations:

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
    def answered(case):
      case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

    answered()


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
fields = (
  st.sampled_from(['image', 'visualize', 'model', 'inputs', 'name', 'shape', 'data']) | st.text()
)
anything = st.recursive(
  leaves, lambda inner: st.lists(inner) | st.dictionaries(fields, inner), max_leaves=8
)


@pytest.mark.parametrize('route', ['/image-anomaly-detection', '/v2/models/disc/infer'])
@hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(body=anything)
def test_no_json_makes_it_fail(api, route, body):
  answer = requests.post(
    f'{api.location.removesuffix("/openapi.json")}{route}',
    json.dumps(body),
    headers={'Content-Type': 'application/json'},
  )
  assert answer.status_code in (400, 404, 422), answer.text
  told = answer.json()
  assert told.get('errorMsg') or told['error']
