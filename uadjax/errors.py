"""Errors that a user can cause and mend: shown as one message, never as a traceback.

An error that knows a way out names the setting by its key, as a `Setting` in its hint. How a
setting is written is the business of the front end that talks to the user: an experiment takes
--config.fit.overwrite=true, `uadjax fit` takes --override fit.overwrite=true, Python takes
overrides={'fit.overwrite': True}. Each of them does its work within `spelled`.

Nothing here imports a library.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
from typing import Any, NamedTuple


class Setting(NamedTuple):
  """A setting that a message names.

  Attributes:
    key: dotted key of the configuration; or a name that each front end has an option for, such as
      'workdir'.
    value: to be set; None where only the setting is named.
  """

  key: str
  value: Any = None

  def __str__(self) -> str:
    """As the front end spells it that is at work."""
    return _SPELLING.get()(self)


Spelling = Callable[[Setting], str]
Hint = str | Sequence[str | Setting]


def plain(setting: Setting) -> str:
  """The spelling where no front end has another: fit.overwrite=true."""
  return setting.key if setting.value is None else f'{setting.key}={text(setting.value)}'


_SPELLING = contextvars.ContextVar[Spelling]('spelling', default=plain)


def text(value: Any) -> str:
  """A value as options and configuration files take it: true, layer1,layer2."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list | tuple):
    return ','.join(map(text, value))
  return str(value)


class _Hinted(BaseException):
  """A message and, apart from it, what there is to be done about it.

  Attributes:
    message: what is wrong.
    key: the setting that is wrong, if it is one.
    value: what it is.
    allowed: what it may be: choices, or bounds.
    hint: the way out, with the settings that are part of it.
    spelling: of these settings; None before a front end has seen the error.
  """

  def __init__(
    self,
    message: str = '',
    *,
    key: str | None = None,
    value: Any = None,
    allowed: Any = None,
    hint: Hint | None = None,
  ):
    super().__init__(message)
    self.message, self.key, self.value, self.allowed = message, key, value, allowed
    self.hint: tuple[str | Setting, ...] = (hint,) if isinstance(hint, str) else tuple(hint or ())
    self.spelling: Spelling | None = None

  def __str__(self) -> str:
    spelling = self.spelling or _SPELLING.get()
    hint = ''.join(spelling(part) if isinstance(part, Setting) else part for part in self.hint)
    return self.message + ' ' * bool(hint and self.message[-1:].strip()) + hint


class UserError(_Hinted, Exception):
  """Something that a user can cause and mend: shown as one message, never as a traceback."""


class UnknownName(UserError):
  """A name or key that is in no table."""


class ConfigError(UserError):
  """A configuration that cannot be carried out."""


class MissingDevice(ConfigError):
  """A kind of device that JAX does not find on this machine."""


class DataError(UserError):
  """Images, masks or folders that are missing or unreadable."""


class WeightsError(UserError):
  """Backbone weights that are missing, damaged, hostile or of the wrong shape."""


class ModelError(UserError):
  """A model directory or checkpoint that cannot be opened."""


class ExportError(UserError):
  """A graph that cannot be written, or does not say what its model says."""


class Interrupted(_Hinted):
  """The run was asked to stop. Like KeyboardInterrupt no Exception: nobody may take it for one."""


@contextlib.contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
  """Within this, and in errors that leave it, settings are spelled as this front end does."""
  token = _SPELLING.set(spelling)
  try:
    yield
  except (UserError, Interrupted) as error:
    error.spelling = spelling
    raise
  finally:
    _SPELLING.reset(token)
