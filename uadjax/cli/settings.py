"""The command `uadjax config`: every setting with its type, default, bounds and one sentence."""

from rich import text

from uadjax import config as configs
from uadjax.cli import console
from uadjax.training import settings


def show_settings(key: str, as_json: bool) -> None:
  """Print one setting, those of a section, or with an empty key all.

  Raises:
    ConfigError: there is no such setting; the message suggests the closest.
  """
  catalog = settings.catalog()
  entries = [e for e in catalog if key in ('', e.info.key) or e.info.key.startswith(f'{key}.')]
  if not entries:
    raise configs.unknown_key(key, tuple(e.info.key for e in catalog))
  for info, defaults in entries:
    entry = settings.CatalogEntry(info, defaults)
    if as_json:
      limits = {name: value for name, value in info.limits._asdict().items() if name != 'check'}
      fields = {'key': info.key, 'type': info.type.__name__, 'optional': info.is_optional}
      console.print_json({**fields, **limits, 'default': defaults})
      continue
    console.print_line(
      text.Text.assemble((info.key, 'bold'), f' = {entry.format_default()}', (f'  {info}', 'dim'))
    )
    console.print_line(f'  {info.limits.help}')
