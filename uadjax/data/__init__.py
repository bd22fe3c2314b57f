"""Everything from bytes to a batch: layouts, decoding, resizing, checks, label formats, batches.

The functions here take the `data` section of a configuration. Reading a file is `image_io`,
resizing it `transforms`, a dataset `layouts`, an input of `predict` `inputs`, batches `batches`.
"""

from pathlib import Path

from uadjax.data import checks, layouts, records
from uadjax.system.progress import no_progress, Progress
from uadjax.types import Config


def load(config: Config) -> records.Splits:
  """List the images that a `data` config names; with an empty root, those of the demo."""
  root, category = _dataset_folder(config)
  return layouts.load(root, category, _layout_name(config), config.mask_threshold)


def check_dataset(
  config: Config, min_images: int = checks.MIN_IMAGES, progress: Progress = no_progress
) -> checks.Report:
  """Check the images that a `data` config names."""
  root, category = _dataset_folder(config, progress)
  return checks.check(
    root, category, _layout_name(config), config.mask_threshold, min_images, progress
  )


def expand(config: Config) -> list[str]:
  """The categories that a `data` config names; with an empty root, the demo's."""
  if not config.root:
    from uadjax.data import demo  # Whoever has images of his own need not load what draws some.

    return demo.expand_category(config.category)
  return layouts.expand(config.root, config.category)


def _dataset_folder(config: Config, progress: Progress = no_progress) -> tuple[Path, str]:
  if not config.root:
    from uadjax.data import demo

    category = config.category or demo.DEFAULT_CATEGORY
    return demo.cached_dataset(category, progress), category
  return Path(config.root), config.category


def _layout_name(config: Config) -> str:
  return config.layout if config.root else 'auto'
