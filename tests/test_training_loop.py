"""The loop with a detector small enough to follow by hand: the mean of all pixels."""

import errno
import os
import re
import signal
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import small_runs

from uadjax.data import batches as batch_streams, demo, layouts, transforms
from uadjax.data.image_cache import ImageCache
from uadjax.detectors.base import Detector
from uadjax.distributed import mesh as meshes, processes
from uadjax.errors import ConfigError, exit_status, Interrupted, ModelError
from uadjax.model import scoring
from uadjax.system import signals
from uadjax.training import checkpoint, hooks, loop, settings, workdir as workdirs
from uadjax.training.settings import FitSettings
from uadjax.types import Batch, Scores


class State(NamedTuple):
  total: jax.Array


def summing(losses=None):
  """Adds batches up; its held-out loss, where it has one, is `losses[steps taken]`."""

  def update(state, batch):
    total = state.total + jnp.sum(batch.image.astype(jnp.float32), where=batch.valid[:, None])
    return State(total), {'loss': total}

  def validate(state, batch):
    return {'loss': jnp.asarray(losses)[state.total.astype(jnp.int32)]}

  return Detector(
    init=lambda key, variables: State(jnp.zeros(())),
    precompute=None,
    update=update,
    validate=None if losses is None else validate,
    finalize=lambda state: state,
    score=lambda fitted, images: Scores(jnp.zeros((1, 1, 1)), jnp.zeros(1)),
  )


def ones(n):
  return Batch(np.ones((n, 1), np.uint8), np.ones(n, bool), np.arange(n, dtype=np.int32))


def looped(detector, steps, hooks, state=None, start=0):
  state = detector.init(jax.random.key(0), {}) if state is None else state
  batches = iter(lambda: ones(1), None)
  return loop.run(detector.update, state, batches, range(start + 1, steps + 1), hooks)


def test_the_loop_consumes_one_batch_per_step():
  eaten = iter([ones(1)] * 5)
  detector = summing()
  state = loop.run(detector.update, State(jnp.zeros(())), eaten, range(3), [])
  assert state.total == 3
  assert len(list(eaten)) == 2


def test_hooks_see_every_step_with_its_state():
  calls = []
  looped(summing(), 3, [lambda step, state, metrics: calls.append((step, float(state.total)))])
  assert calls == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_the_best_step_is_the_one_of_the_lowest_held_out_loss():
  detector = summing(losses=[9.0, 5.0, 2.0, 4.0, 1.0, 3.0])
  judge = hooks.BestStepHook(detector.validate, [ones(2), ones(1)], eval_every=1, num_steps=5)
  looped(detector, 5, [judge])
  best = judge.best
  assert (best.step, best.loss, float(best.state.total)) == (4, 1.0, 4.0)


def test_the_last_step_is_validated_whatever_the_cadence():
  detector = summing(losses=[9.0, 5.0, 2.0])
  judge = hooks.BestStepHook(detector.validate, [ones(1)], eval_every=100, num_steps=2)
  looped(detector, 2, [judge])
  assert judge.best.step == 2


def test_a_diverged_loss_is_one_clear_error():
  detector = summing(losses=[0.0, float('nan')])
  judge = hooks.BestStepHook(detector.validate, [ones(1)], eval_every=1, num_steps=1)
  with pytest.raises(ConfigError, match=r'nan at step 1.*fit\.learning_rate'):
    looped(detector, 1, [judge])


@pytest.mark.parametrize(
  ('fields', 'images', 'steps'),
  [
    ({'epochs': 100, 'batch_size': 32}, 167, 521),
    ({'epochs': 1, 'batch_size': 32}, 5, 1),
    ({'epochs': 9, 'batch_size': 32, 'steps': 7}, 167, 7),
    ({'epochs': 2, 'batch_size': 8}, 12, 3),
  ],
)
def test_steps_are_epochs_of_full_batches(fields, images, steps):
  options = FitSettings(**fields)
  assert loop.total_steps(options, images) == steps


def test_warm_up_is_linear_then_constant():
  rate = loop.learning_rate_schedule(FitSettings(warmup_steps=4, learning_rate=0.4))
  np.testing.assert_allclose(
    [rate(s) for s in (0, 1, 2, 4, 99)], [0, 0.1, 0.2, 0.4, 0.4], rtol=1e-6
  )


def test_batches_are_placed_one_ahead():
  placed = []

  def place(batch):
    placed.append(batch)
    return batch

  stream = scoring.prefetch_to_device(iter(range(4)), place)
  assert next(stream) == 0
  assert placed == [0, 1]
  assert list(stream) == [1, 2, 3]


