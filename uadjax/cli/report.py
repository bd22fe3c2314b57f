"""The command `uadjax report`: evaluates a model on a dataset."""

import typer

from uadjax.cli import console, result_text, runtime
from uadjax.cli.options import ReportOptions
from uadjax.distributed import mesh
from uadjax.experiment import evaluate_run


def run(options: ReportOptions) -> None:
  """Write the report, and print the metrics and its path."""
  if options.output.is_dir():
    message = (
      f'{options.output} is a folder; name a file, such as {options.output / "report.html"}.'
    )
    raise typer.BadParameter(message, param_hint='--output')
  runtime.require_writable('--output', options.output.parent)
  mesh.use_cores_as_devices()
  metrics = evaluate_run.write_report(
    options.model_dir,
    options.dataset,
    options.category,
    options.output,
    options.device or 'auto',
    options.part_pattern,
  )
  if options.as_json:
    console.print_json(metrics)
  else:
    console.print_line(result_text.metrics_table(metrics))
    console.print_line(f'Report: {runtime.to_printable(str(options.output))}')
