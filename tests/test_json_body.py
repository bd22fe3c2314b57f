"""JSON bodies: parsed in chunks as a whole parser would, within limits."""

import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pydantic
import pytest

from uadjax.serve import json_body
from uadjax.serve.errors import RequestError


class Body(pydantic.BaseModel, extra='forbid'):
  data: list[object]
  text: str = ''
  other: object = None


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  """Chunks, lists and strings of some bytes stand for those of 64 KiB."""
  for name, number in {'_LONG_BYTES': 30, '_CHUNK_BYTES': 64, '_MAX_OTHER_BYTES': 400}.items():
    monkeypatch.setattr(json_body, name, number)


def parsed(content, shape):
  body, lists = json_body.parse(content, Body)
  return json_body.parse_pixels(json_body.list_text(body.data, lists), shape)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
separators = st.sampled_from([(',', ':'), (', ', ': '), (' ,\n ', ' :\t')])
fixtures_per_function = [hypothesis.HealthCheck.function_scoped_fixture]


@hypothesis.settings(suppress_health_check=fixtures_per_function)
@hypothesis.given(
  shape=shapes, is_flat=st.booleans(), separators=separators, seed=st.integers(0, 99),
  text=st.text(), is_first=st.booleans(), indent=st.sampled_from([None, 1]),
)  # fmt: skip
def test_a_body_is_what_a_whole_parser_reads(
  shape, is_flat, separators, seed, text, is_first, indent
):
  """Long and short lists, flat and nested, between other values in any order."""
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  values = {'data': (pixels.ravel() if is_flat else pixels).tolist()}
  others = {'text': text, 'other': [1, {'data': [2.5, None]}]}
  values = values | others if is_first else others | values
  content = json.dumps(values, separators=separators, indent=indent).encode()
  body, lists = json_body.parse(content, Body)
  assert (body.text, body.other) == (others['text'], others['other'])
  assert all(len(text) > 30 for text in lists.values())
  np.testing.assert_array_equal(parsed(content, shape), pixels)


@hypothesis.settings(suppress_health_check=fixtures_per_function, max_examples=300)
@hypothesis.given(
  shape=shapes, is_flat=st.booleans(), place=st.integers(0, 999), count=st.integers(0, 2),
  added=st.text('0123456789[]{}, -.e"n\\\n', max_size=3),
)  # fmt: skip
def test_an_edited_list_is_refused_or_what_a_whole_parser_reads(
  shape, is_flat, place, count, added
):
  pixels = np.full(shape, 123, np.uint8)
  text = json.dumps((pixels.ravel() if is_flat else pixels).tolist())
  place %= len(text) + 1
  text = text[:place] + added + text[place + count :]
  try:
    actual = parsed(b'{"data": %b}' % text.encode(), shape)
  except (ValueError, TypeError, RequestError):  # A validation error is a ValueError.
    return
  expected = np.array(json.loads(text))
  assert expected.shape in (tuple(shape), (pixels.size,))
  np.testing.assert_array_equal(actual, expected.reshape(shape))


@pytest.mark.parametrize('values', [[256], [-1], [1.0], [True], [None], ['1'], [10**30], [], [[]]])
def test_values_that_are_no_pixels_are_refused(values):
  for count in (1, 50):
    content = json.dumps({'data': values * count}).encode()
    with pytest.raises((ValueError, TypeError)):
      parsed(content, [len(values) * count])


@pytest.mark.parametrize('text', ['x' * 5000, '\\/' * 300, 'x' * 5000 + '\\"', '\\\\'])
def test_long_strings_stay_as_they_are(text):
  content = b'{"data": [], "text": "%b"}' % text.encode()
  assert json_body.parse(content, Body)[0].text == json.loads(content)['text']


@pytest.mark.parametrize(
  'other',
  ['[' * 500, '[""' + ',""' * 200 + ']', ' ' * 500, '"' + '\\n' * 500 + '"'],
)
def test_the_size_beside_the_image_is_limited_before_parsing(other, monkeypatch):
  monkeypatch.setattr(Body, 'model_validate_json', None)
  with pytest.raises(RequestError) as caught:
    json_body.parse(b'{"data": [], "other": ' + other.encode(), Body)
  assert caught.value.status_code == 413


@hypothesis.settings(suppress_health_check=fixtures_per_function)
@hypothesis.given(st.binary(max_size=300))
def test_random_bytes_are_refused_with_the_documented_errors(content):
  for body in (content, b'{"data": ' + content):
    with pytest.raises((pydantic.ValidationError, RequestError)):
      json_body.parse(body, Body)
