"""The command `uadjax export`: writes a verified graph for another runtime."""

from uadjax.cli import console, runtime
from uadjax.cli.options import ExportOptions
from uadjax.export import exporter, settings
from uadjax.model import model_dir


def run(options: ExportOptions) -> None:
  """Export a model, and print the path and the verification of the graph."""
  camera_size = settings.parse_size(options.include_resize or '')
  exported = exporter.export(
    model_dir.load(options.model_dir),
    options.format,
    options.output,
    options.batch,
    camera_size,
    options.images,
    options.quantize or '',
  )
  if options.as_json:
    console.print_json(exported.to_dict())
  else:
    console.print_line(runtime.to_printable(str(exported)))
