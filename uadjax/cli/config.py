"""The command `uadjax config`: every setting with its type, default, bounds and one sentence."""

from rich import text

from uadjax import config as configs
from uadjax.cli import console
from uadjax.cli.options import ConfigOptions
from uadjax.training import settings


def run(options: ConfigOptions) -> None:
  """Print one setting, those of a section, or without a key all.

  Raises:
    ConfigError: there is no such setting; the message suggests the closest.
  """
  catalog, key = settings.catalog(), options.key
  entries = [e for e in catalog if key in ('', e.info.key) or e.info.key.startswith(f'{key}.')]
  if not entries:
    raise configs.unknown_key(key, tuple(e.info.key for e in catalog))
  for entry in entries:
    info = entry.info
    if options.as_json:
      limits = {name: value for name, value in info.limits._asdict().items() if name != 'check'}
      fields = {'key': info.key, 'type': info.type.__name__, 'optional': info.is_optional}
      console.print_json({**fields, **limits, 'default': entry.defaults})
      continue
    default = f' = {entry.format_default()}'
    console.print_line(text.Text.assemble((info.key, 'bold'), default, (f'  {info}', 'dim')))
    console.print_line(f'  {info.limits.help}')
