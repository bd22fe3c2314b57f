"""Images in, verdicts out. Never imports TensorFlow."""

from collections.abc import Iterator, Sequence
import glob
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Bool, Float
import numpy as np
from PIL import Image

from uadjax import bundle, calibrate, files, visualize
from uadjax.data import preprocess
from uadjax.types import DataError


class Result(NamedTuple):
  """The verdict on one image, everything at its original size.

  Attributes:
    input_path: the file.
    score: how anomalous the image is.
    label: 'OK', 'review', or 'NG' where the score exceeds the threshold.
    threshold: of the image score.
    review: the score from which an image that is not NG is to be reviewed.
    pixel: of the map.
    pred: where the map exceeds the pixel threshold.
    anomaly_map: raw map values.
    seen: the pixels that the network saw: all but those outside a crop.
    error: why there is no verdict; the other fields are then empty.
  """

  input_path: str
  score: float = float('nan')
  label: str = ''
  threshold: float = float('nan')
  review: float = float('nan')
  pixel: float = float('nan')
  pred: Bool[np.ndarray, 'h w'] = np.zeros((0, 0), bool)
  anomaly_map: Float[np.ndarray, 'h w'] = np.zeros((0, 0), np.float32)
  seen: Bool[np.ndarray, 'h w'] = np.zeros((0, 0), bool)
  error: str = ''

  def summary(self) -> dict[str, Any]:
    """The verdict without its pixels, as JSON can hold it."""
    if self.error:
      return {'input_path': self.input_path, 'error': self.error}
    marked = int(self.pred.sum())
    return {
      'input_path': self.input_path,
      'score': self.score,
      'label': self.label,
      'threshold': self.threshold,
      'review_threshold': self.review,
      'pixel_threshold': self.pixel,
      'size': list(self.pred.shape),
      'marked_pixels': marked,
    }


def judge(
  model: bundle.Model,
  path: str,
  size: tuple[int, int],
  anomaly: Float[np.ndarray, 'h w'],
  score: float,
) -> Result:
  """Bring a map back to the original's (height, width), and apply the thresholds."""
  limits = model.limits
  restored = model.ops.restore(anomaly, *size)
  pred = restored.seen & (restored.map > limits.pixel)
  label, thresholds = calibrate.label(score, limits), (limits.image, limits.review, limits.pixel)
  return Result(path, score, label, *thresholds, pred, restored.map, restored.seen)


def predict(model: bundle.Model, paths: Sequence[Path], batch_size: int = 8) -> Iterator[Result]:
  """Yield a result per file, in order; an unreadable one has `error` set and the rest go on.

  Args:
    model: an opened model directory.
    paths: image files.
    batch_size: images per call of the detector; the last batch is padded to it.
  """
  for start in range(0, len(paths), batch_size):
    yield from _batch(model, paths[start : start + batch_size], batch_size)


def _batch(model: bundle.Model, paths: Sequence[Path], rows: int) -> Iterator[Result]:
  pixels = np.zeros((rows, model.ops.height, model.ops.width, 3), np.uint8)
  sizes: list[tuple[int, int]] = []
  errors: list[str] = []
  for row, path in enumerate(paths):
    try:
      image = preprocess.decode(path)
    except DataError as error:
      sizes.append((0, 0))
      errors.append(str(error))
    else:
      sizes.append(image.shape[:2])
      errors.append('')
      pixels[row] = model.ops.apply(image)
  scores = jax.device_get(model.score(model.fitted, pixels))
  for row, (path, size, error) in enumerate(zip(paths, sizes, errors, strict=True)):
    if error:
      yield Result(str(path), error=error)
    else:
      score = float(scores.image[row])
      yield judge(model, str(path), size, scores.map[row], score)


def picture(model: bundle.Model, result: Result) -> Image.Image:
  """Show an image beside its overlay, the marked region outlined."""
  image = preprocess.decode(Path(result.input_path))
  over = visualize.overlay(image, result.anomaly_map, model.limits.pixel)
  tiles = [
    visualize.Tile('image', image),
    visualize.Tile('heatmap and outline', visualize.outline(over, result.pred)),
  ]
  return visualize.side_by_side(tiles, headline(result))


def headline(result: Result) -> str:
  """The verdict in one line."""
  name = Path(result.input_path).name
  limits = f'NG above {result.threshold:.3g}'
  if result.review < result.threshold:
    limits += f', review above {result.review:.3g}'
  return f'{name}   {result.label}   score {result.score:.3g}   ({limits})'


def leave(model: bundle.Model, result: Result, folder: Path) -> None:
  """Write `<name>_res.json`, and `<name>_res.png` unless the file was unreadable."""
  folder.mkdir(parents=True, exist_ok=True)
  path = Path(result.input_path)
  # Where another image has the same stem, the suffix tells them apart.
  twins = [p for p in path.parent.glob(f'{glob.escape(path.stem)}.*') if p != path]
  stem = path.name if twins else path.stem
  files.write_json(folder / f'{stem}_res.json', result.summary())
  if not result.error:
    picture(model, result).save(folder / f'{stem}_res.png')
