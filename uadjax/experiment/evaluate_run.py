"""A model against a test set, and all that is left of it for people: log, curves, report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import tempfile
import time
from typing import Any

from uadjax.data import prepare
from uadjax.data.records import Record
from uadjax.distributed import mesh as meshes
from uadjax.errors import ConfigError
from uadjax.evaluation import curves, evaluate, report as reports
from uadjax.evaluation.report import gallery, provenance
from uadjax.model import model_dir as model_dirs
from uadjax.system import logging
from uadjax.training import workdir as workdirs
from uadjax.types import Config

_NUM_REPORT_PICTURES = 200  # In a report that somebody asks for.


def evaluate_and_report(
  model: model_dirs.Model,
  test_records: Sequence[Record],
  config: Config,
  workdir: Path,
  timing: Mapping[str, float] | None = None,
  report_path: Path | None = None,
) -> dict[str, Any]:
  """Evaluate; leave scores, pictures, curves and the report; what the result file tells.

  Args:
    model: what is evaluated.
    test: what on; nothing is done without any.
    config: of the run.
    workdir: where things are left.
    timing: seconds that it took to make the model, for the report.
    page: the report; None for report.html in `workdir`.
  """
  result: dict[str, Any] = {'weights': model.weights._asdict()}
  if not test_records:
    logging.LOG.info('There are no test images: the model is not evaluated.')
    return result
  options, run_label = config.evaluate, workdirs.category_name(config)
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  mask_threshold = config.data.mask_threshold
  start = time.perf_counter()
  evaluation = evaluate.evaluate(
    model, test_records, mesh, options.batch_size, mask_threshold, workdir, options.save_pictures
  )
  evaluate_s = time.perf_counter() - start
  titled_curves = evaluation.curve_data._replace(
    title=f'{model.name} on {len(test_records)} test images of {run_label}'
  )
  curves.draw(workdir / 'curves', titled_curves)
  logging.LOG.info('%s: %s', run_label, _describe_metrics(evaluation.metrics))
  logging.LOG.info('%s', curves.summary(titled_curves))
  if options.report_pictures:
    picture_indices = gallery.choose(
      test_records, titled_curves.scores, model.thresholds, options.report_pictures
    )
    pictures = gallery.make_pictures(
      test_records,
      evaluation.anomaly_maps,
      picture_indices,
      model.ops,
      model.thresholds.pixel_threshold,
      mask_threshold,
    )
    report_metadata = provenance.collect(
      model, test_records, {**(timing or {}), 'evaluate_s': evaluate_s}
    )
    report_path = report_path or workdir / 'report.html'
    reports.write(
      report_path, titled_curves, evaluation.metrics, test_records, pictures, report_metadata
    )
    logging.LOG.info('Look at %s', report_path)
  return {'metrics': evaluation.metrics, 'timing': {'evaluate_s': evaluate_s}, **result}


def write_report(
  model_dir: Path, dataset: Path, category: str, report_path: Path, device: str
) -> dict[str, Any]:
  """Evaluate a model on a data set, and leave nothing but the report; the metrics.

  What the check finds wrong is told and left out.

  Args:
    model_dir: of the model.
    dataset: the root of a data set in any layout.
    category: below it; '' where the root is one itself.
    output: the page, which is replaced; beside it comes a JSON file of the same stem.
    device: as `device` of a configuration.
  """
  if report_path.suffix not in ('.html', '.htm') or report_path.is_dir():
    raise ConfigError(
      f'{report_path} is no name of a page; name a file such as {report_path / "report.html"}.'
    )
  json_path = report_path.with_suffix('.json')
  if json_path.exists() and not report_path.exists():
    raise ConfigError(
      f'{json_path} is there already, and no report; name another page than {report_path}.'
    )
  model = model_dirs.load(model_dir)
  config = model.config.copy_and_resolve_references().unlock()
  config.device = device
  config.data.update({'root': str(dataset), 'category': category, 'layout': 'auto'})
  config.evaluate.update({'save_pictures': 0, 'report_pictures': _NUM_REPORT_PICTURES})
  config.check.enforce = False
  test_records = prepare.checked_test_set(config)
  report_path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    return evaluate_and_report(model, test_records, config, Path(folder), report_path=report_path)[
      'metrics'
    ]


def _describe_metrics(metrics: Mapping[str, Any]) -> str:
  metric_texts = [
    f'{key} {value:.4f}{" (oracle)" if key in metrics["oracles"] else ""}'
    for key, value in metrics.items()
    if isinstance(value, float)
  ]
  counts = metrics['counts']
  image_counts = f'{counts["good"]} good and {counts["defective"]} defective test images'
  return f'{", ".join(metric_texts) or "an AUROC needs both"} ({image_counts})'
