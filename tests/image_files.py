"""Files of datasets that several tests write."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(
  path: Path, seed: int = 0, shape: tuple[int, ...] = (24, 32, 3), image_format: str | None = None
) -> Path:
  """Write an image of random pixels, which differs from those of other seeds."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  Image.fromarray(pixels).save(path, image_format)
  return path


def touch(*paths: Path) -> None:
  """Write empty files."""
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
