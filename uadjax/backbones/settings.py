"""Settings of the backbone: the section `backbone` of a run."""

import dataclasses

from uadjax import backbones
from uadjax.backbones import architecture
from uadjax.config import field


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
  """Section `backbone`."""

  name: str = field('resnet18', 'Architecture.', choices=backbones.NAMES)
  weights: str = field(
    'auto',
    'imagenet, published, embedded, random or a file; auto: for vision transformers published, for '
    'others imagenet, or embedded if it is unavailable.',
  )
  architecture: str = field(
    '',
    f'Sizes of the backbone {architecture.NAME}, as in heads=6; what it omits is read off the file '
    'of the weights.',
    check=architecture.parse,
  )
  dtype: str = field(
    'float32',
    'Type of the factors of matrix products in vision transformers.',
    choices=('float32', 'bfloat16'),
  )
