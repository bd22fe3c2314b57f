"""Reading of label files, whatever their encoding: JSON, XML and lists.

Text in UTF-8 or UTF-16, with or without a byte order mark, and in the encoding that an XML file
declares is read as such. Older tools write the encoding of the system instead, without saying so:
if the text looks like Chinese in GB18030, which includes GB2312 and GBK, it is read as that, with a
remark; anything else is an error, because names of defects and images would be garbled.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import re
from xml.etree import ElementTree

from uadjax.data.convert.samples import Remark
from uadjax.errors import DataError

_GUESSED = 'Files that are not in UTF-8 were read as GB18030; if names look wrong, save them anew'
# Lead bytes of the 3755 most frequent characters in GB2312. Text in other encodings, read as
# GB18030, consists mostly of rare characters.
_FREQUENT = range(0xB0, 0xD8)
# The last one decodes anything.
_OTHER_ENCODINGS = {
  'shift_jis': 'probably Shift-JIS',
  'cp1252': 'probably Windows-1252 or another code page',
  'latin1': 'in an unknown encoding',
}


def read_lines(path: Path) -> list[str]:
  """Return the lines of a text file that are not blank; none if the file does not exist.

  Raises:
    DataError: the encoding is unknown.
  """
  text = _read_text(path, path.name)[0] if path.is_file() else ''
  return [line.strip() for line in text.splitlines() if line.strip()]


def read_json(
  path: Path, name: str, tool: str, list_keys: Sequence[str]
) -> tuple[dict[str, object], list[Remark]]:
  """Read a labeling tool's JSON file.

  Args:
    path: the file.
    name: name of the file in messages.
    tool: name of the tool in messages.
    list_keys: keys that must have a list as their value.

  Returns:
    The content, and a remark if the encoding is a guess.

  Raises:
    DataError: the file cannot be read, or is not JSON of that tool.
  """
  text, remarks = _read_text(path, name)
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{name}: not JSON: {error}.') from None
  content = content if isinstance(content, dict) else {}
  for key in list_keys:
    if not isinstance(content.get(key), list):
      message = f'{name}: not a {tool} file, because it has no list {key!r}; move it elsewhere.'
      raise DataError(message)
  return content, remarks


def read_xml(path: Path, name: str) -> tuple[ElementTree.Element, list[Remark]]:
  """Read an XML file; return its root, and a remark if the encoding is a guess.

  Raises:
    DataError: the file cannot be read, or is not XML.
  """
  # The XML parser knows few encodings, so it gets text instead of bytes.
  text, remarks = _read_text(path, name)
  try:
    return ElementTree.fromstring(text.lstrip()), remarks
  except (ElementTree.ParseError, ValueError) as error:
    raise DataError(f'{name}: not XML: {error}.') from None


def _read_text(path: Path, name: str) -> tuple[str, list[Remark]]:
  try:
    data = path.read_bytes()
  except OSError as error:
    raise DataError(f'{name}: cannot be read: {error.strerror}.') from None
  declaration = re.match(rb'\s*<\?xml[^>]*encoding=["\']([\w.-]+)', data)
  declared = declaration[1].decode() if declaration else ''
  if re.fullmatch('gb_?2312|gbk', declared, re.IGNORECASE):
    declared = 'gb18030'  # Files that declare the subset contain characters of the whole.
  # Declarations are sometimes wrong, while other encodings are hardly ever valid UTF-8.
  for encoding in (json.detect_encoding(data), declared):
    if (text := _try_decode(data, encoding)) is not None:
      return text, []
  text = _try_decode(data, 'gb18030')
  if text is not None and _looks_chinese(text):
    return text, [Remark(_GUESSED, name)]
  likely = next(e for e in _OTHER_ENCODINGS if _try_decode(data, e) is not None)
  encodings = f'its text is not in UTF-8, UTF-16 or GB18030, but {_OTHER_ENCODINGS[likely]}'
  raise DataError(f'{name}: {encodings}; save it as UTF-8, for example with iconv.')


def _try_decode(data: bytes, encoding: str) -> str | None:
  try:
    return data.decode(encoding) if encoding else None
  except (UnicodeError, LookupError):
    return None


def _looks_chinese(text: str) -> bool:
  """Return whether at least half of the characters outside of ASCII are frequent in Chinese."""
  characters = [c for c in text if not c.isascii()]
  lead_bytes = [c.encode('gb2312', errors='ignore')[:1] for c in characters]
  num_frequent = sum(byte != b'' and byte[0] in _FREQUENT for byte in lead_bytes)
  return 2 * num_frequent >= len(characters)
