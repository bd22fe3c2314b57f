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

from distill import evaluation, losses, store, student
import jax
import numpy as np
import subprocess_runs

from uadjax.backbones import compact, weights
from uadjax.system import memory
from uadjax.types import Variables


def main() -> None:
  """Learn until the minutes or the steps are over; then export, and judge what is to be judged."""
  flags = _parse_flags()
  memory.retain_freed_pages()
  flags.run.mkdir(parents=True, exist_ok=True)
  teacher_variables, source = weights.load(str(flags.teacher), student.build_teacher())
  if flags.resume:
    recipe, state, scales = store.load(flags.run)
  else:
    recipe = _parse_recipe(flags.set)
    scales = student.measure_scales(recipe, teacher_variables)
    state = student.init_state(recipe, scales)
  metadata = {'recipe': recipe._asdict(), 'teacher': source._asdict()}
  metadata |= {'sources': _hash_sources(), 'machine': _describe_machine()}
  log = JsonLog(flags.run / 'log.jsonl')
  log.write({**metadata, 'step': int(state.step)})
  state = _train(flags, recipe, state, scales, teacher_variables, metadata, log)
  path = flags.run / 'compact.safetensors'
  card = store.export(path, state, metadata)
  print(f'{card["parameters"]} parameters, {card["bytes"]} bytes, SHA-256 {card["sha256"]}')
  student_variables, _ = weights.load(str(path), compact.Compact())
  for folder in flags.evaluate:
    for name, value in _evaluate_networks(
      folder, student_variables, teacher_variables, flags.evaluate_teacher
    ).items():
      log.write(
        {'step': card['step'], 'category': str(folder.name), 'network': name, 'auroc': value}
      )


class JsonLog:
  """Lines of JSON, in a file and on the screen."""

  def __init__(self, path: Path):
    self.path = path

  def write(self, record: dict[str, Any]) -> None:
    """Add a line."""
    text = json.dumps(record)
    with self.path.open('a') as file:
      file.write(text + '\n')
    print(text, flush=True)


def _train(
  flags: argparse.Namespace,
  recipe: student.Recipe,
  state: student.State,
  scales: losses.Scales,
  teacher_variables: Variables,
  metadata: dict[str, Any],
  log: JsonLog,
) -> student.State:
  """Learn, with a checkpoint every so often and at the end."""
  start_time = last_save_time = last_log_time = time.monotonic()
  first_step = last_logged_step = int(state.step)
  source_images, pending_terms = None, []
  for step in range(first_step, recipe.steps):
    if time.monotonic() - start_time > 60 * flags.minutes:
      break
    if source_images is None or step % recipe.steps_per_image_set == 0:
      source_images = student.generate_images(recipe, step, flags.generate_batch)
    use_running_stats, large_views = student.training_phase(recipe, step)
    state, loss_terms = student.train_step(
      state, teacher_variables, scales, source_images, recipe, use_running_stats, large_views
    )
    jax.block_until_ready(pending_terms[-1:])  # One step ahead of the device is enough.
    pending_terms.append(loss_terms)
    if time.monotonic() - last_log_time > flags.log_every or step + 1 == recipe.steps:
      means = {
        k: round(float(np.mean([terms[k] for terms in pending_terms])), 4) for k in loss_terms
      }
      seconds, last_log_time = time.monotonic() - last_log_time, time.monotonic()
      images = (step + 1 - last_logged_step) * student.view_count_and_size(recipe, large_views)[0]
      log.write({'step': step + 1, 'images_per_s': round(images / seconds, 1), **means})
      last_logged_step, pending_terms = step + 1, []
    if time.monotonic() - last_save_time > 60 * flags.save_every:
      store.save(flags.run, state, scales, metadata)
      last_save_time = time.monotonic()
  if int(state.step) > first_step:
    store.save(flags.run, state, scales, metadata)
  return state


def _evaluate_networks(
  folder: Path, student_variables: Variables, teacher_variables: Variables, include_teacher: bool
) -> dict[str, float]:
  stages = ('layer2', 'layer3')
  aurocs = {'student': evaluation.image_auroc(compact.Compact(stages), student_variables, folder)}
  if include_teacher:
    aurocs['teacher'] = evaluation.image_auroc(
      student.build_teacher().clone(stages=stages), teacher_variables, folder
    )
  return aurocs


def _hash_sources() -> dict[str, str]:
  """SHA-256 of the files that make the recipe."""
  folder = Path(__file__).parent
  paths = [Path(__file__), *sorted((folder / 'distill').glob('*.py')), Path(compact.__file__)]
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def _describe_machine() -> str:
  return (
    f'{subprocess_runs.describe_machine()}; jax {jax.__version__} on {jax.devices()[0].device_kind}'
  )


def _parse_recipe(settings: list[str]) -> student.Recipe:
  recipe = student.Recipe()
  for setting in settings:
    name, _, value = setting.partition('=')
    if name not in recipe._fields:
      raise SystemExit(f'No {name!r} in a recipe; choose from {list(recipe._fields)}.')
    recipe = recipe._replace(**{name: type(getattr(recipe, name))(value)})
  return recipe


def _parse_flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('teacher', type=Path, help="file of ResNet-18's weights")
  parser.add_argument('run', type=Path, help='folder of the run')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='then stop; go on later')
  parser.add_argument('--resume', action='store_true', help='go on from the checkpoint')
  parser.add_argument('--set', nargs='*', default=[], metavar='NAME=VALUE', help='of the recipe')
  parser.add_argument('--evaluate', type=Path, nargs='*', default=[], help='folders of categories')
  parser.add_argument('--evaluate_teacher', action='store_true', help='judge the teacher as well')
  parser.add_argument('--save-every', type=float, default=5.0, help='minutes')
  parser.add_argument('--log-every', type=float, default=30.0, help='seconds')
  parser.add_argument('--generate_batch', type=int, default=1, help='pictures painted side by side')
  flags = parser.parse_args()
  if flags.resume and flags.set:
    parser.error('--resume goes on with the recipe of the checkpoint; leave out --set.')
  return flags


if __name__ == '__main__':
  main()
