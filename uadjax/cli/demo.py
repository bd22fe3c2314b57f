"""The command `uadjax demo`: writes a synthetic dataset."""

from uadjax.cli import console, runtime
from uadjax.cli.options import DemoOptions
from uadjax.data import demo
from uadjax.errors import ConfigError
from uadjax.system import progress


def run(options: DemoOptions) -> None:
  """Write the demo dataset; refuse to replace existing folders without --overwrite."""
  runtime.require_writable('DIR', options.directory)
  folders = [options.directory / category for category in demo.CATEGORIES]
  existing_folders = [folder for folder in folders if folder.exists()]
  if existing_folders and not options.overwrite:
    raise ConfigError(f'{existing_folders[0]} exists; name another folder, or pass --overwrite.')
  demo.write_dataset(
    options.directory, options.seed, size=options.size, progress=progress.show_progress
  )
  for folder in folders:
    console.print_line(f'Written: {runtime.to_printable(str(folder))}')
