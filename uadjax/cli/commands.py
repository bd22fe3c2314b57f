"""The commands of `uadjax`; without a command it takes PaddleX's options.

The work of a command is the function `run` of the module of its name, which takes its options.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import importlib
import inspect
from pathlib import Path
import sys
from typing import Any

import typer

from uadjax import errors
from uadjax.cli import options, runtime
from uadjax.errors import UnknownName

COMMANDS = {
  'predict': options.PredictOptions,
  'fit': options.FitOptions,
  'config': options.ConfigOptions,
  'sweep': options.SweepOptions,
  'check': options.CheckOptions,
  'export': options.ExportOptions,
  'report': options.ReportOptions,
  'threshold': options.ThresholdOptions,
  'demo': options.DemoOptions,
  'weights': options.WeightsOptions,
  'serve': options.ServeOptions,
}
# Names that a command has as well.
ALIASES = {'train': 'fit', 'evaluate': 'report'}
app = typer.Typer(
  context_settings={
    'help_option_names': ['-h', '--help'],
    'token_normalize_func': options.with_dashes,
    'max_content_width': 100,
  },
  pretty_exceptions_enable=False,
  rich_markup_mode='rich',
)


def main(argv: Sequence[str] | None = None) -> int:
  """Run a command and return its exit status.

  The status is 0 for success, regardless of the labels; 1 for a failure, such as an unreadable
  file; 2 for an invalid option, value or key; 3 if an image has a label that --fail-on rejects; 130
  and 143 if Ctrl-C and SIGTERM ended the command.
  """
  arguments = sys.argv[1:] if argv is None else list(argv)
  for stream in (sys.stdout, sys.stderr):
    if stream is not None:  # A character that the locale lacks must not make the command fail.
      stream.reconfigure(errors='backslashreplace')  # pyright: ignore[reportAttributeAccessIssue]
  try:
    status = _run_app(arguments)
    return runtime.stdout_failure_status() or status
  except OSError as error:  # Of the output of --help and the like; commands report their errors.
    return runtime.stdout_failure_status(error) or errors.EXIT_FAILURE


def _run_app(arguments: list[str]) -> int:
  """Run a command, print its usage error, if any, and return the exit status."""
  try:
    return app(arguments, prog_name='uadjax', standalone_mode=False) or 0
  except typer.TyperException as error:
    context = getattr(error, 'ctx', None)
    as_json = '--json' in arguments  # After a parse error there are no parsed options.
    if context and not as_json:
      print(context.get_usage(), file=sys.stderr)
    runtime.print_error(error, error.format_message(), as_json)
    if context and not as_json:
      print(f"Try '{context.command_path} --help'.", file=sys.stderr)
    return error.exit_code


def _run_without_command(command: options.RootOptions) -> None:
  context, paddlex, scoring = command
  sources = {name: context.get_parameter_source(name) for name in context.params}
  explicit = [name for name, source in sources.items() if source and source.name == 'COMMANDLINE']
  if context.invoked_subcommand:
    if explicit:
      name = next(p.opts[0] for p in context.command.params if p.name == explicit[0])
      message = f'pass this option after {context.invoked_subcommand!r}.'
      raise typer.BadParameter(message, param_hint=name)
  elif paddlex.get_pipeline_config is not None:
    from uadjax.inference import pipelines

    if paddlex.get_pipeline_config not in pipelines.NAMES:
      name = paddlex.get_pipeline_config
      raise UnknownName(f'Unknown pipeline {name!r}; choose from {pipelines.NAMES}.')
    folder = paddlex.config_save_path or scoring.save_path or Path()
    runtime.require_writable('--save-path', folder)
    print(f'Settings: {pipelines.write_settings(folder)}')
  elif paddlex.inputs:
    settings = {'model_name': paddlex.model, 'model_dir': paddlex.model_dir}
    predict_images = _import_command('predict').predict_images
    predict_images(paddlex.inputs, paddlex.pipeline, paddlex.use_hpip, settings, scoring)
  elif explicit:
    raise typer.BadParameter('missing; name an image, a URL or a folder.', param_hint='--input')
  else:
    print(context.get_help())


def _run_command(name: str, command: tuple[object, ...]) -> None:
  _import_command(name).run(command)


def _import_command(name: str) -> Any:
  """Return the module of a command, imported with JAX's cache of compiled programs enabled.

  It is imported only when the command runs: most import JAX, but help and completion must be fast.
  """
  from uadjax.system import compilation_cache

  compilation_cache.enable()
  return importlib.import_module(f'uadjax.cli.{name}')


def _add_command(
  decorator: Callable[..., Any], name: str, options_type: Any, run: Callable[[Any], None]
) -> None:
  """Add a command, whose parameters and help are those of its options class.

  Args:
    decorator: method of `app` that makes a function a command.
    name: name of the command.
    options_type: class of its options.
    run: function that takes an instance of the class.
  """
  parameters = [*_parameters(options_type), *_parameters(options.CommonOptions)]

  def function(**values: Any) -> None:
    run(_from_values(options_type, values))

  function.__name__ = name
  function.__dict__['__signature__'] = inspect.Signature(parameters)
  help, _, examples = (inspect.getdoc(options_type) or '').partition('\n\nExamples:\n')
  epilog = ['Examples', *(f'  [cyan]{line.strip()}[/]' for line in examples.splitlines())]
  decorator(help=help, epilog='\n'.join(epilog))(runtime.report_errors(function))


def _parameters(options_type: Any) -> Iterator[inspect.Parameter]:
  """Yield a parameter for each field of an options class and of the classes of its fields."""
  for parameter in inspect.signature(options_type).parameters.values():
    if _is_options(parameter.annotation):
      yield from _parameters(parameter.annotation)
    else:
      yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _from_values(options_type: Any, values: Mapping[str, Any]) -> Any:
  """Return an instance of an options class from the values of its `_parameters` by name."""
  return options_type(
    **{
      name: _from_values(kind, values) if _is_options(kind) else values[name]
      for name, kind in options_type.__annotations__.items()
    }
  )


def _is_options(annotation: Any) -> bool:
  return hasattr(annotation, '_fields')


_without_command = functools.partial(app.callback, invoke_without_command=True)
_add_command(_without_command, 'root', options.RootOptions, _run_without_command)
for _name, _options_type in COMMANDS.items():
  _run = functools.partial(_run_command, _name)
  for _alias in (_name, *(alias for alias, name in ALIASES.items() if name == _name)):
    _decorator = functools.partial(app.command, _alias, hidden=_alias != _name)
    _add_command(_decorator, _name, _options_type, _run)
