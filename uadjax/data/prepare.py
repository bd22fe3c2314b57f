"""Data sets on trial: prepared, checked, and let through to training or not."""

import logging
from pathlib import Path
from typing import Any

from uadjax import data
from uadjax.data import checks, convert, records, resplit
from uadjax.data.checks import report as reports
from uadjax.data.records import Record
from uadjax.errors import ConfigError, Setting
from uadjax.system import logging as log, progress
from uadjax.types import Config


def checked_splits(config: Config) -> records.Splits:
  """The images, if they pass the check; where that is not asked for, those that can be used.

  Raises:
    DataError: with all that is wrong.
    ConfigError: there is something to prepare, which is another mode's business.
  """
  for name in ('convert', 'split'):
    if config.check[name].enable:
      raise ConfigError(
        f'check.{name} changes files, which only the check of a data set may.',
        key=f'check.{name}.enable',
        hint=('Run that first: ', Setting('mode', 'check_dataset'), '.'),
      )
  # A model that is extended may learn from a single image more.
  report = data.check_dataset(
    config.data, 1 if config.fit.extend else checks.MIN_IMAGES, progress.show_progress
  )
  splits = checks.require_valid(report) if config.check.enforce else checks.usable_splits(report)
  if report.problems:
    log.LOG.warning('%s', report)
  if message := checks.describe_excluded(report, splits):
    log.LOG.warning('%s', message)
  return splits


def checked_test_set(config: Config) -> tuple[Record, ...]:
  """The test images, if nothing is wrong with them; what is learned from does not matter.

  Raises:
    DataError: with all that is wrong.
    ConfigError: there are none.
  """
  report = data.check_dataset(config.data, progress=progress.show_progress)
  test = report.splits.test
  test_files = {path for record in test for path in (record.path, record.mask)}
  report = report._replace(problems=tuple(p for p in report.problems if p.path in test_files))
  if not report.passed and not config.check.enforce:
    log.LOG.warning('%s', report)
    test = checks.usable_splits(report).test
  else:
    test = checks.require_valid(report).test
  if not test:
    raise ConfigError(
      f'{Path(config.data.root, config.data.category)} has no test images; there must be a folder '
      'test/good or test/<defect>.'
    )
  return test


def run_check(config: Config, workdir: Path) -> dict[str, Any]:
  """Check a data set, and leave pictures and the result."""
  report = data.check_dataset(config.data, progress=progress.show_progress)
  log.LOG.log(logging.INFO if report.passed else logging.ERROR, '%s', report)
  return reports.write(report, workdir)


def convert_and_resplit(config: Config) -> Config:
  """Convert and split the data set if asked to; the configuration of what comes of it."""
  return _resplit_lists(_convert_labels(config))


def _convert_labels(config: Config) -> Config:
  """The configuration, its data those that another tool's labels became."""
  options = config.check.convert
  if not options.enable:
    return config
  _require_root(config, 'check.convert')
  if not options.output:
    raise ConfigError('check.convert.output is not set; name a folder for the converted data.')
  source, target = Path(config.data.root, config.data.category), Path(options.output)
  conversion = convert.convert(source, options.src_dataset_type, target, progress.show_progress)
  type_counts = ', '.join(f'{name} {count}' for name, count in conversion.num_per_defect.items())
  log.LOG.info(
    'Converted %s to %s: %d images to learn from, %d to test on; of all of them: %s.',
    source, target, conversion.num_train, conversion.num_val, type_counts,
  )  # fmt: skip
  for note in conversion.notes:
    log.LOG.warning('%s', note)
  converted_config = config.copy_and_resolve_references().unlock()
  converted_config.data.update({'root': str(target), 'category': '', 'layout': 'seglist'})
  return converted_config


def _resplit_lists(config: Config) -> Config:
  """The configuration, the lists of its data drawn anew."""
  options = config.check.split
  if not options.enable:
    return config
  _require_root(config, 'check.split')
  if config.data.layout not in ('auto', 'seglist'):
    raise ConfigError(
      f'check.split draws the lists of a seglist anew, but data.layout is {config.data.layout!r}; '
      'convert the data with check.convert first, or leave check.split out.'
    )
  directory = Path(config.data.root, config.data.category)
  summary = resplit.resplit(
    directory, options.train_percent, options.val_percent, config.seed, config.data.mask_threshold
  )
  log.LOG.info(
    'Lists of %s drawn anew: %d images to learn from, %d to test on (%d defective); the old ones '
    'are %s.',
    directory, summary.train, summary.val, summary.defective, ' and '.join(summary.backups),
  )  # fmt: skip
  return config


def _require_root(config: Config, setting_name: str) -> None:
  """Keep an empty root from meaning the folder that the user happens to be in."""
  if not config.data.root:
    raise ConfigError(f'data.root is not set; name the data set that {setting_name} is for.')
