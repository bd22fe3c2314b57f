"""The documentation site: `sphinx-build -W -c docs . build/site`, from the root of the repository.

The repository is its source, so that links between its files are the site's: README is the first
page, experiments/README.md the measurements. Nothing is written twice; what a page does not have on
GitHub is added when it is read (the table of contents, the command line's help).
"""

import os
from pathlib import Path
import re
import shutil
import sys
from typing import Any

from sphinx import application
import typer.cli

import uadjax
from uadjax.cli import commands
from uadjax.training import settings

sys.path.insert(0, str(Path(__file__).parent.parent))  # For configs/.

project = 'uadjax'
author = 'the uadjax team'
version = release = uadjax.__version__

root_doc = 'README'
include_patterns = ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'docs/*.md', 'docs/**/*.md']
include_patterns += ['experiments/README.md', 'colabs/*.ipynb']
exclude_patterns = ['**/node_modules']
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']

myst_heading_anchors = 3
nb_execution_mode = 'off'  # The tests execute the notebooks; here they are as committed.
suppress_warnings = ['mystnb.unknown_mime_type']

smartquotes = False  # Two dashes are an option.
default_role = 'code'  # Docstrings have `names` as Markdown does.
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = 'furo'
html_show_copyright = False
html_title = f'uadjax {version}'

_CONTENTS = """
```{toctree}
:hidden:
:caption: Guides

docs/train
docs/data
docs/detectors
docs/small_defects
docs/use
docs/thresholds
docs/deploy
docs/serve
docs/devices
docs/new_detector
docs/pod
docs/examples/cluster/README
docs/examples/browser/README
docs/examples/cpp/README
docs/examples/service/README
```

```{toctree}
:hidden:
:caption: Notebooks

colabs/quickstart
colabs/your_own_data
colabs/mvtec_ad_table
colabs/accelerators
```

```{toctree}
:hidden:
:caption: Reference

docs/reference/python
docs/reference/command_line
docs/reference/configuration
docs/reference/settings
docs/reference/detectors
docs/reference/backbones
docs/reference/numerics
docs/reference/metrics
docs/reference/data
docs/reference/export
```

```{toctree}
:hidden:
:caption: Measurements

experiments/README
docs/comparison
CHANGELOG
CONTRIBUTING
```
"""


def _help() -> str:
  """The help of every command, in Markdown."""
  os.environ.setdefault('COLUMNS', '100')
  command = typer.main.get_command(commands.app)
  context = typer.Context(command, info_name='uadjax')
  told = typer.cli.get_docs_for_click(obj=command, ctx=context, name='uadjax')
  told = told.partition('\n')[2]  # The page has a title.
  # The examples at the end of each: a block of code.
  return re.sub(r'^\s*\[cyan\](.*?)\[/\]$', r'    \1', told, flags=re.MULTILINE).replace(
    'Examples\n', 'Examples:\n\n'
  )


def _settings() -> str:
  """Return a table of the settings of each section, in Markdown."""
  sections: dict[str, list[str]] = {}
  for entry in settings.catalog():
    info, section = entry.info, entry.info.key.rpartition('.')[0] or 'run'
    cells = [f'`{info.key}`', entry.format_default(), str(info), info.limits.help]
    row = ' | '.join(cell.replace('|', '&#124;') for cell in cells)
    sections.setdefault(section, []).append(f'| {row} |')
  head = '| key | default | type and bounds | |\n|---|---|---|---|\n'
  return ''.join(f'\n## {name}\n\n{head}' + '\n'.join(rows) for name, rows in sections.items())


_ADDED = {
  root_doc: lambda: _CONTENTS,
  'docs/reference/command_line': _help,
  'docs/reference/settings': _settings,
}


def _complete(app: application.Sphinx, page: str, source: list[str]) -> None:
  if page in _ADDED:
    source[0] += _ADDED[page]()


def _passed_over(
  app: application.Sphinx, what: str, name: str, member: Any, skip: bool, options: Any
) -> bool | None:
  """Fields of named tuples: their docstring, `Alias for field number 0`, tells nothing."""
  return True if type(member).__name__ == '_tuplegetter' else None


def _first(app: application.Sphinx, failure: Exception | None) -> None:
  """What a web server shows where no page is named."""
  page = Path(app.outdir) / f'{root_doc}.html'
  if page.is_file():
    shutil.copy(page, page.with_name('index.html'))


def setup(app: application.Sphinx) -> None:
  """Connect the hooks."""
  app.connect('source-read', _complete)
  app.connect('autodoc-skip-member', _passed_over)
  app.connect('build-finished', _first)
