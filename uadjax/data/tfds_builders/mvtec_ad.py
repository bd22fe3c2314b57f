"""MVTec AD, or any dataset in its layout, for TensorFlow Datasets.

    import uadjax.data.tfds_builders.mvtec_ad  # Registers 'mvtec_ad'.
    config = tfds.download.DownloadConfig(manual_dir='/data/mvtec_ad')
    tfds.load('mvtec_ad/bottle', download_and_prepare_kwargs={'download_config': config})

For a category of your own: `tfds.load('mvtec_ad', builder_kwargs={'category': 'washer'}, ...)`.

Bergmann, Fauser, Sattlegger, Steger: MVTec AD, CVPR 2019.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from uadjax.data import image_io, layouts
from uadjax.data.layouts import mvtec
from uadjax.data.records import Record
from uadjax.errors import DataError

Example = tuple[str, dict[str, object]]

_ARCHIVE = 'mvtec_anomaly_detection.tar.xz'
_HOMEPAGE = 'https://www.mvtec.com/company/research/datasets/mvtec-ad'


class MvtecAd(tfds.core.GeneratorBasedBuilder):
  """Builder of a train split of good images and a test split of good and defective images."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012  The base class declares it so.
    tfds.core.BuilderConfig(name=name, description=f'The category {name!r}.')
    for name in sorted(mvtec.TEXTURES + mvtec.OBJECTS)
  ]
  # TFDS needs the path only for checksums of downloads, which do not exist here. To determine it,
  # TFDS 4.9.10 imports importlib_resources, which it does not declare as a dependency.
  code_path = None
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {_ARCHIVE} from {_HOMEPAGE} (CC BY-NC-SA 4.0), or its category folders, into manual_dir.'
  )

  def __init__(self, *, category: str | None = None, **kwargs: Any):
    """Create a builder; `category` selects a category by name, instead of a config."""
    if category is not None:
      kwargs['config'] = tfds.core.BuilderConfig(name=category)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
      'mask': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
      'has_mask': np.bool_,  # False for a defective image without ground truth.
      'label': tfds.features.ClassLabel(names=['good', 'anomalous']),
      'defect': tfds.features.Text(),
      'path': tfds.features.Text(),
    }
    return self.dataset_info_from_configs(
      description='Industrial images for unsupervised anomaly detection: training images are good.',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      homepage=_HOMEPAGE,
      citation='Bergmann, Fauser, Sattlegger, Steger: MVTec AD, CVPR 2019.',
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[Example]]:
    root, category = Path(dl_manager.manual_dir), self.info.config_name or ''
    if not (root / category).is_dir() and (root / _ARCHIVE).is_file():
      method = tfds.download.ExtractMethod.TAR  # TFDS does not recognize the suffix .tar.xz.
      archive = tfds.download.Resource(path=root / _ARCHIVE, extract_method=method)
      root = Path(dl_manager.extract(archive))
    splits = layouts.load(root, category, 'mvtec')._asdict()
    return {name: self._generate_examples(root, r) for name, r in splits.items() if r}

  def _generate_examples(self, root: Path, records: tuple[Record, ...]) -> Iterator[Example]:
    for record in records:
      image = image_io.decode(record.path)
      mask = image_io.read_mask(record.mask) if record.mask else np.zeros_like(image[..., 0], bool)
      if problem := layouts.mask_size_mismatch(record, image.shape[:2], mask.shape):
        raise DataError(problem)
      path = record.path.relative_to(root).as_posix()
      example = {
        'image': image,
        'mask': mask[..., None].astype(np.uint8) * 255,
        'has_mask': record.mask is not None or not record.is_anomalous,
        'label': int(record.is_anomalous),
        'defect': record.defect,
        'path': path,
      }
      yield path, example
