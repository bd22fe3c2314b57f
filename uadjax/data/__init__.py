"""Data pipeline, from files to batches: layouts, decoding, resizing, checks, label conversion.

The functions here take the `data` section of a configuration. `image_io` decodes files,
`transforms` resizes images, `layouts` lists datasets, `inputs` lists the inputs of `predict`, and
`batches` builds batches.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from uadjax.data import (
  bit_depth,
  checks,
  layouts,
  pixel_range,
  records,
  region_of_interest,
  transforms,
)
from uadjax.data.settings import DataSettings
from uadjax.system.progress import show_progress


def load(config: DataSettings) -> records.Splits:
  """List the images of the dataset that a `data` config names.

  An empty `root` means the demo dataset.
  """
  config = _with_root(config)
  return layouts.load(config.root, config.category, config.layout, config.mask)


def scan(config: DataSettings) -> layouts.Listing:
  """List the images of the dataset, with the problems of its folder, before any is opened.

  An empty `root` means the demo dataset.
  """
  config = _with_root(config)
  return layouts.scan(config.root, config.category, config.layout)


def check_dataset(
  config: DataSettings,
  min_images: int = checks.MIN_IMAGES,
  on_train_image: checks.ImageFunction | None = None,
  on_test_image: checks.ImageFunction | None = None,
  ops: transforms.Ops | None = None,
) -> checks.Report:
  """Check the dataset that a `data` config names, and show progress.

  An empty `root` means the demo dataset.

  Args:
    config: the `data` section of a configuration.
    min_images: smallest number of good training images that is not an error.
    on_train_image: see `checks.check`.
    on_test_image: see `checks.check`.
    ops: operations that will scale the images; None for those of the config.

  Raises:
    DataError: the folder, or the region of interest, cannot be read.
  """
  config = _with_root(config)
  if config.bits == pixel_range.AUTO:
    config = decide_bits(config, scan(config).splits.train)
  dataset = config.root, config.category, config.layout, config.mask
  functions, ops = (on_train_image, on_test_image), ops or load_ops(config)
  return checks.check(*dataset, min_images, show_progress, *functions, config.pixel_range, ops)


def load_ops(config: DataSettings) -> transforms.Ops:
  """Return the operations that scale images, with the region of interest, whose file is read.

  Raises:
    ConfigError: the region cannot be combined with the operations.
    DataError: the region cannot be read, or is empty.
  """
  category = config.category or Path(config.root).resolve().name
  region = region_of_interest.load(config.roi, category)
  return transforms.parse(config.ops).with_region(region)


def decide_bits(config: DataSettings, training: Sequence[records.Record]) -> DataSettings:
  """Return settings with a definite bit depth: `auto` takes that of the training images."""
  is_definite = config.bits != pixel_range.AUTO
  return config if is_definite else dataclasses.replace(config, bits=bit_depth.decide(training))


def expand(config: DataSettings) -> list[str]:
  """Return the categories that `config.category` selects, which may be a group such as 'all'.

  An empty `root` means the demo dataset.
  """
  if not config.root:
    # Imported here because users with their own images do not need the renderer.
    from uadjax.data import demo

    return demo.expand_category(config.category)
  return layouts.expand(config.root, config.category)


def unused_in_root(config: DataSettings, categories: Sequence[str]) -> tuple[checks.NotUsed, ...]:
  """Account for the files of the root that lie in no category, if 'all' are selected."""
  if not config.root or config.category != 'all' or 'all' in categories:
    return ()
  return checks.unused_in_root(config.root, categories)


def _with_root(config: DataSettings) -> DataSettings:
  """Return the settings of the demo dataset, which is drawn if necessary, for an empty root."""
  if config.root:
    return config
  from uadjax.data import demo

  category = config.category or demo.DEFAULT_CATEGORY
  root = str(demo.cached_dataset(category, show_progress))
  return dataclasses.replace(config, root=root, category=category, layout='auto')
