"""Command `python -m uadjax.main --config=FILE [--workdir=DIR] [--config.KEY=VALUE ...]`."""

import argparse
from collections.abc import Sequence
import contextlib
from pathlib import Path
import sys

from uadjax import errors, experiment
from uadjax.distributed import mesh, processes
from uadjax.errors import Interrupted, UserError
from uadjax.experiment import flags, validation
from uadjax.system import logging, memory
from uadjax.training import settings, workdir as workdirs


def main(argv: Sequence[str] | None = None) -> int:
  """Run the experiment that the flags describe, and return the exit status, 0 or 1."""
  parser = argparse.ArgumentParser('python -m uadjax.main', allow_abbrev=False)
  parser.description = 'Run an experiment.'
  parser.epilog = (
    'Example: --config=configs/stfpm.py --config.data.root=DIR --config.data.category=NAME. '
    f'Modes (--config.mode=): {", ".join(settings.MODES)}. All keys: uadjax config.'
  )
  config_help = 'FILE.py, FILE.py:variant, a config.yaml, or one of configs/ by name: patchcore'
  override_help = 'override a key, such as --config.fit.steps=100'
  workdir_help = 'default: runs/<detector>_<category or folder>'
  parser.add_argument('--config', required=True, metavar='FILE', help=config_help)
  parser.add_argument('--config.KEY', metavar='VALUE', help=override_help)
  parser.add_argument('--workdir', type=Path, metavar='DIR', help=workdir_help)
  overrides, other_arguments = flags.extract_overrides(sys.argv[1:] if argv is None else argv)
  arguments = parser.parse_args(other_arguments)
  memory.retain_freed_pages()
  mesh.use_cores_as_devices()
  workdir, mode = arguments.workdir, dict(overrides).get('mode', 'train')
  # A failure before the config is loaded goes to the result file of this mode.
  mode, has_started = mode if mode in settings.MODES else 'train', False
  try:
    with errors.setting_format(flags.format_setting):
      config = settings.load(arguments.config, overrides)
      mode = config.mode
      workdir = workdir or workdirs.default_workdir(config, arguments.config.partition(':')[2])
      processes.join(
        config.hosts,
        lambda error, owns_workdir, directory=workdir: _report_failure(
          error, directory if owns_workdir else None, mode
        ),
      )
      with processes.process_workdir(workdir) as workdir:
        validation.validate(config, workdir)
        has_started = True
        result = experiment.run(config, workdir)
      processes.leave()
  except (Exception, Interrupted) as failure:
    error = processes.explain(failure)
    _report_failure(error, workdir, mode, has_started)
    if processes.is_multiprocess():
      processes.exit_process()
    return 1
  # A mode that finishes may still have found invalid data or unreadable images.
  return 0 if result.get('check_pass', True) and not result.get('failed') else 1


def _report_failure(
  error: Exception | Interrupted, workdir: Path | None, mode: str, has_started: bool = True
) -> None:
  """Write the error of a run to the console, its result file and, if it has started, its log."""
  log_path = workdir / f'{mode}.log' if workdir and has_started else None
  if isinstance(error, UserError | Interrupted):
    # An error from another thread has no format, as `setting_format` applies to one thread only.
    error.setting_format = flags.format_setting
  if isinstance(error, UserError | OSError | Interrupted):
    logging.report_error(error, log_path)
  else:
    logging.report_internal_error(error, log_path)
  if workdir and workdir.is_dir():
    with contextlib.suppress(OSError):  # The disk may be full or read-only.
      workdirs.write_failure(workdir, mode, error)


if __name__ == '__main__':
  sys.exit(main())
