"""Errors that a user can cause and mend.

Each is shown as one message, never as a traceback. Nothing here imports a library.
"""


class UserError(Exception):
  """Something that a user can cause and mend: shown as one message, never as a traceback."""


class UnknownName(UserError):
  """A name or key that is in no table."""


class ConfigError(UserError):
  """A configuration that cannot be carried out."""


class DataError(UserError):
  """Images, masks or folders that are missing or unreadable."""


class WeightsError(UserError):
  """Backbone weights that are missing, damaged, hostile or of the wrong shape."""


class ModelError(UserError):
  """A model directory or checkpoint that cannot be opened."""


class ExportError(UserError):
  """A graph that cannot be written, or does not say what its model says."""


class Interrupted(BaseException):
  """The run was asked to stop. Like KeyboardInterrupt no Exception: nobody may take it for one."""
