"""The command `uadjax threshold`: shows the thresholds of a model, or writes new ones into it."""

from uadjax.cli import console, runtime
from uadjax.cli.options import ThresholdOptions
from uadjax.distributed import mesh
from uadjax.experiment import model_thresholds

_CALIBRATE_SETTINGS = ('budget', 'review_budget', 'labeled', 'method', 'miss_cost')
_THRESHOLDS = ('image_threshold', 'review_threshold', 'pixel_threshold')


def run(options: ThresholdOptions) -> None:
  """Change the thresholds if an option says how, and print them with the trade-off."""
  calibrate_values, thresholds = (
    {name: value for name in names if (value := getattr(options, name)) is not None}
    for names in (_CALIBRATE_SETTINGS, _THRESHOLDS)
  )
  if calibrate_values or thresholds:
    mesh.use_cores_as_devices()
    overview = model_thresholds.change(
      options.model_dir, calibrate_values, thresholds, options.device or 'auto'
    )
  else:
    overview = model_thresholds.show(options.model_dir)
  if options.as_json:
    console.print_json(overview.to_dict())
  else:
    console.print_line(runtime.to_printable(str(overview), allowed_chars='\n'))
