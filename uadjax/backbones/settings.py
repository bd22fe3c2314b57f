"""Settings of the backbone: the section `backbone` of a run."""

import dataclasses

from uadjax.backbones import compact, weights
from uadjax.config import field


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
  """Section `backbone`."""

  name: str = field('resnet18', 'Architecture.', choices=(*weights.FILES, compact.NAME))
  weights: str = field(
    'auto',
    'imagenet, embedded, random or a file; auto: imagenet, or embedded if it is unavailable.',
  )
