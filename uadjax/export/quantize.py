"""Smaller ONNX graphs: convolutions in eight bits, or arrays stored in sixteen.

Such a graph does not say what its model says to the last digit, so it is judged by what it is for:
whether good images keep their labels, and defects are still told from them. Thresholds stand on
distances; norms, means and all that is compared stay float32.

Letters: r graphs, n images, h w image.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np

from uadjax import bundle, calibrate, data, metrics, runtimes, telemetry
from uadjax.data import datasets, preprocess
from uadjax.export import graph as graphs, onnxfile
from uadjax.types import ConfigError, DataError, ExportError, Record, UnknownName

# An image AUROC that falls by a point has lost more than methods differ by on easy products.
AUROC_FALL = 0.01
# A score as near to its threshold as rounding moves it is on neither side: of a hundred images two
# may lie there. Of few images one always may.
LABEL_SHARE = 0.02

_JUDGED = 200  # Images of each kind at most, spread over all.
_RANGES = 48  # Images that activations are measured on: more widen few ranges, and take longer.
_AT_ONCE = 4
_LARGE = 1 << 16  # Numbers in an array: smaller ones do not pay.
_FACTORS = ('Conv', 'MatMul', 'Gemm', 'Einsum', 'Gather')


class Kept(NamedTuple):
  """What a quantized graph kept on some images.

  Attributes:
    images: compared.
    label_changes: images that are labelled otherwise.
    score_change: the largest change of an image's score, relative to it.
    auroc: of the float graph; None where a class is missing.
    auroc_quantized: of the quantized one.
  """

  images: int
  label_changes: int
  score_change: float
  auroc: float | None = None
  auroc_quantized: float | None = None

  @property
  def holds(self) -> bool:
    """Whether it is as good, within the tolerance; no NaN is."""
    allowed = max(1, int(LABEL_SHARE * self.images))
    fall = (self.auroc or 0.0) - (self.auroc_quantized or 0.0)
    return self.label_changes <= allowed and fall <= AUROC_FALL and math.isfinite(self.score_change)

  def __str__(self) -> str:
    told = (
      f'{self.label_changes} of {self.images} labels change, scores by {self.score_change:.2g} at '
      'most'
    )
    if self.auroc is None:
      return told
    return f'{told}, image AUROC {self.auroc:.4f} becomes {self.auroc_quantized:.4f}'


class Quantized(NamedTuple):
  """What became of a graph.

  Attributes:
    kind: one of KINDS.
    bytes_before: of the float graph.
    bytes_after: of the quantized one.
    good: on good images that the thresholds stand on; None where none is here.
    test: on test images; None where there are none.
  """

  kind: str
  bytes_before: int
  bytes_after: int
  good: Kept | None
  test: Kept | None

  @property
  def holds(self) -> bool:
    """Whether it may be used instead of the float graph."""
    return all(kept.holds for kept in (self.good, self.test) if kept)

  def told(self) -> dict[str, Any]:
    """The same, as JSON can hold it."""
    sets = {'good': self.good, 'test': self.test}
    kept = {name: one for name, one in sets.items() if one}
    of_sets = ('images', 'label_changes', 'score_change')
    return {
      'kind': self.kind,
      'bytes_before': self.bytes_before,
      'bytes_after': self.bytes_after,
      **{key: {name: getattr(one, key) for name, one in kept.items()} for key in of_sets},
      'auroc': self.test.auroc if self.test else None,
      'auroc_quantized': self.test.auroc_quantized if self.test else None,
      'tolerance': {'auroc_fall': AUROC_FALL, 'label_share': LABEL_SHARE},
    }

  def __str__(self) -> str:
    sets = (('good', self.good), ('test', self.test))
    kept = '; '.join(f'on {one.images} {name} images {one}' for name, one in sets if one)
    return f'{self.kind}, {self.bytes_before / 1e6:.1f} MB in float32; {kept}'


class Pictures(NamedTuple):
  """What is measured and judged on.

  Attributes:
    good: good images.
    test: test images, of both classes where there are such.
    taken: reads a file as the graph takes it.
  """

  good: Sequence[Path]
  test: Sequence[Record]
  taken: Callable[[Path], UInt8[np.ndarray, 'h w 3']]


def check(kind: str, format: str) -> None:
  """Refuse what there is not.

  Raises:
    UnknownName: there is no such kind.
    ConfigError: the format is not quantized.
  """
  if kind not in KINDS:
    raise UnknownName(f'Unknown export.quantize {kind!r}; choose from {list(KINDS)}.')
  if format != 'onnx':
    raise ConfigError(
      f'export.quantize={kind} is for onnx alone, since only there the result is run and judged '
      f'before it is done; export to onnx, or to {format} without export.quantize.'
    )


def pictures(model: bundle.Model, camera: tuple[int, int] | None, folder: Path | None) -> Pictures:
  """Choose what to judge on.

  Good images are those that the thresholds stand on. Test images are those of the data set that the
  model was fitted on, where it is still there.

  Args:
    model: of which.
    camera: height and width of the camera's images; None for network size.
    folder: a data set, or a folder of good images, instead.

  Raises:
    DataError: the folder is none.
    ConfigError: no image is here.
  """
  splits = _splits(model, folder)
  normals = bundle.calibration(model.directory)
  named = [Path(path) for path in normals.path if path] if normals else []
  good = [path for path in named if path.is_file()]
  if folder and (not good or not splits.test):
    good = [record.path for record in splits.train if not record.anomalous] or good
  if not good:
    raise ConfigError(
      'export.quantize needs good images to measure and judge on, and none that calibration.csv of '
      f'{model.directory} names is here; pass --images (export.images) with some, or with the data '
      'set.'
    )

  def taken(path: Path) -> UInt8[np.ndarray, 'h w 3']:
    return graphs.pixels(model.ops, preprocess.decode(path), camera)[0]

  return Pictures(_spread(good, _JUDGED), _spread(splits.test, _JUDGED), taken)


def quantize(
  kind: str, path: Path, limits: calibrate.Limits, batch: int | None, on: Pictures
) -> Quantized:
  """Replace an ONNX file by its quantized form, and judge that.

  Args:
    kind: one of KINDS.
    path: of the file.
    limits: thresholds of its labels.
    batch: images it takes at once; None for any number.
    on: the pictures.

  Raises:
    ExportError: it cannot be made, or is not as good.
  """
  import onnx

  if path.with_name(f'{path.name}.data').exists():
    raise ExportError(
      f'{path.name} has two gigabytes or more, which are not quantized; fit with fewer '
      'detector.channels, or leave export.quantize out. Nothing was written.'
    )
  before, smaller = path.stat().st_size, path.with_name(f'smaller-{path.name}')
  try:
    with telemetry.busy(f'Quantizing {path.name}'), _quietly():
      model = KINDS[kind](path, smaller, batch, on)
      _like(model, onnx.load(path))
      onnx.save(model, smaller)
      onnx.checker.check_model(smaller, full_check=True)
    runs = [onnxfile.load(one) for one in (path, smaller)]
    with telemetry.busy(f'Judging {path.name}'):
      good = _kept(runs, [Record(one) for one in on.good], on, limits, batch)
      test = _kept(runs, on.test, on, limits, batch) if on.test else None
  except DataError:
    raise
  except Exception as error:  # Of converters and runtimes, of any class.
    told = str(error).strip().partition('\n')[0]
    raise ExportError(
      f'{path.name} cannot be quantized: {told or type(error).__name__}. Nothing was written.'
    ) from None
  done = Quantized(kind, before, smaller.stat().st_size, good, test)
  if not done.holds:
    raise ExportError(
      f'{path.name} is not as good quantized: {done}, where image AUROC may fall by {AUROC_FALL:g} '
      f'and {100 * LABEL_SHARE:g} % of the labels, or one, may change; leave export.quantize out, '
      f'or try {" or ".join(other for other in KINDS if other != kind)}. Nothing was written.'
    )
  smaller.replace(path)
  return done


def _to_int8(path: Path, smaller: Path, batch: int | None, on: Pictures) -> Any:
  """Convolutions in eight bits: weights by channel, activations by what good images excite."""
  import onnx
  from onnxruntime import quantization

  class Images(quantization.CalibrationDataReader):
    def __init__(self) -> None:
      chunks = _chunks(_spread(on.good, _RANGES), on.taken, batch or 1, batch)
      self._images = ({runtimes.INPUT: images} for images, _ in chunks)

    def get_next(self) -> Any:
      return next(self._images, None)

  quantization.quantize_static(
    path,
    smaller,
    Images(),
    quant_format=quantization.QuantFormat.QDQ,
    op_types_to_quantize=['Conv'],
    nodes_to_exclude=_of_pixels(onnx.load(path)),
    per_channel=True,
    # Behind a ReLU a sign would be a wasted bit; nor does ONNX Runtime 1.31 open a signed one of
    # this opset. Seven bits for the weights, which CPUs without VNNI do not saturate, changed 7 of
    # 160 labels of screw instead of 3 (PatchCore, ResNet-18), and as many of toothbrush.
    activation_type=quantization.QuantType.QUInt8,
    weight_type=quantization.QuantType.QInt8,
    extra_options={'QDQKeepRemovableActivations': True},  # For `_unround` to find them.
  )
  return _unround(onnx.load(smaller))


def _unround(model: Any) -> Any:
  """Give what convolutions take in eight bits to all others as it was: features among them.

  The quantizer gives every reader of a tensor the rounded one.
  """
  made = {name: node for node in model.graph.node for name in node.output}

  def exact(name: str) -> str:
    dequantize = made.get(name)
    if dequantize is None or dequantize.op_type != 'DequantizeLinear':
      return name
    source = made[dequantize.input[0]].input[0] if dequantize.input[0] in made else name
    # Convolutions give eight bits as well, or ONNX Runtime would not compute them so.
    return name if source in made and made[source].op_type == 'Conv' else source

  for node in model.graph.node:
    if node.op_type != 'Conv':
      node.input[:] = [exact(name) for name in node.input]
  return model


def _of_pixels(model: Any) -> list[str]:
  """Convolutions of the image itself: few weights, and whatever they round all others see.

  In eight bits, too, they changed 6 of 160 labels of screw instead of 3, and 2 of 42 of toothbrush
  instead of 1 (PatchCore, ResNet-18).
  """
  weights = {array.name: array.dims for array in model.graph.initializer}
  convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
  return [node.name for node in convolutions if weights.get(node.input[1], (0, 3))[1] == 3]


def _to_fp16(path: Path, smaller: Path, batch: int | None, on: Pictures) -> Any:
  """Large factors stored in sixteen bits, and cast to float32 when the file is opened.

  Activations stay float32: ONNX Runtime's CPU provider has no convolution in half precision on x86,
  and casts around each. A backbone in half precision took 134 ms where it took 117 (PatchCore,
  ResNet-18, one image, two threads), and its scores moved as far.
  """
  import onnx

  model = onnx.load(path)
  uses: dict[str, list[bool]] = {}
  for node in model.graph.node:
    for place, name in enumerate(node.input):
      # What is added, such as means and the norms of a bank, is compared with its like: float32.
      uses.setdefault(name, []).append(node.op_type in _FACTORS and place < 2)
  casts = []
  for array in model.graph.initializer:
    half = _half(onnx.numpy_helper.to_array(array)) if all(uses.get(array.name, [False])) else None
    if half is not None:
      name, stored = array.name, f'{array.name}_half'
      array.CopyFrom(onnx.numpy_helper.from_array(half, stored))
      to = onnx.TensorProto.FLOAT
      casts.append(onnx.helper.make_node('Cast', [stored], [name], f'{name}_cast', to=to))
  nodes = [*casts, *model.graph.node]
  del model.graph.node[:]
  model.graph.node.extend(nodes)
  return model


def _half(array: np.ndarray) -> np.ndarray | None:
  """The same in half precision; None where that does not pay, or loses more than rounding does."""
  if array.dtype != np.float32 or array.ndim < 2 or array.size < _LARGE:
    return None
  with np.errstate(over='ignore'):
    half = array.astype(np.float16)
  furthest = np.abs(half.astype(np.float32) - array).max()
  return half if furthest <= 2.0**-11 * np.abs(array).max() else None


KINDS: dict[str, Callable[[Path, Path, int | None, Pictures], Any]] = {
  'int8': _to_int8,
  'fp16': _to_fp16,
}


def _like(model: Any, original: Any) -> None:
  """Say of a graph what its original says: origin, metadata, and the operations it needs alone."""
  used = {node.domain for node in model.graph.node}
  opsets = [opset for opset in model.opset_import if opset.domain in used]
  del model.opset_import[:], model.metadata_props[:]
  model.opset_import.extend(opsets)
  model.metadata_props.extend(original.metadata_props)
  model.producer_name, model.producer_version = original.producer_name, original.producer_version


def _splits(model: bundle.Model, folder: Path | None) -> datasets.Splits:
  """The data set of a folder; else that of the model, empty where it is not there any more."""
  own = model.config.data
  if folder:
    return _listed(folder, '', 'auto', own.mask_threshold)
  try:
    if not own.root:
      return data.load(own)
    return _listed(own.root, own.category, own.layout, own.mask_threshold)
  except DataError:
    return datasets.Splits((), ())


def _listed(root: str | Path, category: str, layout: str, threshold: int) -> datasets.Splits:
  """The images of a data set; that there is nothing to learn from does not matter."""
  listing = datasets.survey(root, category, layout)
  return datasets.load(root, category, layout, threshold) if listing.by_mask else listing.splits


def _spread(items: Sequence[Any], count: int) -> list[Any]:
  places = np.linspace(0, len(items) - 1, min(count, len(items)))
  return [items[place] for place in places.astype(int)]


def _kept(
  runs: Sequence[runtimes.Run],
  records: Sequence[Record],
  on: Pictures,
  limits: calibrate.Limits,
  batch: int | None,
) -> Kept:
  """Compare the labels and the ranking of two graphs."""
  paths = [record.path for record in records]
  found = []
  for images, count in _chunks(paths, on.taken, batch or _AT_ONCE, batch):
    found.append([np.asarray(run(images).image)[:count] for run in runs])
  before, after = np.concatenate(found, axis=1).astype(np.float64)
  labels = ([calibrate.label(float(x), limits) for x in scores] for scores in (before, after))
  scale = np.maximum(np.abs(before), np.finfo(np.float32).tiny)
  anomalous = np.array([record.anomalous for record in records])
  return Kept(
    len(records),
    sum(a != b for a, b in zip(*labels, strict=True)),
    float((np.abs(after - before) / scale).max()),
    _auroc(before, anomalous),
    _auroc(after, anomalous),
  )


def _auroc(scores: Float[np.ndarray, ' n'], anomalous: Bool[np.ndarray, ' n']) -> float | None:
  if anomalous.all() or not anomalous.any():
    return None
  if np.isnan(scores).any():
    return 0.0  # Nothing is told from anything.
  return metrics.auroc(metrics.rank(scores[anomalous], [scores[~anomalous]]))


def _chunks(
  paths: Sequence[Path],
  taken: Callable[[Path], UInt8[np.ndarray, 'h w 3']],
  rows: int,
  batch: int | None,
) -> Iterator[tuple[UInt8[np.ndarray, 'r h w 3'], int]]:
  """Images as a graph takes them, and how many; a fixed batch is filled up with the same again."""
  for start in range(0, len(paths), rows):
    images = np.stack([taken(path) for path in paths[start : start + rows]])
    count = len(images)
    yield (np.resize(images, (batch, *images.shape[1:])) if batch else images), count


@contextlib.contextmanager
def _quietly():
  """Without the quantizer's advice, which would set up logging for the whole process."""
  log, nobody = logging.getLogger(), logging.NullHandler()
  before = log.level
  log.addHandler(nobody)
  log.setLevel(logging.ERROR)
  try:
    yield
  finally:
    log.setLevel(before)
    log.removeHandler(nobody)
