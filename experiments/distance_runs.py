"""Runs of detectors that store distances instead of anomaly maps, for image_scores.py.

A run stores results of the training images, each scored by a model without it, and of the test
images: their image scores, and the distances from which their anomaly maps are made, at the
resolution of the feature map.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import contextlib
from pathlib import Path
import tempfile
import time
from typing import NamedTuple
from unittest import mock

import jax
from jaxtyping import Float
import numpy as np
import subprocess_runs

from uadjax import backbones, detectors, sweep
from uadjax.data import checks, layouts, prepare, records as record_types, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.data.records import Record
from uadjax.detectors import base
from uadjax.distributed import mesh as meshes
from uadjax.model import calibration, model_dir, scoring
from uadjax.numerics import resampling
from uadjax.system import files, logging
from uadjax.training import resolve_backbone, settings, train as training

Maps = Float[np.ndarray, 'n h w']
ImageScores = Float[np.ndarray, ' n']


class Images(NamedTuple):
  """Results of some images of a run: paths, types of defect, image scores and distances."""

  paths: np.ndarray
  defects: np.ndarray
  scores: ImageScores
  distances: Maps


class StoredRun(NamedTuple):
  """Results of a run.

  Attributes:
    held_out: training images, each scored by a model without it.
    test: test images, and good images that were split off.
    size: height and width of the anomaly maps.
  """

  held_out: Images
  test: Images
  size: tuple[int, int]


def split_off(
  records: Sequence[Record], seed: int, parts: int
) -> tuple[tuple[Record, ...], list[Record]]:
  """Split records into those to fit to, and the distinct ones of a part that is not fitted to.

  Args:
    records: good training images.
    seed: selects the part.
    parts: number of parts; 0 to fit to all records.
  """
  groups = record_types.group_duplicates(records)
  numbers = np.searchsorted(np.unique(groups), groups)
  is_unseen = numbers % parts == seed % parts if parts else np.zeros(len(records), bool)
  fit, unseen = ([records[i] for i in np.flatnonzero(x).tolist()] for x in (~is_unseen, is_unseen))
  return tuple(fit), record_types.distinct(unseen)


@contextlib.contextmanager
def record_distances() -> Iterator[list[scoring.ScoredRecord]]:
  """Make detectors return distances as anomaly maps; yield a list that receives held-out images.

  `resampling.upsample`, which PaDiM and PatchCore call to make maps from distances, is replaced.
  PaDiM's image score becomes the largest distance, because it is the largest value of the map.
  """
  held_out: list[scoring.ScoredRecord] = []
  collect_scores = scoring.collect_calibration_scores

  def record_and_collect(
    scored_records: Iterable[scoring.ScoredRecord],
  ) -> calibration.CalibrationScores:
    scored_records = list(scored_records)
    held_out.extend(scored_records)
    return collect_scores(scored_records)

  with (
    mock.patch.object(resampling, 'upsample', lambda distances, *_: distances),
    mock.patch.object(scoring, 'collect_calibration_scores', record_and_collect),
  ):
    yield held_out


def make_run(config: settings.Settings, parts: int, path: Path) -> None:
  """Fit a detector, and store the results of its training and test images in a file."""
  ops = transforms.parse(config.data.ops)
  cache = ImageCache(ops, config.fit.cache_bytes)
  splits = prepare.checked_splits(config.data, config.check.enforce, checks.MIN_IMAGES, cache.add)
  fit_records, unseen_records = split_off(splits.train, config.seed, parts)
  with (
    logging.silence('uadjax'),  # The log would name thresholds of distances as those of maps.
    record_distances() as held_out,
    tempfile.TemporaryDirectory() as folder,
  ):
    training.train(config, splits._replace(train=fit_records), cache, Path(folder))
    model = model_dir.load(Path(folder) / 'model')
    test = scoring.score_records(
      lambda fitted, batch: model.score(fitted, batch.image), model.fitted,
      [*splits.test, *unseen_records], cache, config.evaluate.batch_size,
      meshes.make_mesh(config.device, config.mesh.data, 0), config.detector.image_score,
    )  # fmt: skip
    images_by_name = {'held_out': _to_arrays(held_out), 'test': _to_arrays(test)}
  arrays = {
    f'{kind}_{name}': values
    for kind, images in images_by_name.items()
    for name, values in images._asdict().items()
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path) as file:
    np.savez(file, size=np.array([ops.height, ops.width]), **arrays)


def _to_arrays(scored_records: Iterable[scoring.ScoredRecord]) -> Images:
  rows = [(str(s.record.path), s.record.defect, s.score, s.anomaly_map) for s in scored_records]
  return Images._make(np.array(column) for column in zip(*rows, strict=True))


def load_run(path: Path) -> StoredRun:
  """Load the results of a run."""
  with np.load(path) as arrays:
    held_out, test = (
      Images._make(arrays[f'{kind}_{name}'] for name in Images._fields)
      for kind in ('held_out', 'test')
    )
    height, width = arrays['size'].tolist()
  return StoredRun(held_out, test, (height, width))


def estimate_bytes(config: settings.Settings) -> int:
  """Return the size of the distances of all images of a run."""
  ops = transforms.parse(config.data.ops)
  backbone = backbones.build(config.backbone.name, tuple(config.detector.layers))
  h, w, _ = base.stage_shapes(backbone, ops.height, ops.width)[0]
  num_images = sum(map(len, layouts.load(config.data.root, config.data.category)))
  return num_images * h * w * np.dtype(np.float32).itemsize


def missing_runs(flags: argparse.Namespace) -> dict[Path, settings.Settings]:
  """Return the settings of the runs that are not stored yet, by the path of their file."""
  overrides: dict[str, object] = {'data.root': flags.root, 'backbone.weights': flags.weights}
  overrides |= dict(text.split('=', 1) for text in flags.overrides)
  groups = flags.categories.split(',')
  categories = [name for group in groups for name in layouts.expand(flags.root, group)]
  seeds = range(subprocess_runs.FIRST_SEED, subprocess_runs.FIRST_SEED + flags.seeds)
  configs = {}
  for run in sweep.plan_runs(flags.detectors.split(','), categories, seeds, overrides):
    values = {**overrides, 'data.category': run.category, 'seed': run.seed}
    config = settings.load(run.config, values.items())
    if not detectors.learns_in_one_pass(config.detector.name):
      raise SystemExit(f'{run.config} has no leave-one-out scores; choose padim or patchcore.')
    label = sweep.config_label(run.config).replace(':', '_')
    fit = f'1_of_{flags.parts}_unseen' if flags.parts else 'all'
    name = '_'.join([label, Path(flags.weights).stem, fit, *flags.overrides])
    path = flags.workdir / name / run.category / f'seed_{run.seed}.npz'
    if not path.is_file():
      configs[path] = resolve_backbone.resolve_backbone(config, flags.workdir)
  return configs


def collect(flags: argparse.Namespace) -> None:
  """Make the missing runs, one after another, with a line of progress for each."""
  meshes.use_cores_as_devices()
  configs = missing_runs(flags)
  megabytes = sum(map(estimate_bytes, configs.values())) / 1e6
  print(f'{len(configs)} runs to make, about {megabytes:.0f} MB in {flags.workdir}', flush=True)
  for number, (path, config) in enumerate(configs.items(), 1):
    start = time.perf_counter()
    make_run(config, flags.parts, path)
    jax.clear_caches()
    seconds, megabytes = time.perf_counter() - start, path.stat().st_size / 1e6
    print(f'[{number}/{len(configs)}] {path}: {seconds:.0f} s, {megabytes:.1f} MB', flush=True)
