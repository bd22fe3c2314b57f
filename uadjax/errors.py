"""Errors that a user can cause and fix. They are shown as one message, never as a traceback.

A hint names a setting as `Setting(key, value)`, because each front end writes settings differently:
an experiment takes --config.fit.overwrite=true, `uadjax fit` takes --override fit.overwrite=true,
Python takes overrides={'fit.overwrite': True}. A front end runs its work inside `setting_format`.

This module imports no library.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import signal
from typing import NamedTuple, NoReturn

EXIT_FAILURE, EXIT_USAGE = 1, 2
SIGNAL_STATUS_BASE = 128  # Shells report 128 plus the number of the signal.


class Setting(NamedTuple):
  """Setting that a message mentions.

  Attributes:
    key: dotted key of the configuration, or one of the names in OTHER_KEYS.
    value: the value to set; Ellipsis to name the setting only.
  """

  key: str
  value: object = ...

  def __str__(self) -> str:
    """Return the setting as the active front end writes it."""
    return _FORMAT.get()(self)


SettingFormat = Callable[[Setting], str]
Hint = str | Sequence[str | Setting]

# Settings that are not keys of the configuration, with their spelling in Python.
OTHER_KEYS = {
  'access.private': 'Access(private=True)',
  'config': 'model_name',
  'image_threshold': 'image_threshold',
  'review_threshold': 'review_threshold',
  'workdir': 'workdir',
}


def format_plain(setting: Setting) -> str:
  """Return a setting as written without a front end: fit.overwrite=true."""
  if setting.key == 'access.private':
    return OTHER_KEYS[setting.key]
  return setting.key if setting.value is ... else f'{setting.key}={format_value(setting.value)}'


_FORMAT = contextvars.ContextVar[SettingFormat]('setting_format', default=format_plain)


def format_value(value: object) -> str:
  """Return a value as options and configuration files take it, such as true or layer1,layer2."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, list | tuple):
    return ','.join(map(format_value, value))
  return str(value)


class _ErrorWithHint(BaseException):
  """Base class of errors with a message, data about the wrong setting, and a hint.

  Attributes:
    message: what is wrong.
    key: key of the wrong setting, if there is one.
    value: its value.
    allowed: allowed choices, or bounds.
    hint: what the user can do; may contain settings.
    setting_format: format of the settings in the hint; None until the error leaves a front end.
  """

  def __init__(
    self,
    message: str = '',
    *,
    key: str | None = None,
    value: object = None,
    allowed: object = None,
    hint: Hint | None = None,
  ):
    super().__init__(message)
    self.message, self.key, self.value, self.allowed = message, key, value, allowed
    self.hint: tuple[str | Setting, ...] = (hint,) if isinstance(hint, str) else tuple(hint or ())
    self.setting_format: SettingFormat | None = None

  def __str__(self) -> str:
    format_setting = self.setting_format or _FORMAT.get()
    hint = ''.join(
      format_setting(piece) if isinstance(piece, Setting) else piece for piece in self.hint
    )
    return self.message + ' ' * bool(hint and self.message[-1:].strip()) + hint


class UserError(_ErrorWithHint, Exception):
  """Error that a user can cause and fix; shown as one message, never as a traceback."""


class UnknownName(UserError):
  """Name or key that does not exist."""


class ConfigError(UserError):
  """Configuration that is invalid or cannot be run."""


class MissingDevice(ConfigError):
  """Kind of device that JAX does not find on this machine."""


class DataError(UserError):
  """Images, masks or folders that are missing or unreadable."""


class WeightsError(UserError):
  """Backbone weights that are missing, damaged, hostile or of the wrong shape."""


class ModelError(UserError):
  """Model directory or checkpoint that cannot be opened."""


class ExportError(UserError):
  """Graph that cannot be written, or whose scores differ from those of its model."""


class Interrupted(_ErrorWithHint):
  """Run that was stopped on request, for example by a signal.

  It derives from BaseException, so that `except Exception` does not catch it.

  Attributes:
    signal_number: signal that stopped the run, if one did.
  """

  signal_number: int | None = None


def describe(error: BaseException) -> str:
  """Return the message of an error; for an error of the operating system, its path and reason."""
  reason = getattr(error, 'reason', error)  # An error of urllib wraps that of the socket.
  if not (isinstance(reason, OSError) and reason.strerror):
    return str(error)
  return ': '.join(str(part) for part in (reason.filename, reason.strerror) if part)


def exit_status(error: BaseException) -> int:
  """Return the exit status of a command that failed.

  It is 2 if the command must be changed: an option, a setting or a name is missing, unknown or
  invalid, or an output cannot be written. It is 130 or 143 for a run that Ctrl-C or SIGTERM
  stopped. It is 1 for any other failure, such as an input that is missing or unsuitable.
  """
  if isinstance(error, Interrupted):
    return SIGNAL_STATUS_BASE + (error.signal_number or signal.SIGINT)
  return EXIT_USAGE if isinstance(error, ConfigError | UnknownName) else EXIT_FAILURE


@contextlib.contextmanager
def setting_format(format_setting: SettingFormat) -> Iterator[None]:
  """Use a format for settings in texts made inside the block and in errors raised from it."""
  token = _FORMAT.set(format_setting)
  try:
    yield
  except (UserError, Interrupted) as error:
    error.setting_format = format_setting
    raise
  finally:
    _FORMAT.reset(token)


def refuse(
  key: str, value: object, message: str, *hint: str | Setting, allowed: object = None
) -> NoReturn:
  """Raise a ConfigError for a setting with an invalid value."""
  raise ConfigError(message, key=key, value=value, allowed=allowed, hint=hint)


@contextlib.contextmanager
def about(key: str, value: object) -> Iterator[None]:
  """Name the setting that an error raised inside the block is about, if the error names none."""
  try:
    yield
  except UserError as error:
    if error.key is None:
      error.key, error.value = key, value
    raise
