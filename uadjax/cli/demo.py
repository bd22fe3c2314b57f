"""The command `uadjax demo`: writes a synthetic dataset."""

from uadjax.cli import console, runtime
from uadjax.cli.options import DemoOptions
from uadjax.data import demo
from uadjax.errors import ConfigError, UnknownName
from uadjax.system import progress


def run(options: DemoOptions) -> None:
  """Write the demo dataset; refuse to replace existing folders without --overwrite."""
  runtime.require_writable('DIR', options.directory)
  categories = demo.expand_category(options.category)
  _require_valid(options, categories)
  folders = [options.directory / category for category in categories]
  existing_folders = [folder for folder in folders if folder.exists()]
  if existing_folders and not options.overwrite:
    raise ConfigError(f'{existing_folders[0]} exists; name another folder, or pass --overwrite.')
  if options.category == demo.LARGE_CATEGORY:
    demo.write_large_dataset(options.directory, options.seed, progress=progress.show_progress)
  else:
    size = 256 if options.size is None else options.size
    demo.write_dataset(
      options.directory,
      options.seed,
      size=size,
      categories=categories,
      progress=progress.show_progress,
    )
  for folder in folders:
    console.print_line(f'Written: {runtime.to_printable(str(folder))}')


def _require_valid(options: DemoOptions, categories: list[str]) -> None:
  """Raise an error for an unknown category, or a size where it cannot be chosen."""
  allowed = [*demo.CATEGORIES, demo.LARGE_CATEGORY, 'textures', 'objects', 'all']
  if options.category not in allowed:
    message = f'The demo dataset has no category {options.category!r}; choose from {allowed}.'
    raise UnknownName(message, allowed=allowed)
  if options.category == demo.LARGE_CATEGORY and options.size is not None:
    height, width = demo.LARGE_SIZE
    message = f'Images of {demo.LARGE_CATEGORY} have {width} x {height} pixels; leave --size out.'
    raise ConfigError(message)
