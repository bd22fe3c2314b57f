"""Folders become records, records become batches of network images."""

from uadjax.data import datasets, demo
from uadjax.types import Config


def load(config: Config) -> datasets.Splits:
  """List the images that a `data` config names; with an empty root, those of the demo."""
  if not config.root:
    return datasets.load(demo.cached(), config.category or demo.CATEGORY)
  return datasets.load(config.root, config.category, config.layout)


def expand(config: Config) -> list[str]:
  """The categories that a `data` config names; with an empty root, the demo's."""
  if not config.root:
    return [config.category or demo.CATEGORY]
  return datasets.expand(config.root, config.category)
