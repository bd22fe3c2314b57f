"""Settings of datasets: the sections `data` and `check` of a run."""

import dataclasses

from uadjax.config import field
from uadjax.data import image_io, layouts, pixel_range as pixel_ranges, transforms


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """Section `data`: where the images are and how they are read."""

  root: str = field('', 'Folder of the dataset; empty for the synthetic images of the demo.')
  category: str = field('', 'Category below the root, or a group: all, textures, objects.')
  layout: str = field('auto', 'Layout of the dataset.', choices=layouts.NAMES)
  ops: str = field('resize(256)', 'Steps to network size, separated by |.', check=transforms.parse)
  mask: str = field(
    image_io.NONZERO,
    f'How masks mark defects: {", ".join(image_io.MASK_READINGS)}.',
    check=image_io.parse_mask_reading,
  )
  bits: str = field(
    pixel_ranges.AUTO,
    'Bit depth of 16-bit images; auto decides from the largest value of the training images.',
    choices=pixel_ranges.BITS,
  )
  range: str = field(
    '',
    'Black and white of float, signed and 32-bit images, as in 0,4095; refused if empty.',
    check=pixel_ranges.parse_limits,
  )
  roi: str = field(
    '',
    'Image whose white pixels are inspected, as in rois/{category}.png; empty to inspect all.',
  )

  @property
  def pixel_range(self) -> pixel_ranges.PixelRange:
    """Values of black and white in images of more than 8 bits."""
    return pixel_ranges.from_settings(self.bits, self.range)


@dataclasses.dataclass(frozen=True)
class ConvertSettings:
  """Section `check.convert`: conversion of another tool's labels, before the check."""

  enable: bool = field(False, 'Whether to convert labels to the layout seglist.')
  src_dataset_type: str = field(
    '', 'Format of the labels.', choices=('', 'LabelMe', 'VOC', 'COCO', 'MVTec_AD')
  )
  output: str = field('', 'Empty or new folder for the converted dataset.')


@dataclasses.dataclass(frozen=True)
class SplitSettings:
  """Section `check.split`: random lists of a `seglist`, after conversion, before the check."""

  enable: bool = field(False, 'Whether to draw new lists of training and test images.')
  train_percent: int = field(80, 'Share of good images for training.', unit='%', above=0, below=100)
  val_percent: int = field(20, 'Share of good images for testing.', unit='%', above=0, below=100)


@dataclasses.dataclass(frozen=True)
class CheckSettings:
  """Section `check`: the check of a dataset, and what may prepare it in mode check_dataset."""

  enforce: bool = field(True, 'Whether to reject a dataset with errors; if not, exclude images.')
  convert: ConvertSettings = dataclasses.field(default_factory=ConvertSettings)
  split: SplitSettings = dataclasses.field(default_factory=SplitSettings)
