"""Pictures of docs/small_defects.md: a tiny defect, and what two models see of it.

Draw the demo product and fit both models as the page does, then draw the pictures::

  uadjax demo drawn/ --category cover
  uadjax fit drawn/ --category cover --workdir runs/whole --override backbone.weights=embedded
  uadjax fit drawn/ --category cover --workdir runs/tiles --override backbone.weights=embedded \
    --override 'data.ops=fit_within(1024)|tile(256, 32)' --override detector.ratio=0.001
  python experiments/small_defects_pictures.py --category drawn/cover --whole runs/whole/model \
    --tiles runs/tiles/model --output docs/
"""

import argparse
from pathlib import Path

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import uadjax
from uadjax.data import image_io
from uadjax.visualization import fonts, heatmap

_DEFECT, _IMAGE_NUMBER = 'pinhole', 0
_HEIGHT, _GAP, _TITLE_HEIGHT, _FONT_SIZE = 360, 10, 30, 17  # Pixels of the pictures.
_CROP_SIDE = 96  # Pixels of the image that are enlarged.
_MARK_COLOR, _MARK_RADIUS = '#00e5ff', 16
_QUALITY = 88  # Of JPEG.

Picture = UInt8[np.ndarray, 'h w 3']


def reduce(image: Picture) -> Image.Image:
  """Reduce an image to the height of the pictures."""
  picture = Image.fromarray(image)
  return picture.resize((round(_HEIGHT * picture.width / picture.height), _HEIGHT))


def mark(picture: Image.Image, mask: Bool[np.ndarray, 'h w']) -> Image.Image:
  """Draw a circle around the defect of a reduced image, whose mask has the original size."""
  y, x = (indices.mean() * picture.height / mask.shape[0] for indices in np.nonzero(mask))
  box = (x - _MARK_RADIUS, y - _MARK_RADIUS, x + _MARK_RADIUS, y + _MARK_RADIUS)
  ImageDraw.Draw(picture).ellipse(box, outline=_MARK_COLOR, width=2)
  return picture


def enlarge(
  image: Picture, mask: Bool[np.ndarray, 'h w'], size: tuple[int, int] | None = None
) -> Image.Image:
  """Enlarge the surroundings of the defect without smoothing.

  Args:
    image: image with a defect.
    mask: mask of the defect.
    size: width and height to which the image is reduced before; None for its own size.
  """
  picture = Image.fromarray(image)
  top, left = (
    int(np.clip(indices.mean() - _CROP_SIDE / 2, 0, side - _CROP_SIDE))
    for indices, side in zip(np.nonzero(mask), mask.shape, strict=True)
  )
  box = np.array([left, top, left + _CROP_SIDE, top + _CROP_SIDE], float)
  if size:
    box *= np.tile(np.divide(size, picture.size), 2)
    picture = picture.resize(size, Image.Resampling.BILINEAR)
  return picture.resize((_HEIGHT, _HEIGHT), Image.Resampling.NEAREST, tuple(box))


def color(anomaly_map: Float[np.ndarray, 'h w'], high: float) -> Picture:
  """Return the colors of an anomaly map from its median to a value."""
  scale = heatmap.ColorScale(float(np.median(anomaly_map)), high)
  colors, _ = heatmap.colors_at(anomaly_map.ravel(), scale)
  return colors.reshape(*anomaly_map.shape, 3)


def arrange(pictures: dict[str, Image.Image]) -> Image.Image:
  """Arrange pictures of one height side by side, below their titles."""
  width = sum(picture.width + _GAP for picture in pictures.values()) - _GAP
  canvas = Image.new('RGB', (width, _TITLE_HEIGHT + _HEIGHT), 'white')
  font = ImageFont.truetype(fonts.font_files()[fonts.DEFAULT_FAMILY], _FONT_SIZE)
  left = 0
  for title, picture in pictures.items():
    ImageDraw.Draw(canvas).text((left, 4), title, 'black', font)
    canvas.paste(picture, (left, _TITLE_HEIGHT))
    left += picture.width + _GAP
  return canvas


def main() -> None:
  """Draw both pictures."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name in ('category', 'whole', 'tiles', 'output'):
    parser.add_argument(f'--{name}', type=Path, required=True)
  flags = parser.parse_args()
  name = f'{_DEFECT}/{_IMAGE_NUMBER:03d}'
  path = flags.category / 'test' / f'{name}.png'
  image = image_io.decode(path)
  mask = image_io.decode(flags.category / 'ground_truth' / f'{name}_mask.png')[..., 0] > 0
  product = arrange({
    '2048 x 1536 pixels': mark(reduce(image), mask),
    'the defect': enlarge(image, mask),
    'after resize(256)': enlarge(image, mask, (256, 256)),
  })  # fmt: skip
  product.save(flags.output / 'small_defect_product.jpg', quality=_QUALITY)
  maps = {}
  for title, folder in (('resize(256)', flags.whole), ('tiles', flags.tiles)):
    (result,) = uadjax.create_model(model_dir=folder).predict(path)
    heat = color(result.anomaly_map, result.color_scale.high)
    maps[f'{title}: {result.label}'] = mark(reduce(heat), mask)
  arrange(maps).save(flags.output / 'small_defect_maps.jpg', quality=_QUALITY)


if __name__ == '__main__':
  main()
