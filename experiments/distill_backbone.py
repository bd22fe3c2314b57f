r"""Distill ResNet-18's layer1-3 into the embedded backbone, on synthetic images only.

  python experiments/distill_backbone.py TEACHER RUN --minutes 150
  python experiments/distill_backbone.py TEACHER RUN --minutes 150 --resume
  python experiments/distill_backbone.py TEACHER RUN --resume --minutes 0 --evaluate DATA/screw

TEACHER is a file of ResNet-18's ImageNet weights. RUN receives the log (log.jsonl), a checkpoint
every few minutes, and compact.safetensors with its card. An interrupted run resumes with the same
recipe and, on a CPU, the same bits, so its minutes can be split over several calls. The schedule
needs the number of steps: choose what the minutes allow. On an accelerator use larger batches:

  ... --set batch_size=256 late_batch_size=96 num_images=512 steps_per_image_set=4 \
    learning_rate=0.006 --generate_batch 64
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
  """Train until the minutes or the steps are over; then export and evaluate."""
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
  """Log of JSON lines, in a file and on the screen."""

  def __init__(self, path: Path):
    self.path = path

  def write(self, record: dict[str, Any]) -> None:
    """Append a record and print it."""
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
  """Train, with a checkpoint every few minutes and at the end."""
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
    jax.block_until_ready(pending_terms[-1:])  # The host stays one step ahead of the device.
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
  """Return the SHA-256 of the source files that determine the result."""
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
      raise SystemExit(f'--set: unknown setting {name!r}; choose from {list(recipe._fields)}.')
    recipe = recipe._replace(**{name: type(getattr(recipe, name))(value)})
  return recipe


def _parse_flags() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('teacher', type=Path, help="file of ResNet-18's weights")
  parser.add_argument('run', type=Path, help='folder of the run')
  parser.add_argument('--minutes', type=float, default=float('inf'), help='time limit')
  parser.add_argument('--resume', action='store_true', help='resume from the checkpoint')
  parser.add_argument(
    '--set', nargs='*', default=[], metavar='NAME=VALUE', help='settings of the recipe'
  )
  parser.add_argument('--evaluate', type=Path, nargs='*', default=[], help='folders of categories')
  parser.add_argument('--evaluate_teacher', action='store_true', help='evaluate the teacher, too')
  parser.add_argument('--save-every', type=float, default=5.0, help='minutes between checkpoints')
  parser.add_argument('--log-every', type=float, default=30.0, help='seconds between log lines')
  parser.add_argument('--generate_batch', type=int, default=1, help='images generated at a time')
  flags = parser.parse_args()
  if flags.resume and flags.set:
    parser.error('--resume uses the recipe of the checkpoint; run without --set.')
  return flags


if __name__ == '__main__':
  main()
