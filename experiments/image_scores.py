"""Image scores from anomaly maps: defects found at the default thresholds, and false alarms.

  DATA=../shared/data/mvtec_ad
  WEIGHTS=../shared/weights/resnet18_imagenet_bnfolded.pth
  python experiments/image_scores.py collect --root=$DATA --weights=$WEIGHTS --seeds=5
  python experiments/image_scores.py collect --root=$DATA --seeds=5
  python experiments/image_scores.py collect --root=$DATA --weights=$WEIGHTS --seeds=4 --parts=4
  python experiments/image_scores.py compare
  python experiments/image_scores.py compare --scores=present,max --thresholds=exponential,pareto

`collect` fits detectors that learn in one pass, as uadjax.main does. It stores scores and distances
of their images (see distance_runs.py). Without --weights, it uses the embedded weights. With
`--parts=4`, a quarter of the training images is not fitted to and joins the good test images. It is
another quarter for each seed, so that four seeds measure false alarms on all training images.
Finished runs are not repeated. Further arguments are settings for every run, such as
detector.layers=layer1,layer2,layer3; such runs have a folder of their own.

`compare` takes seconds. It computes other image scores from the stored distances, calibrates
thresholds on those of the training images, and counts verdicts on the test images. For each folder
of runs it prints a table, sorted by the defects found, and writes it there as table.md.

Scores:
present: the detector's own image score.
patch: largest distance. max: largest value of the anomaly map.
max without border: the same, without a sixteenth of the map at each side.
max of blur S: the same, with a map that is blurred by S pixels.
max / mean of image: max, divided by the mean of the image's own anomaly map.
top 1 %: mean of this share of the anomaly map, its largest values.
by mean and so on: distances divided by a statistic of the training images at the same position.

Columns:
NG, to review, missed: shares of the defective images, mean (range) over seeds.
gain: NG minus that of the present score with the present thresholds and the same seed.
NG at equal rate: NG if the threshold were calibrated on all good images, the test images included.
false alarms: number of good images that are NG, averaged over seeds; 95 % Clopper-Pearson interval.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
import functools
from pathlib import Path
import statistics
from typing import NamedTuple

import distance_runs
from distance_runs import ImageScores, Maps
from false_alarms import confidence_interval
from jaxtyping import Float
import numpy as np
from scipy import stats

from uadjax.data import records
from uadjax.model import calibration
from uadjax.model.settings import CalibrateSettings
from uadjax.numerics import metrics, resampling
from uadjax.sweep import tables
from uadjax.system import threads

_BUDGETS = CalibrateSettings().budget, CalibrateSettings().review_budget
_SIGMA = 4.0  # Blur of the anomaly maps of PaDiM and PatchCore, in pixels.
_SHARES = (0.001, 0.003, 0.01, 0.03)
_TAIL_SHARE, _MIN_TAIL = 0.1, 15  # Number of largest scores that a distribution is fitted to.
_NUM_FOLDS = 10  # The statistic for a training image is computed on the other folds.
_MEAN_OF_SETS = 'mean of sets'
_TITLES = (
  'set', 'score', 'threshold', 'seeds', 'AUROC', 'NG %', 'to review %', 'missed %',
  'NG / to review / missed', 'gain %', 'NG % at equal rate', 'promised %', 'false alarms',
)  # fmt: skip


class Outcome(NamedTuple):
  """Verdicts of an image score with a kind of threshold in a run, or their means over sets.

  Attributes:
    auroc: image AUROC.
    ng: share of the defective images that are NG.
    review: share of the defective images that are to be reviewed.
    missed: share of the defective images that are OK.
    equal_rate_ng: share of the defective images above a threshold that is set on all good images.
    promised: expected false-alarm rate.
    num_defective: number of defective images.
    alarms: whether a good test image is NG, by path.
  """

  auroc: float
  ng: float
  review: float
  missed: float
  equal_rate_ng: float
  promised: float
  num_defective: float
  alarms: Mapping[str, bool]


Method = tuple[str, str]  # Names of an image score and of a kind of threshold.
OutcomesBySeed = dict[str, Outcome]


def upsample(distances: Maps, size: Sequence[int], sigma: float) -> Maps:
  """Return maps of a size, blurred by `sigma` pixels, as `resampling.upsample` without JAX."""
  row_matrix, column_matrix = map(_upsampling_matrix, size, distances.shape[1:], (sigma, sigma))
  return row_matrix @ distances @ column_matrix.T


@functools.cache
def _upsampling_matrix(new: int, old: int, sigma: float) -> Float[np.ndarray, '_new _old']:
  return resampling.blur_matrix(new, sigma) @ resampling.bilinear_matrix(new, old)


def top_means(maps: Maps) -> dict[str, ImageScores]:
  """Return the means of the largest pixels of each map, for each share of `_SHARES`."""
  # The maps are so smooth that a quarter of the pixels suffices.
  pixels = maps[:, ::2, ::2].reshape(len(maps), -1)
  counts = [max(1, round(share * pixels.shape[1])) for share in _SHARES]
  largest = np.sort(np.partition(pixels, -max(counts), axis=1)[:, -max(counts) :], axis=1)
  return {
    f'top {100 * share:g} %': largest[:, -count:].mean(axis=1)
    for share, count in zip(_SHARES, counts, strict=True)
  }


def _median_plus_mad(x: Maps) -> Float[np.ndarray, 'h w']:
  median = np.median(x, axis=0)
  return median + 3 * np.median(np.abs(x - median), axis=0)


# Statistic of training images by which the distances at each position are divided.
_STATISTICS: dict[str, Callable[[Maps], Float[np.ndarray, 'h w']]] = {
  'mean': lambda x: x.mean(axis=0),
  # Blurred by two positions of the feature map.
  'smooth mean': lambda x: upsample(x.mean(axis=0, keepdims=True), x.shape[1:], 2.0)[0],
  'median + 3 MAD': _median_plus_mad,
}


def normalize(held_out: Maps, test: Maps, statistic: Callable[[Maps], np.ndarray]) -> Maps:
  """Divide the distances of held-out and test images by a statistic at each position.

  The statistic for a held-out image does not contain the image, just as that for a test image.
  """
  normalized = np.concatenate([held_out, test / statistic(held_out)])
  for fold in range(_NUM_FOLDS):
    rows = np.s_[fold : len(held_out) : _NUM_FOLDS]
    normalized[rows] /= statistic(np.delete(held_out, rows, axis=0))
  return normalized


def image_scores(run: distance_runs.StoredRun) -> dict[str, ImageScores]:
  """Return image scores by name, each of the held-out images followed by the test images."""
  held_out, test, size = run
  distances = np.concatenate([held_out.distances, test.distances])
  maps = upsample(distances, size, _SIGMA)
  map_max = maps.max(axis=(1, 2))
  margin_h, margin_w = (length // 16 for length in size)
  scores = {
    'present': np.concatenate([held_out.scores, test.scores]),
    'patch': distances.max(axis=(1, 2)),
    'max': map_max,
    'max without border': maps[:, margin_h:-margin_h, margin_w:-margin_w].max(axis=(1, 2)),
    'max / mean of image': map_max / maps.mean(axis=(1, 2)),
    **top_means(maps),
  }
  for sigma in (2.0, 8.0, 16.0):
    scores[f'max of blur {sigma:g}'] = upsample(distances, size, sigma).max(axis=(1, 2))
  for name, statistic in _STATISTICS.items():
    normalized = normalize(held_out.distances, test.distances, statistic)
    maps = upsample(normalized, size, _SIGMA)
    scores[f'patch by {name}'] = normalized.max(axis=(1, 2))
    scores[f'max by {name}'] = maps.max(axis=(1, 2))
    scores[f'top 1 % by {name}'] = top_means(maps)['top 1 %']
  return scores


def rank_thresholds(scores: ImageScores) -> calibration.Thresholds:
  """Return the present thresholds, which are order statistics."""
  return calibration.from_normals(scores, scores, *_BUDGETS)


def tail_thresholds(
  distribution: stats.rv_continuous, scores: ImageScores
) -> calibration.Thresholds:
  """Return thresholds at quantiles of a distribution that is fitted to the largest scores."""
  num_tail = max(_MIN_TAIL, round(_TAIL_SHARE * len(scores)))
  start, *tail = np.sort(scores)[-num_tail - 1 :].tolist()
  parameters = distribution.fit(np.array(tail) - start, floc=0)
  image_threshold, review_threshold = (
    start + float(distribution.isf(budget * len(scores) / num_tail, *parameters))
    for budget in _BUDGETS
  )
  return rank_thresholds(scores)._replace(
    image_threshold=image_threshold,
    review_threshold=review_threshold,
    expected_false_alarm_rate=_BUDGETS[0],
  )


_THRESHOLDS: dict[str, Callable[[ImageScores], calibration.Thresholds]] = {
  'rank': rank_thresholds,
  'exponential': functools.partial(tail_thresholds, stats.expon),
  'pareto': functools.partial(tail_thresholds, stats.genpareto),
}


def count_verdicts(
  held_out_scores: ImageScores, test_scores: ImageScores, test: distance_runs.Images, kind: str
) -> Outcome:
  """Set thresholds of a kind on the scores of held-out images, and apply them to test images."""
  is_good = test.defects == records.GOOD
  good, defective = test_scores[is_good], test_scores[~is_good]
  thresholds = _THRESHOLDS[kind](held_out_scores)
  equal_rate_threshold = rank_thresholds(np.append(held_out_scores, good)).image_threshold
  is_ng = (test_scores > thresholds.image_threshold).astype(float)
  is_missed = (test_scores <= thresholds.review_threshold).astype(float)
  return Outcome(
    metrics.auroc(metrics.rank(defective, [good])),
    float(is_ng[~is_good].mean()),
    float((1 - is_ng - is_missed)[~is_good].mean()),
    float(is_missed[~is_good].mean()),
    float((defective > equal_rate_threshold).mean()),
    thresholds.expected_false_alarm_rate,
    len(defective),
    dict(zip(test.paths[is_good].tolist(), is_ng[is_good].astype(bool).tolist(), strict=True)),
  )


def evaluate_run(path: Path, kinds: Sequence[str]) -> dict[Method, Outcome]:
  """Return the outcomes of a stored run, for all image scores and these kinds of thresholds."""
  run = distance_runs.load_run(path)
  n = len(run.held_out.paths)
  return {
    (name, kind): count_verdicts(scores[:n], scores[n:], run.test, kind)
    for name, scores in image_scores(run).items()
    for kind in kinds
  }


def average_over_sets(sets: Sequence[OutcomesBySeed]) -> OutcomesBySeed:
  """Return the means over sets of the seeds that all sets have."""
  averages: OutcomesBySeed = {}
  for seed in sorted(set.intersection(*map(set, sets))):
    outcomes = [by_seed[seed] for by_seed in sets]
    means = (statistics.fmean(values) for values in zip(*(o[:-1] for o in outcomes), strict=True))
    alarms = {path: is_ng for o in outcomes for path, is_ng in o.alarms.items()}
    averages[seed] = Outcome._make((*means, alarms))
  return averages


def count_alarms(by_seed: OutcomesBySeed) -> tuple[float, int]:
  """Return the number of different good images that are NG, averaged over seeds, and of all."""
  verdicts: dict[str, list[bool]] = {}
  for outcome in by_seed.values():
    for path, is_ng in outcome.alarms.items():
      verdicts.setdefault(path, []).append(is_ng)
  return sum(map(statistics.fmean, verdicts.values())), len(verdicts)


def table_row(
  category: str, method: Method, by_seed: OutcomesBySeed, present: OutcomesBySeed
) -> list[object]:
  """Return the cells of a method in a set, averaged over seeds."""
  outcomes = by_seed.values()

  def cell(values: Iterable[float], digits: int = 1) -> str:
    return tables.format_cell(tables.center_and_range(values, statistics.fmean), digits)

  shares = [[getattr(o, name) for o in outcomes] for name in ('ng', 'review', 'missed')]
  num_defective = statistics.fmean(o.num_defective for o in outcomes)
  counts = ' / '.join(f'{num_defective * statistics.fmean(values):.1f}' for values in shares)
  alarms, num_good = count_alarms(by_seed)
  low, high = confidence_interval(alarms, num_good)
  return [
    category, *method, len(by_seed), cell((o.auroc for o in outcomes), 3),
    *(cell(100 * value for value in values) for values in shares),
    '' if category == _MEAN_OF_SETS else counts,
    cell(100 * (outcome.ng - present[seed].ng) for seed, outcome in by_seed.items()),
    cell(100 * o.equal_rate_ng for o in outcomes), cell(100 * o.promised for o in outcomes),
    f'{alarms:.1f} of {num_good}: {100 * alarms / num_good:.1f} % '
    f'({100 * low:.1f}-{100 * high:.1f})',
  ]  # fmt: skip


def compare_runs(folder: Path, score_names: Sequence[str], kinds: Sequence[str]) -> str:
  """Return the table of the runs in a folder."""
  paths = sorted(folder.glob('*/seed_*.npz'))
  evaluate = functools.partial(evaluate_run, kinds=[*dict.fromkeys(['rank', *kinds])])
  by_category: dict[str, dict[Method, OutcomesBySeed]] = {}
  with futures.ThreadPoolExecutor(threads.num_cores()) as pool:
    for path, outcomes in zip(paths, pool.map(evaluate, paths), strict=True):
      by_method = by_category.setdefault(path.parent.name, {})
      for method, outcome in outcomes.items():
        by_method.setdefault(method, {})[path.stem] = outcome
  sets = [*by_category.values()]
  by_category[_MEAN_OF_SETS] = {
    method: average_over_sets([by_method[method] for by_method in sets]) for method in sets[0]
  }
  rows = []
  for category, by_method in by_category.items():
    methods = [m for m in by_method if m[1] in kinds and (not score_names or m[0] in score_names)]
    methods.sort(key=lambda m: -statistics.fmean(o.ng for o in by_method[m].values()))
    present = by_method['present', 'rank']
    rows += [table_row(category, method, by_method[method], present) for method in methods]
  return tables.markdown_table(_TITLES, rows)


def main() -> None:
  """Collect runs, or compare the image scores of finished ones."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  collect, compare = commands.add_parser('collect'), commands.add_parser('compare')
  for command in (collect, compare):
    command.add_argument('--workdir', type=Path, default=Path('runs/image_scores'))
  collect.add_argument('--root', required=True)
  collect.add_argument('--weights', default='embedded')
  collect.add_argument('--detectors', default='padim,patchcore,patchcore:ten', help='configs')
  collect.add_argument('--categories', default='all', help='names; or all, textures, objects')
  collect.add_argument('--seeds', type=int, default=5, help='number of seeds')
  collect.add_argument(
    '--parts', type=int, default=0, help='fit to all but one of so many parts; 0: fit to all'
  )
  collect.add_argument('overrides', nargs='*', help='settings of every run: KEY=VALUE')
  compare.add_argument('--scores', default='', help='names of image scores; default: all')
  compare.add_argument('--thresholds', default='rank', help=', '.join(_THRESHOLDS))
  flags = parser.parse_args()
  if flags.command == 'collect':
    distance_runs.collect(flags)
    return
  score_names = [name for name in flags.scores.split(',') if name]
  for folder in sorted({path.parents[1] for path in flags.workdir.glob('*/*/seed_*.npz')}):
    table = compare_runs(folder, score_names, flags.thresholds.split(','))
    text = f'{folder.name}\n\n{table}\n'
    (folder / 'table.md').write_text(text)
    print(text, flush=True)


if __name__ == '__main__':
  main()
