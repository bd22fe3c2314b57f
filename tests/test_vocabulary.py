"""The vocabulary as laws: a name says what a thing is, a docstring is understood alone."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [
  path
  for name in ('uadjax', 'configs', 'experiments', 'tests')
  for path in (ROOT / name).rglob('*.py')
]

# Participles and pronouns say what happened to a thing, or point at it; none says what it is.
NOT_NAMES = frozenset(
  {
    *('apart', 'around', 'asked', 'dealt', 'each', 'falls', 'found', 'given', 'heard', 'hearts'),
    *('here', 'kept', 'known', 'made', 'mine', 'moved', 'one', 'own', 'said', 'seen', 'settle'),
    *('settled', 'shown', 'some', 'stand_ins', 'tell', 'there', 'told', 'wanted', 'whose'),
  }
)
# Old words for known things: a scatter, a heartbeat, finalizing, a coreset of a held-out fold.
NOT_WORDS = re.compile(r'\b(told|dealt|hearts|settle|stand_ins)\b')
OPENINGS = re.compile(r'(What|The same|And back)\b')
# A test is named after its law, whose subject is a thing.
PRONOUN_TESTS = re.compile(r'test_(it|they|those|what|whatever|who|whoever|whose)_')


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
  """Line and identifier of whatever is bound: functions, parameters, fields, variables."""
  for node in ast.walk(tree):
    match node:
      case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
        yield node.lineno, node.name
      case ast.arg():
        yield node.lineno, node.arg
      case ast.Name(ctx=ast.Store()):
        yield node.lineno, node.id
      case ast.Attribute(ctx=ast.Store()):
        yield node.lineno, node.attr
      case ast.alias(asname=str(name)):
        yield node.lineno, name
      case (
        ast.ExceptHandler(name=str(name))
        | ast.MatchAs(name=str(name))
        | ast.MatchStar(name=str(name))
      ):
        yield node.lineno, name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
  """Line and text of the docstrings of a module, its classes and its functions."""
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  for node in ast.walk(tree):
    if isinstance(node, kinds) and (text := ast.get_docstring(node)):
      yield getattr(node, 'lineno', 1), text


def misnamed(source: str) -> list[tuple[int, str]]:
  return [
    (line, name)
    for line, name in names(ast.parse(source))
    if name.strip('_').lower() in NOT_NAMES or PRONOUN_TESTS.match(name)
  ]


def misdescribed(source: str) -> list[tuple[int, str]]:
  tree = ast.parse(source)
  return [(line, text.splitlines()[0]) for line, text in docstrings(tree) if OPENINGS.match(text)]


def everywhere(findings) -> list[str]:
  return [
    f'{path.relative_to(ROOT)}:{line} {text}'
    for path in FILES
    for line, text in findings(path.read_text())
  ]


def test_names_say_what_a_thing_is():
  assert not (wrong := everywhere(misnamed)), '\n'.join(wrong)


def test_docstrings_are_understood_without_the_one_above():
  assert not (wrong := everywhere(misdescribed)), '\n'.join(wrong)


def test_old_words_for_known_things_are_gone():
  suffixes = {'.py', '.js', '.html', '.css', '.json'}
  wrong = [
    f'{path.relative_to(ROOT)}:{number} {line.strip()}'
    for path in (ROOT / 'uadjax').rglob('*')
    if path.suffix in suffixes
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if NOT_WORDS.search(line)
  ]
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize(
  ('source', 'name'),
  [
    ('def told(): pass', 'told'),
    ('def f(own): pass', 'own'),
    ('class A:\n  kept: int', 'kept'),
    ('_found = 1', '_found'),
    ('[one for one in []]', 'one'),
    ('lambda some: 0', 'some'),
    ('import os as here', 'here'),
    ('a.known = 1', 'known'),
    ('with a as mine: pass', 'mine'),
    ('async def f(*, there=1): pass', 'there'),
    ('match a:\n  case given: pass', 'given'),
    ('def test_what_is_kept_is_small(): pass', 'test_what_is_kept_is_small'),
  ],
)
def test_every_way_of_binding_a_name_is_seen(source, name):
  assert [bound_name for _, bound_name in misnamed(source)] == [name]


def test_every_kind_of_docstring_is_seen():
  text = '"""What it is."""'
  source = f'{text}\nclass A:\n  {text}\n  def f(self):\n    {text}\nasync def g():\n  {text}'
  assert len(misdescribed(source)) == 4
