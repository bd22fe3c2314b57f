"""Text files that list images, one per line, as editors and shells of any system write them.

A list is UTF-8 or, with a byte order mark, UTF-16, which PowerShell writes. Blank lines, comments
and a header are skipped. A path may have backslashes, quotes, and blanks around it.
"""

import codecs
from collections.abc import Iterator
import os
from pathlib import Path
import re

_PIECES = re.compile('"[^"]*"|[^ ]+')  # Of a line without tabs.
_BLANKS = ' \t'  # Others, for example an ideographic space, may be part of a name.
# First words of headers, in lower case and without underscores.
_HEADERS = frozenset({
  *('file', 'filename', 'filepath', 'files', 'fullname', 'image', 'imagefile', 'imagename'),
  *('imagepath', 'images', 'img', 'imgname', 'imgpath', 'name', 'path', 'paths', 'url', 'urls'),
})  # fmt: skip


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
  """Yield number and text of each line that lists something, lazily.

  Skipped are blank lines, lines that begin with #, and a header, such as `image mask`, or
  `FullName` above a line of dashes. A line that names a file is never skipped. Bytes that are not
  UTF-8 become surrogates, which `fields` refuses.

  Raises:
    OSError: the list cannot be read.
  """
  with file.open('rb') as opened:
    is_utf16 = opened.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
  encoding, errors = ('utf-16', 'replace') if is_utf16 else ('utf-8-sig', 'surrogateescape')
  is_first = True
  with file.open(encoding=encoding, errors=errors) as opened:
    for number, line in enumerate(opened, 1):
      text = line.rstrip('\n')
      content = text.strip()
      if not content:
        continue
      is_skipped = content.startswith('#') or (is_first and _is_header(content))
      if is_skipped and not any(os.path.lexists(file.parent / path) for path in readings(text)):
        continue
      is_first = False
      yield number, text


def _is_header(text: str) -> bool:
  first_word = re.split(r'[\s,;]', text.strip('"'))[0]
  return first_word.lower().replace('_', '') in _HEADERS or not text.strip('- ')


def fields(text: str) -> list[str]:
  """Split a line at its tabs or, if it has none, at blanks outside of quotes.

  Fields have neither quotes nor blanks around them. Only the first one may be empty.

  Raises:
    ValueError: the line is not text in UTF-8 or UTF-16.
  """
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    position = len(text[: error.start].encode('utf-8')) + 1
    raise ValueError(f'byte {position} is not UTF-8; save the list as UTF-8.') from None
  if '\0' in text:
    raise ValueError('it contains a null character; save the list as UTF-8.')
  pieces = text.split('\t') if '\t' in text else _PIECES.findall(text)
  first, *others = map(_unquote, pieces)
  return [first, *filter(None, others)]


def readings(text: str) -> tuple[str, str, str]:
  """Return the paths that a line that is not blank may name.

  Returns:
    The line itself, the line as one path, and the image of a line `image mask`. The last two have
    slashes for backslashes, and neither quotes nor blanks around them.
  """
  path = text.strip(_BLANKS).split('\t')[0]
  image = _PIECES.findall(path)[0]
  return text, _unquote(path).replace('\\', '/'), _unquote(image).replace('\\', '/')


def _unquote(text: str) -> str:
  text = text.strip(_BLANKS)
  is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '"\''
  return text[1:-1] if is_quoted else text
