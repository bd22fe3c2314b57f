from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from sklearn import metrics as sklearn

from uadjax import metrics


def slow_auroc(labels, scores):
  """The definition: over all pairs, how often the anomaly scores higher; a tie is half a win."""
  wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels] for b in scores[~labels]]
  return sum(wins) / len(wins)


@st.composite
def labelled_scores(draw):
  n = draw(st.integers(2, 30))
  labels = draw(hnp.arrays(bool, n))
  labels[:2] = [True, False]
  # Few distinct values: ties are where implementations go wrong.
  values = st.one_of(st.sampled_from([0.0, 0.5, 1.0, np.inf, -np.inf]), st.floats(-9, 9, width=32))
  return labels, draw(hnp.arrays(np.float32, n, elements=values))


@given(labelled_scores())
def test_auroc_is_its_definition(case):
  assert metrics.auroc(*case) == pytest.approx(slow_auroc(*case), abs=1e-12)


@given(labelled_scores())
def test_auroc_is_scikit_learns(case):
  labels, scores = case
  finite = np.nan_to_num(scores, posinf=99, neginf=-99)  # scikit-learn takes no infinities.
  want = sklearn.roc_auc_score(labels, finite)
  assert metrics.auroc(labels, finite) == pytest.approx(want, abs=1e-9)


def test_auroc_of_constant_scores_is_a_half():
  assert metrics.auroc(np.array([True, False, False]), np.full(3, 0.3)) == 0.5


@pytest.mark.parametrize(
  ('labels', 'scores', 'words'),
  [
    ([True, True], [0.1, 0.2], '2 anomalous and 0 normal'),
    ([False], [0.1], '0 anomalous and 1 normal'),
    ([True, False], [np.nan, 0.2], '1 NaN'),
  ],
)
def test_auroc_refuses_what_has_no_answer(labels, scores, words):
  with pytest.raises(ValueError, match=words):
    metrics.auroc(np.array(labels), np.array(scores))
