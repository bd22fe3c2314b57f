r"""Distill ResNet-18's layer1-3 into the embedded backbone, on generated pictures alone.

  python experiments/distill_backbone.py TEACHER RUN --minutes 150
  python experiments/distill_backbone.py TEACHER RUN --minutes 150 --resume
  python experiments/distill_backbone.py TEACHER RUN --resume --minutes 0 --judge DATA/screw

TEACHER is a file of ResNet-18's ImageNet weights. RUN receives the log (log.jsonl), a checkpoint
every few minutes, and compact.safetensors with its card. A run that was cut off goes on with the
same recipe and, on a CPU, the same bits; it may be given its minutes in pieces. The schedule needs
the number of steps: choose what the minutes allow. On an accelerator, larger batches:

  ... --set batch=256 late_batch=96 pictures=512 looks=4 rate=0.006 --paint 64
"""

import argparse
import hashlib
import json
from pathlib import Path
import time
from typing import Any

from distill import judge, losses, store, student
import fresh
import jax
import numpy as np

from uadjax.backbones import compact, weights
from uadjax.system import memory
from uadjax.types import Variables


def main() -> None:
  """Learn until the minutes or the steps are over; then export, and judge what is to be judged."""
  flags = _flags()
  memory.retain_freed_pages()
  flags.run.mkdir(parents=True, exist_ok=True)
  taught, source = weights.load(str(flags.teacher), student.teacher())
  if flags.resume:
    recipe, state, scales = store.load(flags.run)
  else:
    recipe = _recipe(flags.set)
    scales = student.measure(recipe, taught)
    state = student.initial(recipe, scales)
  about = {'recipe': recipe._asdict(), 'teacher': source._asdict()}
  about |= {'sources': _sources(), 'machine': _machine()}
  log = Log(flags.run / 'log.jsonl')
  log.write({**about, 'step': int(state.step)})
  state = _learn(flags, recipe, state, scales, taught, about, log)
  path = flags.run / 'compact.safetensors'
  told = store.export(path, state, about)
  print(f'{told["parameters"]} parameters, {told["bytes"]} bytes, SHA-256 {told["sha256"]}')
  shipped, _ = weights.load(str(path), compact.Compact())
  for folder in flags.judge:
    for name, value in _worth(folder, shipped, taught, flags.teacher_too).items():
      log.write({'step': told['step'], 'judged': str(folder.name), 'by': name, 'auroc': value})


class Log:
  """Lines of JSON, in a file and on the screen."""

  def __init__(self, path: Path):
    self.path = path

  def write(self, line: dict[str, Any]) -> None:
    """Add a line."""
    text = json.dumps(line)
    with self.path.open('a') as file:
      file.write(text + '\n')
    print(text, flush=True)


def _learn(
  flags: argparse.Namespace,
  recipe: student.Recipe,
  state: student.State,
  scales: losses.Scales,
  taught: Variables,
  about: dict[str, Any],
  log: Log,
) -> student.State:
  """Learn, with a checkpoint every so often and at the end."""
  began = saved = told = time.monotonic()
  first = last = int(state.step)
  painted, waiting = None, []
  for number in range(first, recipe.steps):
    if time.monotonic() - began > 60 * flags.minutes:
      break
    if painted is None or number % recipe.looks == 0:
      painted = student.paint(recipe, number, flags.paint)
    steady, late = student.phase(recipe, number)
    state, parts = student.step(state, taught, scales, painted, recipe, steady, late)
    jax.block_until_ready(waiting[-1:])  # One step ahead of the device is enough.
    waiting.append(parts)
    if time.monotonic() - told > flags.log_every or number + 1 == recipe.steps:
      means = {k: round(float(np.mean([w[k] for w in waiting])), 4) for k in parts}
      seconds, told = time.monotonic() - told, time.monotonic()
      images = (number + 1 - last) * student.size(recipe, late)[0]
      log.write({'step': number + 1, 'images_per_s': round(images / seconds, 1), **means})
      last, waiting = number + 1, []
    if time.monotonic() - saved > 60 * flags.save_every:
      store.save(flags.run, state, scales, about)
      saved = time.monotonic()
  if int(state.step) > first:
    store.save(flags.run, state, scales, about)
  return state


def _worth(folder: Path, shipped: Variables, taught: Variables, both: bool) -> dict[str, float]:
  stages = ('layer2', 'layer3')
  found = {'student': judge.image_auroc(compact.Compact(stages), shipped, folder)}
  if both:
    found['teacher'] = judge.image_auroc(student.teacher().clone(stages=stages), taught, folder)
  return found


def _sources() -> dict[str, str]:
  """SHA-256 of the files that make the recipe."""
  folder = Path(__file__).parent
  paths = [Path(__file__), *sorted((folder / 'distill').glob('*.py')), Path(compact.__file__)]
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def _machine() -> str:
  return f'{fresh.machine()}; jax {jax.__version__} on {jax.devices()[0].device_kind}'


def _recipe(settings: list[str]) -> student.Recipe:
  recipe = student.Recipe()
  for setting in settings:
    name, _, value = setting.partition('=')
    if name not in recipe._fields:
      raise SystemExit(f'No {name!r} in a recipe; choose from {list(recipe._fields)}.')
    recipe = recipe._replace(**{name: type(getattr(recipe, name))(value)})
  return recipe


def _flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('teacher', type=Path, help="file of ResNet-18's weights")
  parser.add_argument('run', type=Path, help='folder of the run')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='then stop; go on later')
  parser.add_argument('--resume', action='store_true', help='go on from the checkpoint')
  parser.add_argument('--set', nargs='*', default=[], metavar='NAME=VALUE', help='of the recipe')
  parser.add_argument('--judge', type=Path, nargs='*', default=[], help='folders of categories')
  parser.add_argument('--teacher-too', action='store_true', help='judge the teacher as well')
  parser.add_argument('--save-every', type=float, default=5.0, help='minutes')
  parser.add_argument('--log-every', type=float, default=30.0, help='seconds')
  parser.add_argument('--paint', type=int, default=1, help='pictures painted side by side')
  flags = parser.parse_args()
  if flags.resume and flags.set:
    parser.error('--resume goes on with the recipe of the checkpoint; leave out --set.')
  return flags


if __name__ == '__main__':
  main()
