"""The command `uadjax fit`: fits or extends a model, then prints its metrics and output paths."""

from uadjax.cli import console, result_text, runtime
from uadjax.cli.options import FitOptions
from uadjax.distributed import mesh
from uadjax.experiment import fit_model
from uadjax.model import calibration


def run(options: FitOptions) -> None:
  """Fit or extend a model, then print its metrics and the paths of its report and directory."""
  overrides = runtime.parse_overrides(options.override)
  if options.category:
    overrides['data.category'] = options.category
  mesh.use_cores_as_devices()
  result, run_dir = fit_model.run_training(
    options.dataset, options.model, options.workdir, options.device, options.extend, overrides
  )
  if options.as_json:
    console.print_json({'workdir': str(run_dir), **result})
    return
  metrics = result.get('metrics')
  if metrics:
    console.print_line(result_text.metrics_table(metrics))
  if drift := result.get('drift'):
    before, after = (
      f'{value:.4g}' if value < calibration.ABOVE_ALL_SCORES else 'none'
      for value in (drift['image_threshold_before'], drift['image_threshold_after'])
    )
    images = f'{result["summary"]["images"]} good images, the earlier ones included'
    console.print_line(f'Learned from {images}: image threshold {after}, before {before}.')
  if metrics and (report_path := run_dir / 'report.html').is_file():
    console.print_line(f'Report: {runtime.to_printable(str(report_path))}')
  console.print_line(f'Model: {runtime.to_printable(str(run_dir / "model"))}')