@pytest.fixture
def managers(tmp_path):
  with checkpoint.open_managers(tmp_path) as managers:
    yield managers


def saved(detector, managers, steps, every_s, stop=None, state=None, start=0, best=None):
  judge = hooks.BestStepHook(detector.validate, [ones(1)], 1, steps, best)
  hook = hooks.CheckpointHook(managers, judge, every_s, steps, stop or signals.StopRequest())
  looped(detector, steps, [judge, hook], state, start)
  return judge.best


def test_the_last_five_steps_and_the_best_are_kept(managers, tmp_path):
  losses = np.array([9, 8, 1, *range(2, 20)], np.float32)
  saved(summing(losses), managers, 9, every_s=0.0)
  assert checkpoint.saved_steps(tmp_path, 'rolling') == [5, 6, 7, 8, 9]
  assert checkpoint.saved_steps(tmp_path, 'best')[-1] == 2


def test_a_short_run_writes_only_its_end(managers, tmp_path):
  saved(summing([3.0, 2.0, 1.0, 0.0]), managers, 3, every_s=60.0)
  assert checkpoint.saved_steps(tmp_path, 'rolling') == [3]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('is_own', [True, False])
def test_a_stopped_fit_saves_a_checkpoint_and_says_how_to_resume(
  managers, tmp_path, monkeypatch, number, is_own
):
  """Whichever process of a run got the signal, each has the exit status of it."""
  stop = signals.StopRequest(number if is_own else 0)
  monkeypatch.setattr(processes, 'largest', lambda own_number: max(own_number, number))
  with pytest.raises(Interrupted, match=r'step 1/5.*fit\.resume=latest') as caught:
    saved(summing([3.0] * 9), managers, 5, every_s=60.0, stop=stop)
  assert checkpoint.saved_steps(tmp_path, 'rolling') == [1]
  assert exit_status(caught.value) == 128 + number


@pytest.mark.parametrize('cut', [1, 2, 3, 4, 5])
def test_resumed_from_any_step_equals_uninterrupted(managers, cut):
  losses = [9.0, 5.0, 2.0, 4.0, 1.0, 3.0, 6.0]
  detector = summing(losses)
  straight = saved(detector, managers, 6, every_s=0.0)
  start, state, best = loop.resume(str(cut + 1), 6, managers, State(jnp.zeros(())))
  assert start == cut + 1
  assert best is None or best.step <= start
  again = saved(detector, managers, 6, 0.0, state=state, start=start, best=best)
  assert (again.step, again.loss) == (straight.step, straight.loss)
  assert again.state.total == straight.state.total


def test_steps_that_cannot_be_resumed_are_named(managers, tmp_path):
  with pytest.raises(ConfigError, match='has no checkpoint'):
    loop.resume('latest', 9, managers, State(jnp.zeros(())))
  config = settings.load('stfpm', [('fit.resume', 'last')])
  workdirs.prepare(tmp_path, config)
  with pytest.raises(ConfigError, match="'latest', 'best' or one of the steps") as caught:
    workdirs.require_no_conflict(tmp_path, config)
  assert (caught.value.key, caught.value.value) == ('fit.resume', 'last')


