"""The command `python -m uadjax.main`: its flags, its error messages and its exit status."""

import argparse
from collections.abc import Sequence
import contextlib
import difflib
from pathlib import Path

from uadjax import errors, experiment
from uadjax.distributed import mesh, processes
from uadjax.errors import Interrupted, UserError
from uadjax.experiment import flags, validation
from uadjax.system import logging, memory, signals
from uadjax.training import settings, workdir as workdirs

_FLAGS = '--config', '--config.KEY', '--workdir', '--verbose', '--quiet', '--help'


def run(argv: Sequence[str]) -> int:
  """Run the experiment that the flags describe, and return the exit status; see `uadjax.main`."""
  overrides, other_arguments = flags.extract_overrides(argv)
  arguments = _parse(other_arguments)
  with logging.console_level(arguments.verbose, arguments.quiet):
    return _run(arguments.config, arguments.workdir, overrides)


def _parse(words: Sequence[str]) -> argparse.Namespace:
  """Parse all flags but overrides; exit with a usage message and status 2 if one is invalid."""
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
  verbosity = parser.add_mutually_exclusive_group()
  verbose_help = 'show details, and tracebacks of errors'
  verbosity.add_argument('-v', '--verbose', action='store_true', help=verbose_help)
  verbosity.add_argument('--quiet', action='store_true', help='show only warnings and errors')
  arguments, unknown = parser.parse_known_args(words)
  if unknown:
    flag = unknown[0].partition('=')[0]
    matches = difflib.get_close_matches(flag, _FLAGS, n=1)
    parser.error(f'unknown argument {flag}' + (f'; did you mean {matches[0]}?' if matches else '.'))
  return arguments


def _run(config_name: str, workdir: Path | None, overrides: Sequence[tuple[str, str]]) -> int:
  """Run an experiment, and return the exit status."""
  memory.retain_freed_pages()
  mesh.use_cores_as_devices()
  mode = dict(overrides).get('mode', 'train')
  # A failure before the config is loaded goes to the result file of this mode.
  mode, has_started = mode if mode in settings.MODES else 'train', False
  try:
    with errors.setting_format(flags.format_setting):
      with signals.raise_on_signal():
        config = settings.load(config_name, overrides)
      mode = config.mode
      workdir = workdir or workdirs.default_workdir(config, config_name)
      processes.join(
        config.hosts,
        lambda error, owns_workdir, directory=workdir: _report_failure(
          error, directory if owns_workdir else None, mode
        ),
      )
      with (
        processes.process_workdir(workdir) as workdir,
        signals.raise_on_signal(),
        workdirs.lock(workdir, config),
      ):
        validation.validate(config, workdir)
        has_started = True
        result = experiment.run(config, workdir)
      processes.leave()
  except (Exception, Interrupted) as failure:
    error = processes.explain(failure)
    is_in_use = isinstance(error, workdirs.WorkdirLocked)  # Its files are those of another run.
    _report_failure(error, None if is_in_use else workdir, mode, has_started)
    if processes.is_multiprocess():
      processes.exit_process(errors.exit_status(error))
    return errors.exit_status(error)
  # A mode that finishes may still have found invalid data or unreadable images.
  return 0 if result.get('check_pass', True) and not result.get('failed') else errors.EXIT_FAILURE


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
