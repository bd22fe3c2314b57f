"""Images, labels and conversions that the tests of the label formats share."""

import json
from pathlib import Path

from image_files import write_noise
import numpy as np
from PIL import Image

from uadjax.data import convert as converting

H, W = 24, 32


def silently(items, total, what):
  return items


def convert(source, kind, target):
  return converting.convert(source, kind, target, silently)


def picture(path: Path, seed=0, size=(H, W)) -> Path:
  return write_noise(path, seed, (*size, 3))


def write(path: Path, value) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
  path.write_text(text, 'utf-8')
  return path


def lists(target: Path) -> tuple[list[list[str]], list[list[str]]]:
  train, val = ((target / f'{name}.txt').read_text('utf-8') for name in ('train', 'val'))
  return [x.split('\t') for x in train.splitlines()], [x.split('\t') for x in val.splitlines()]


def mask(target: Path, name: str) -> np.ndarray:
  image = Image.open(target / 'annotations' / name)
  values = np.asarray(image)
  assert image.mode == 'L'
  assert set(np.unique(values)) <= {0, 255}
  return values > 0


def block(top, bottom, left, right, size=(H, W)) -> np.ndarray:
  out = np.zeros(size, bool)
  out[top:bottom, left:right] = True
  return out


def shape(label, points, kind: str | None = 'polygon', **more):
  return {
    'label': label,
    'points': points,
    'group_id': None,
    'description': '',
    'shape_type': kind,
    'flags': {},
    'mask': None,
    **more,
  }


def labelme(image: str | None, shapes, data: str | None = None, size=(H, W)):
  return {
    'version': '5.5.0',
    'flags': {},
    'shapes': shapes,
    'imagePath': image,
    'imageData': data,
    'imageHeight': size[0],
    'imageWidth': size[1],
  }


SQUARE = [[4.0, 5.0], [10.0, 5.0], [10.0, 9.0], [4.0, 9.0]]
