"""No cell of a CSV file is a formula, whoever writes it, and every cell can be read back."""

import csv
import io
from pathlib import Path
import re

import hypothesis
from hypothesis import strategies as st
import numpy as np

import uadjax
from uadjax.system import files

PACKAGE = Path(uadjax.__file__).parent
DANGEROUS = tuple('=+-@\t\r')

texts = st.text(st.sampled_from('\'=+-@\t\r\n",;1aé '), max_size=5)
cells = texts | st.text(max_size=9) | st.integers() | st.floats(allow_nan=False) | st.none()
tables = st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6)


def parsed(text):
  return list(csv.reader(io.StringIO(text, newline='')))


@hypothesis.given(tables)
def test_texts_are_never_formulas_and_numbers_are_unchanged(rows):
  for row, line in zip(rows, parsed(files.to_csv(rows)), strict=True):
    for cell, written in zip(row, line, strict=True):
      if isinstance(cell, str):
        assert not written.startswith(DANGEROUS)
        assert written == cell or written == f"'{cell}"
        assert (written == cell) or cell.lstrip("'").startswith(DANGEROUS)
      else:
        assert written == ('' if cell is None else str(cell))


@hypothesis.given(tables)
def test_a_file_is_read_back_as_it_was(tmp_path_factory, rows):
  path = tmp_path_factory.mktemp('csv') / 'x.csv'
  files.write_csv(path, [['a', '=b', 'c'], *rows])
  expected = [['' if cell is None else str(cell) for cell in row] for row in rows]
  lines = list(files.read_csv(path))
  assert [list(line.values()) for line in lines] == expected
  assert all(list(line) == ['a', '=b', 'c'] for line in lines)


def test_numbers_of_numpy_are_numbers_and_paths_are_texts():
  row = [np.float64(-0.5), np.float32(-2.0), np.int64(-3), True, Path('-x'), Path('a/-x')]
  assert files.to_csv([row]) == "-0.5,-2.0,-3,True,'-x,a/-x\n"


def test_cells_may_be_longer_than_the_csv_module_allows(tmp_path):
  files.write_csv(tmp_path / 'x.csv', [['a'], ['x' * 200_000]])
  assert [len(row['a']) for row in files.read_csv(tmp_path / 'x.csv')] == [200_000]


def test_every_file_is_written_by_the_one_function():
  folders = PACKAGE, PACKAGE.parent / 'experiments'
  paths = [path for folder in folders for path in folder.rglob('*.py')]
  assert not [path for path in paths if re.search(r'csv\.(writer|DictWriter)', path.read_text())]


TO_CSV = "import { toCsv } from './csv.js';\nconst answer = (tables) => tables.map(toCsv);"


def test_the_page_writes_the_same_cells(in_node):
  rng = np.random.default_rng(0)
  words = ["'", '=', '+', '-', '@', '\t', '\r', '\n', '"', ',', 'a', '1', 'é', ' ']
  rows = [[''.join(rng.choice(words, rng.integers(4))) for _ in range(3)] for _ in range(400)]
  numbers = [[0.1, -2.5, 3], [1e-5, None, -7]]
  (text,) = in_node(PACKAGE / 'serve' / 'page', TO_CSV, [rows + numbers])
  expected = parsed(files.to_csv(rows + numbers))
  lines = parsed(text)
  assert lines[: len(rows)] == expected[: len(rows)]
  for line, row in zip(lines[len(rows) :], numbers, strict=True):
    assert [cell and float(cell) for cell in line] == ['' if v is None else v for v in row]
