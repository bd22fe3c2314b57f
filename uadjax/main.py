"""The doorway: `python -m uadjax.main --config=FILE [--workdir=DIR] [--config.key=value ...]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from uadjax import config as configs, files, hostmemory, interrupts, run, telemetry
from uadjax.types import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Run the experiment that the flags describe; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m uadjax.main', description='Run an experiment.', allow_abbrev=False
  )
  parser.add_argument(
    '--config', required=True, metavar='FILE', help='FILE.py, FILE.py:variant, or a config.yaml'
  )
  parser.add_argument(
    '--config.KEY', metavar='VALUE', help='override a key, such as --config.fit.steps=100'
  )
  parser.add_argument(
    '--workdir', type=Path, metavar='DIR', help='default: runs/<detector>_<category>'
  )
  overrides, rest = configs.split_overrides(sys.argv[1:] if argv is None else argv)
  arguments = parser.parse_args(rest)
  workdir, mode = arguments.workdir, dict(overrides).get('mode')
  mode = mode if mode in run.MODES else 'train'  # Of the file that tells of a failure.
  hostmemory.keep_pages()
  try:
    config = configs.load(arguments.config, overrides)
    mode = run.mode(config.mode)
    workdir = workdir or run.default_workdir(config)
    workdir.mkdir(parents=True, exist_ok=True)
    with interrupts.raised(), telemetry.logging_to(workdir / f'{mode}.log'):
      result = run.run(config, workdir)
    run.leave(workdir, mode, result)
  except (UserError, OSError) as error:  # A full disk, say, is nothing to show a traceback for.
    print(f'{type(error).__name__}: {error}', file=sys.stderr)
    if workdir and workdir.is_dir():
      kind = {'done_flag': False, 'err_type': type(error).__name__, 'err_msg': str(error)}
      files.write_json(workdir / f'{mode}_result.json', kind)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
