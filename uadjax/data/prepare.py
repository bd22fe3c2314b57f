"""Preparation of a run's dataset: conversion, new splits, the check, and the usable images."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from uadjax import data
from uadjax.data import checks, convert, records, resplit, transforms
from uadjax.data.checks import report as reports
from uadjax.data.settings import CheckSettings, DataSettings
from uadjax.errors import DataError
from uadjax.system import logging as log, progress


def checked_splits(
  settings: DataSettings,
  enforce: bool,
  min_images: int,
  on_image: checks.ImageFunction | None = None,
  ops: transforms.Ops | None = None,
) -> records.Splits:
  """Check the dataset and return its images; with `check.enforce=false`, the usable ones.

  Args:
    settings: section `data` of the configuration.
    enforce: the setting check.enforce.
    min_images: smallest number of good training images that is not an error.
    on_image: function to call in a thread with path and decoded image of each readable image.
    ops: operations that will scale the images; None for those of the settings.

  Raises:
    DataError: the check failed, or no training images remain; the message lists all problems.
  """
  report = data.check_dataset(settings, min_images, on_image, on_image, ops)
  splits = checks.require_valid(report) if enforce else checks.usable_splits(report)
  if not splits.learned():
    raise DataError(f'{report}\nNo usable training images remain.')
  if report.problems:
    log.LOG.warning('%s', report)
  elif report.not_used:
    log.LOG.warning('%s', report.describe_not_used())
  if message := checks.describe_excluded(report, splits):
    log.LOG.warning('%s', message)
  return splits


def checked_test_set(
  settings: DataSettings,
  enforce: bool,
  on_image: checks.ImageFunction | None = None,
  ops: transforms.Ops | None = None,
) -> tuple[records.Record, ...]:
  """Check the dataset and return its test images, ignoring problems of training images.

  With `check.enforce=false`, return the usable test images.

  Args:
    settings: section `data` of the configuration.
    enforce: the setting check.enforce.
    on_image: function to call in a thread with path and decoded image of each readable test image.
    ops: operations that will scale the images; None for those of the settings.

  Raises:
    DataError: the check of the test images failed, and the message lists all problems; or there
      are no test images.
  """
  report = data.check_dataset(settings, on_test_image=on_image, ops=ops)
  test = report.splits.test
  test_files = {path for record in test for path in (record.path, record.mask)}
  report = report._replace(problems=tuple(p for p in report.problems if p.path in test_files))
  if not report.passed and not enforce:
    log.LOG.warning('%s', report)
  test = (checks.require_valid(report) if enforce else checks.usable_splits(report)).test
  if not test:
    message = f'{report.directory} has no test images'
    raise DataError(f'{message}; put them into a folder test/good or test/<defect>.')
  return test


def run_check(settings: DataSettings, workdir: Path) -> dict[str, Any]:
  """Check the dataset, write pictures into `workdir`, and return the result for its JSON file."""
  report = data.check_dataset(settings)
  log.LOG.log(logging.INFO if report.passed else logging.ERROR, '%s', report)
  return reports.write(report, workdir)


def convert_and_resplit(settings: DataSettings, check: CheckSettings, seed: int) -> DataSettings:
  """Convert and split the dataset where the config enables it.

  Returns:
    The settings of the dataset, which name the converted one.

  Raises:
    ConfigError: a setting is wrong.
    DataError: the dataset cannot be converted or split.
  """
  if check.convert.enable:
    source, target = Path(settings.root, settings.category), Path(check.convert.output)
    source_format = check.convert.src_dataset_type
    conversion = convert.convert(source, source_format, target, progress.show_progress)
    defects = ', '.join(f'{name} {count}' for name, count in conversion.num_per_defect.items())
    log.LOG.info(
      'Converted %s to %s: %d training images, %d test images. Images per defect: %s.',
      source, target, conversion.num_train, conversion.num_val, defects,
    )  # fmt: skip
    for note in conversion.notes:
      log.LOG.warning('%s', note)
    settings = dataclasses.replace(settings, root=str(target), category='', layout='seglist')
  if check.split.enable:
    directory = Path(settings.root, settings.category)
    summary = resplit.resplit(directory, check.split.train_percent, seed, settings.mask)
    log.LOG.info(
      'Drew new lists for %s: %d training images, %d test images (%d defective). Backups of the '
      'old lists: %s.',
      directory, summary.train, summary.val, summary.defective, ' and '.join(summary.backups),
    )  # fmt: skip
  return settings
