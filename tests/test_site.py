"""The documentation site: built from the repository, with warnings as errors."""

from pathlib import Path
import re
import subprocess
import sys

import pytest
from sphinx.util import inventory
import typer.main

import uadjax
from uadjax.cli import commands

pytestmark = pytest.mark.slow
_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """Built as the documentation says."""
  folder = tmp_path_factory.mktemp('site')
  command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', '.']
  run = subprocess.run([*command, str(folder)], cwd=_ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return folder


def test_every_public_name_is_documented(site):
  with (site / 'objects.inv').open('rb') as file:
    objects = inventory.InventoryFile.load(file, '', lambda base, path: path)
  names = {name for kind, of_kind in objects.items() if kind.startswith('py:') for name in of_kind}
  public = {f'uadjax.{name}' for name in uadjax.__all__ if not name.startswith('_')}
  elsewhere = {
    'uadjax.Detector': 'uadjax.detectors.base.Detector',
    'uadjax.UserError': 'uadjax.errors.UserError',
  }
  assert {elsewhere.get(name, name) for name in public} <= names
  assert {f'configs.{path.stem}' for path in (_ROOT / 'configs').glob('[!_]*.py')} <= names


def test_every_command_is_documented(site):
  page = (site / 'docs/reference/command_line.html').read_text()
  titles = [re.sub('<[^>]+>', '', title) for title in re.findall('<h2>(.*?)</h2>', page)]
  documented = {title.removeprefix('uadjax ').rstrip('¶') for title in titles}
  assert documented == set(typer.main.get_command(commands.app).commands)


def test_the_guides_and_notebooks_are_on_it(site):
  for folder, ending in (('docs', '.md'), ('colabs', '.ipynb')):
    for path in (_ROOT / folder).glob(f'*{ending}'):
      assert (site / folder / f'{path.stem}.html').is_file(), path
