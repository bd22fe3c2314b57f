"""Whatever is sent, the service answers as its OpenAPI description says, and never fails.

That a string is no image is not said there, so that what the description allows may be refused.
"""

import collections
import json

import hypothesis
from hypothesis import strategies as st
import pytest
import requests
import schemathesis
from schemathesis.specs.openapi import checks

from uadjax.serve import app as apps, settings as options


@pytest.fixture(scope='module')
def api(trained, served):
  settings = options.Settings({'disc': trained('padim') / 'model'}, max_bytes=100_000)
  with served(apps.build_app(settings)) as address:
    yield schemathesis.openapi.from_url(f'{address}/openapi.json')


def test_every_response_is_as_described(api):
  operations = [operation_or_error.ok() for operation_or_error in api.get_all_operations()]
  assert len(operations) > 8
  statuses = collections.Counter()
  for operation in operations:

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
    def call(case):
      response = case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])
      statuses[response.status_code] += 1

    call()
  print(len(operations), statuses)


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
def test_random_json_is_refused_with_a_client_error(api, route, body):
  response = requests.post(
    f'{api.location.removesuffix("/openapi.json")}{route}',
    json.dumps(body),
    headers={'Content-Type': 'application/json'},
  )
  assert response.status_code in (400, 404, 422), response.text
  message = response.json()
  assert message.get('errorMsg') or message['error']
