"""A model fitted to a data set, and what to do with it next: what `uadjax fit` does."""

from collections.abc import Mapping
from pathlib import Path

from rich import box, table

from uadjax.cli import console, runtime
from uadjax.experiment import fit_model

_SHOWN = {
  'image_auroc': 'image AUROC',
  'pixel_auroc': 'pixel AUROC',
  'au_pro': 'AU-PRO',
  'image_f1_max': 'image F1-max',
}


def fit(
  dataset: Path,
  model: str,
  workdir: Path | None,
  device: str | None,
  overrides: Mapping[str, str],
  as_json: bool,
) -> None:
  """Fit, and tell what came out."""
  with runtime.ready():
    result, where = fit_model.carried_out(dataset, model, workdir, device, overrides)
  if as_json:
    console.tell_json({'workdir': str(where), **result})
    return
  metrics = result.get('metrics')
  if metrics:
    rows = table.Table(box=box.SIMPLE_HEAD)
    rows.add_column('on the test images')
    rows.add_column('', justify='right')
    for key, title in _SHOWN.items():
      if (value := metrics[key]) is not None:
        rows.add_row(title, f'{value:.3f}')
    console.tell(rows)
  if metrics and (page := where / 'report.html').is_file():
    console.tell(f'Report: {runtime.printable(str(page))}')
  console.tell(f'Model: {runtime.printable(str(where / "model"))}')
