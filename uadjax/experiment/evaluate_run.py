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

_PICTURES = 200  # In a report that somebody asks for.


def assess(
  model: model_dirs.Model,
  test: Sequence[Record],
  config: Config,
  workdir: Path,
  timing: Mapping[str, float] | None = None,
  page: Path | None = None,
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
  told: dict[str, Any] = {'weights': model.weights._asdict()}
  if not test:
    logging.LOG.info('There are no test images: the model is not evaluated.')
    return told
  options, name = config.evaluate, workdirs.label(config)
  mesh = meshes.make_mesh(config.device, config.mesh.data, 0)
  threshold = config.data.mask_threshold
  began = time.perf_counter()
  found = evaluate.evaluate(
    model, test, mesh, options.batch_size, threshold, workdir, options.save_pictures
  )
  seconds = time.perf_counter() - began
  drawn = found.curves._replace(title=f'{model.name} on {len(test)} test images of {name}')
  curves.draw(workdir / 'curves', drawn)
  logging.LOG.info('%s: %s', name, _told(found.metrics))
  logging.LOG.info('%s', curves.summary(drawn))
  if options.report_pictures:
    chosen = gallery.choose(test, drawn.scores, model.limits, options.report_pictures)
    shots = gallery.shots(test, found.maps, chosen, model.ops, model.limits.pixel, threshold)
    about = provenance.of(model, test, {**(timing or {}), 'evaluate_s': seconds})
    page = page or workdir / 'report.html'
    reports.write(page, drawn, found.metrics, test, shots, about)
    logging.LOG.info('Look at %s', page)
  return {'metrics': found.metrics, 'timing': {'evaluate_s': seconds}, **told}


def report(
  model_dir: Path, dataset: Path, category: str, output: Path, device: str
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
  if output.suffix not in ('.html', '.htm') or output.is_dir():
    raise ConfigError(
      f'{output} is no name of a page; name a file such as {output / "report.html"}.'
    )
  twin = output.with_suffix('.json')
  if twin.exists() and not output.exists():
    raise ConfigError(f'{twin} is there already, and no report; name another page than {output}.')
  model = model_dirs.load(model_dir)
  config = model.config.copy_and_resolve_references().unlock()
  config.device = device
  config.data.update({'root': str(dataset), 'category': category, 'layout': 'auto'})
  config.evaluate.update({'save_pictures': 0, 'report_pictures': _PICTURES})
  config.check.enforce = False
  test = prepare.checked_test_set(config)
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    return assess(model, test, config, Path(folder), page=output)['metrics']


def _told(found: Mapping[str, Any]) -> str:
  numbers = [
    f'{key} {value:.4f}{" (oracle)" if key in found["oracles"] else ""}'
    for key, value in found.items()
    if isinstance(value, float)
  ]
  counts = found['counts']
  both = f'{counts["good"]} good and {counts["defective"]} defective test images'
  return f'{", ".join(numbers) or "an AUROC needs both"} ({both})'