def test_a_corrupt_checkpoint_is_called_so_and_earlier_ones_are_named(managers, tmp_path):
  saved(summing([9.0] * 9), managers, 3, every_s=0.0)
  expected, blank = loop.resume('3', 3, managers, State(jnp.zeros(())))[1], State(jnp.zeros(()))
  messages = []
  for path in (tmp_path / 'rolling' / '3').rglob('*'):
    content = path.read_bytes() if path.is_file() else b''
    for damage in (b'', content[: len(content) // 2], bytes(byte ^ 0x55 for byte in content)):
      if not content:
        continue
      path.write_bytes(damage)
      try:
        assert loop.resume('3', 3, managers, blank)[1] == expected  # Some files are not needed.
      except ModelError as error:
        messages.append(str(error))
      path.write_bytes(content)
  assert len(messages) > 9
  for message in messages:
    assert re.search(r'checkpoint of step 3 in .* is corrupt \(', message)
    assert 'fit.resume=2; there are checkpoints of the steps 2, 1' in message
  assert loop.resume('3', 3, managers, blank)[1] == expected
  other = State(jnp.zeros(3))
  with pytest.raises(ModelError, match='does not match the configuration'):
    loop.resume('3', 3, managers, other)


def test_damaged_metadata_of_a_checkpoint_are_reported_as_corrupt(managers, tmp_path):
  """Bits of a key that flipped leave valid JSON."""
  saved(summing([9.0, 8.0, 7.0, 6.0]), managers, 3, every_s=0.0)
  blank = State(jnp.zeros(()))
  (path,) = [path for path in (tmp_path / 'best' / '3').rglob('*') if b'loss' in read(path)]
  content = path.read_bytes()
  for damage in (b'{}', b'[]', b'null', content.replace(b'loss', b'lors'), b'{"loss": "1"}'):
    path.write_bytes(damage)
    with pytest.raises(ModelError, match=r'step 3 in .*best is corrupt') as caught:
      loop.resume('3', 3, managers, blank)
    assert caught.value.allowed == [2, 1]
    assert loop.resume('2', 3, managers, blank)[0] == 2
  path.write_bytes(content)
  assert loop.resume('3', 3, managers, blank)[2].loss == 6.0


def read(path):
  return path.read_bytes() if path.is_file() else b''


@pytest.mark.parametrize(
  'error', [OSError(errno.ENOSPC, 'x'), ValueError(f'RESOURCE_EXHAUSTED: {os.strerror(28)} [28]')]
)
def test_a_full_disk_is_named_with_the_checkpoint_and_its_bytes(
  managers, tmp_path, monkeypatch, error
):
  state = State(jnp.zeros(()))
  checkpoint.save(managers.rolling, 1, state, {})

  def fail(step, **options):
    folder = tmp_path / 'rolling' / f'{step}.orbax-checkpoint-tmp'
    folder.mkdir()
    (folder / 'state').write_bytes(bytes(1234))
    raise error

  monkeypatch.setattr(managers.rolling, 'save', fail)
  with pytest.raises(OSError, match='1,234 bytes were written, ') as caught:
    checkpoint.save(managers.rolling, 2, state, {})
  assert caught.value.filename == str(tmp_path / 'rolling' / '2')
  assert [path.name for path in (tmp_path / 'rolling').iterdir()] == ['1']


def test_unfinished_checkpoints_are_removed(tmp_path):
  (tmp_path / 'rolling' / '7.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
  with checkpoint.open_managers(tmp_path) as managers:
    assert not managers.rolling.all_steps()
    checkpoint.save(managers.rolling, 1, State(jnp.zeros(())), {})
  assert [path.name for path in (tmp_path / 'rolling').iterdir()] == ['1']


def test_the_initial_state_shares_no_arrays_with_its_source():
  variables = {'params': {'w': jnp.ones(3)}}
  detector = summing()._replace(init=lambda key, v: v)
  mesh = meshes.make_mesh('cpu', 1, 1)
  state = loop.initial_state(detector, variables, 0, mesh)
  jax.block_until_ready(
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
  )
  assert variables['params']['w'].sum() == 3


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  few = {'train': 7, 'test_good': 1, 'test_defect': 1, 'size': 24}
  root = demo.write_dataset(tmp_path_factory.mktemp('drawn'), **few, **small_runs.DISCS)
  return layouts.load(root, 'disc').train


def reading():
  """Its frozen part is each image's own pixel sums, so that a row that strays is noticed."""
  return summing()._replace(
    precompute=lambda state, batch: {'sums': batch.image.astype(jnp.float32).sum((1, 2))}
  )


def test_cached_features_belong_to_their_images(drawn):
  ops, mesh = transforms.parse('resize(16)'), meshes.make_mesh('cpu', 2, 4)
  add_features = loop.cache_features(reading(), None, drawn, ImageCache(ops, 0), 4, 1 << 20, mesh)
  batches = batch_streams.train_batches(drawn, ImageCache(ops, 0), 4, seed=5)
  indices = set()
  for batch, _ in zip(batches, range(6), strict=False):
    want = batch.image.astype(np.float32).sum((1, 2))
    np.testing.assert_array_equal(add_features(batch).features['sums'], want)
    indices |= set(batch.index.tolist())
  assert indices == set(range(7))
  batches.close()


def test_features_over_the_limit_are_not_cached(drawn):
  ops, mesh = transforms.parse('resize(16)'), meshes.make_mesh('cpu', 1, 4)
  needed = 7 * 3 * 4  # Images, channels, bytes.
  for limit, is_cached in ((needed, True), (needed - 1, False)):
    add_features = loop.cache_features(reading(), None, drawn, ImageCache(ops, 0), 4, limit, mesh)
    batch = next(batch_streams.eval_batches(drawn, ImageCache(ops, 0), 4))
    assert (add_features(batch).features is not None) == is_cached
