"""Speed, accuracy and correctness on one accelerator, within a time budget.

  python experiments/gpu.py --device=gpu --root=../shared/data/mvtec_ad \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth --out=runs/gpu

It needs a clone, `pip install '.[all]'` and JAX for the device. Steps, in order of value:

- devices, driver, versions;
- fit and evaluate PatchCore at 1 %, PaDiM, STFPM and PatchCore at 10 %, each in its own process;
- after each fit: time batches of 1, 8 and 32 images, and compare scores with the CPU;
- after the first fit: `pytest -m accelerator`, the laws that hold on every device.

--out/results.json is rewritten after every step. Steps for which no time is left are listed there.
The same command again repeats only the steps that did not succeed. Where --root is absent, it fits
the drawn demo dataset, and where --weights is absent, it uses the embedded backbone; the output
says so. On a CPU the default is --size=small, which tests the script and measures nothing.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple
from xml.etree import ElementTree

import inference_speed
import subprocess_runs

from uadjax.data import demo
from uadjax.errors import UserError
from uadjax.sweep import results, tables
from uadjax.system import files

StepResult = dict[str, Any]  # JSON-compatible.

_REPOSITORY = Path(__file__).resolve().parent.parent
_CONFIGS = {
  'PatchCore 0.01': 'patchcore.py',
  'PaDiM': 'padim.py',
  'STFPM': 'stfpm.py',
  'PatchCore 0.1': 'patchcore.py:ten',
}
# The default device is the first; the CPU remains for comparisons.
_PLATFORMS = {'cpu': 'cpu', 'gpu': 'cuda,cpu', 'tpu': 'tpu,cpu'}
_EMBEDDED = 'embedded'  # Value of backbone.weights.
_BATCH_SIZES = 1, 8, 32
_NUM_COMPARED = 8  # Test images whose scores are compared with the CPU's.
_MIN_SECONDS = 20  # No step succeeds in less on an accelerator.
_LAST_LINES = 8  # Lines of output that an error contains.
_SMALL_FLAGS = {
  'STFPM': ('--config.fit.steps=3', '--config.fit.batch_size=4'),
}
_LAWS, _SMALL_LAWS = 'tests', 'tests/test_resampling.py'


class StepError(Exception):
  """A step failed or ran out of time; the message is for the results."""


class Options(NamedTuple):
  """Options of the script.

  Attributes:
    device: 'gpu', 'tpu' or 'cpu'.
    root: root of the dataset; None for the demo dataset.
    category: category of the dataset.
    weights: file of the backbone's weights, or 'embedded'.
    size: 'full', or 'small' to test the script.
    out: folder of the results and runs.
    minutes: time budget.
  """

  device: str
  root: Path | None
  category: str
  weights: str
  size: str
  out: Path
  minutes: float

  @property
  def results_path(self) -> Path:
    """File of the results."""
    return self.out / 'results.json'

  def environment(self) -> dict[str, str]:
    """Return the environment of the steps; a pytest that runs this script does not affect them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
    selection = {'JAX_PLATFORMS': _PLATFORMS[self.device], 'UADJAX_TEST_DEVICE': self.device}
    import_paths = [str(_REPOSITORY), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**inherited, **selection, 'PYTHONPATH': os.pathsep.join(import_paths)}


class Step(NamedTuple):
  """Step of the script.

  Attributes:
    name: key in the results.
    run: function of the seconds that are left; raises StepError.
  """

  name: str
  run: Callable[[float], StepResult]


def run_process(command: Sequence[str], options: Options, seconds: float) -> str:
  """Run a command in the repository and return its standard output.

  Raises:
    StepError: the command failed, or did not end within `seconds`.
  """
  try:
    process = subprocess.run(
      command, cwd=_REPOSITORY, env=options.environment(), capture_output=True, text=True,
      timeout=seconds,
    )  # fmt: skip
  except subprocess.TimeoutExpired:
    raise StepError(f'stopped after {seconds:.0f} s: no time left') from None
  if process.returncode:
    lines = (process.stdout + process.stderr).strip().splitlines()[-_LAST_LINES:]
    raise StepError(f'exit status {process.returncode}: ' + '\n'.join(lines))
  return process.stdout


def measure(name: str, arguments: Sequence[str], options: Options, seconds: float) -> StepResult:
  """Call a function of `_MEASUREMENTS` in its own process, which alone uses the accelerator."""
  command = [sys.executable, str(Path(__file__).resolve()), '--measure', name, *arguments]
  stdout = run_process(command, options, seconds)
  return json.loads(stdout.strip().rpartition('\n')[2])


def describe_environment(device: str) -> StepResult:
  """Return devices, driver and versions; runs in its own process.

  Raises:
    MissingDevice: JAX finds no such device.
  """
  from uadjax.distributed import mesh

  devices = mesh.select_devices(device)
  memory = (devices[0].memory_stats() or {}).get('bytes_limit')
  packages = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'libtpu', 'flax', 'numpy')
  versions = {name: _package_version(name) for name in packages}
  return {
    'devices': [f'{d.platform}:{d.id} {d.device_kind}' for d in devices],
    'device_memory_gib': memory and round(memory / 2**30, 1),
    'backend': devices[0].client.platform_version,
    'driver': _nvidia_driver() if device == 'gpu' else None,
    'versions': {name: version for name, version in versions.items() if version},
    'python': platform.python_version(),
    'system': platform.platform(),
    'host': subprocess_runs.describe_machine(),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
  }


def _package_version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _nvidia_driver() -> str | None:
  """Return name, driver and memory of the GPUs, from nvidia-smi; None without it."""
  query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
  try:
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def time_model(device: str, model_folder: str, image_folder: str, num_calls: str) -> StepResult:
  """Time batches of a model, and compare scores with the CPU's; runs in its own process.

  Returns:
    By batch size: seconds of the first call, which compiles; median milliseconds of a call from
    pixels in host memory to scores and maps in host memory, and of a call on the device alone. The
    largest difference of an image score, and of a map relative to its largest value.
  """
  import jax
  import numpy as np

  from uadjax.data import inputs
  from uadjax.data.layouts import scanning
  from uadjax.distributed import mesh
  from uadjax.export import verify
  from uadjax.model import model_dir, scorer

  model, (accelerator, *_) = model_dir.load(model_folder), mesh.select_devices(device)
  (run,) = scorer.on_devices(model, [accelerator]).runs
  fitted = jax.device_put(model.fitted, accelerator)
  shape = model.ops.height, model.ops.width, 3
  milliseconds = functools.partial(inference_speed.median_milliseconds, num_calls=int(num_calls))
  batches = {}
  for size in _BATCH_SIZES:
    images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    on_device = jax.device_put(images, accelerator)
    start_time = time.perf_counter()
    run(images)
    batches[size] = {
      'first_call_s': time.perf_counter() - start_time,
      'call_ms': milliseconds(lambda images=images: run(images)),
      'device_ms': milliseconds(
        lambda images=on_device: jax.block_until_ready(model.score(fitted, images))
      ),
    }
  peak_bytes = (accelerator.memory_stats() or {}).get('peak_bytes_in_use')
  paths = verify.sample_evenly(scanning.find_files(Path(image_folder)), _NUM_COMPARED)
  images = np.stack([model.ops.apply(inputs.read(inputs.Source(str(p), p))) for p in paths])
  (run_on_cpu,) = scorer.on_devices(model, jax.devices('cpu')[:1]).runs
  actual, expected = run(images), run_on_cpu(images)
  return {
    'batches': batches,
    'peak_device_mb': peak_bytes and round(peak_bytes / 2**20),
    'score_difference': _largest_difference(actual.image, expected.image),
    'map_difference': _largest_difference(actual.map, expected.map),
    'weights': model.weights.name,
  }


def _largest_difference(actual: Any, expected: Any) -> float:
  from uadjax.export import verify

  return float(verify.relative_excess(actual, expected, expected).max())


# Functions that `measure` calls by name, with text arguments.
_MEASUREMENTS: Mapping[str, Callable[..., StepResult]] = {
  'environment': describe_environment,
  'speed': time_model,
}


def fit(label: str, root: Path, options: Options, seconds: float) -> StepResult:
  """Fit and evaluate a detector with the settings of its paper.

  Raises:
    StepError: the run failed or ran out of time.
  """
  workdir = options.out / label.replace(' ', '_')
  flags = subprocess_runs.run_flags(str(root), options.category, options.weights)
  if options.size == 'small':
    flags += ['--config.data.ops=resize(64)', *_SMALL_FLAGS.get(label, ())]
  config = _REPOSITORY / 'configs' / _CONFIGS[label]
  command = [sys.executable, '-m', 'uadjax.main', f'--config={config}', f'--workdir={workdir}']
  device_flags = [f'--config.device={options.device}', '--config.mesh.data=1']
  overwrite = '--config.fit.overwrite=true'
  run_process([*command, *flags, *device_flags, overwrite], options, seconds)
  summary = results.load_summary(workdir)
  if summary is None:
    raise StepError(f'{workdir} contains no finished run')
  return summary


def run_laws(options: Options, seconds: float) -> StepResult:
  """Run the tests that are marked `accelerator`; those of one file at small sizes.

  Raises:
    StepError: there is no time left, or pytest could not run them. A law that fails is a result.
  """
  report, log = options.out / 'laws.xml', options.out / 'laws.log'
  # Warnings of a new driver must not hide whether a law holds.
  flags = ['-m', 'accelerator', '-v', '-W', 'default', '-p', 'no:cacheprovider', '--color=no']
  # The default format of reports lacks what tests record with `record_property`.
  flags += [f'--junitxml={report}', '-o', 'junit_family=xunit1']
  tests = _SMALL_LAWS if options.size == 'small' else _LAWS
  command = [sys.executable, '-m', 'pytest', *flags, tests]
  report.unlink(missing_ok=True)
  with log.open('w') as file:
    try:
      subprocess.run(
        command, cwd=_REPOSITORY, env=options.environment(), stdout=file, stderr=file,
        timeout=seconds,
      )  # fmt: skip
    except subprocess.TimeoutExpired:
      raise StepError(f'stopped after {seconds:.0f} s: {_describe_log(log)}') from None
  if not report.exists() or not (laws := read_laws(report))['passed'] + len(laws['failed']):
    raise StepError('\n'.join(log.read_text().splitlines()[-_LAST_LINES:]))
  return laws


def read_laws(report: Path) -> StepResult:
  """Return counts, failures with their first line, and statements of a JUnit report."""
  laws: StepResult = {'passed': 0, 'skipped': 0, 'failed': {}, 'statements': {}}
  for case in ElementTree.parse(report).iter('testcase'):
    name = case.get('name', '').removeprefix('test_').replace('_', ' ')
    problem = next((x for x in case if x.tag in ('failure', 'error')), None)
    if problem is not None:
      laws['failed'][name] = problem.get('message', '').partition('\n')[0][:500]
    else:
      laws['skipped' if case.find('skipped') is not None else 'passed'] += 1
    for statement in case.iter('property'):
      laws['statements'][f'{name}: {statement.get("name")}'] = statement.get('value')
  return laws


def _describe_log(log: Path) -> str:
  """Return the numbers of passed and failed tests of a stopped run, and the failed ones."""
  outcomes = re.findall(r'^(\S+) (PASSED|FAILED|ERROR)\b', log.read_text(), re.MULTILINE)
  failures = [name.rpartition('/')[2] for name, outcome in outcomes if outcome != 'PASSED']
  return ', '.join([f'{len(outcomes) - len(failures)} passed, {len(failures)} failed', *failures])


def dataset_root(options: Options, seconds: float) -> Path:
  """Return the root of the dataset; without one, draw the demo dataset if time is left."""
  if options.root is not None:
    return options.root
  root = options.out / 'demo'
  if seconds > 0 and not (root / options.category).is_dir():
    draw = functools.partial(demo.write_dataset, root, categories=[options.category])
    if options.size == 'small':
      draw(size=64, train=12, test_good=2, test_defect=2)
    else:
      draw()
  return root


def all_steps(root: Path, options: Options) -> list[Step]:
  """Return the steps in order of value."""
  steps = [
    Step('environment', lambda s: measure('environment', [options.device], options, s)),
  ]
  images = root / options.category / 'test'
  num_calls = 1 if options.size == 'small' else inference_speed.NUM_CALLS
  for label in _CONFIGS:
    model = options.out / label.replace(' ', '_') / 'model'
    arguments = [options.device, str(model), str(images), str(num_calls)]
    steps += [
      Step(f'fit {label}', lambda s, label=label: fit(label, root, options, s)),
      Step(f'speed {label}', lambda s, a=arguments: measure('speed', a, options, s)),
    ]
  # Half of the time remains for the other detectors.
  laws = Step('laws', lambda s: run_laws(options, s / 2))
  return [*steps[:3], laws, *steps[3:]]


def run_steps(steps: Sequence[Step], record: StepResult, path: Path, end_time: float) -> None:
  """Run the steps that have not succeeded yet, and write the record after each.

  If the first step fails there is no device, and no other step is run.
  """
  outcomes: dict[str, StepResult] = record['steps']
  for step in steps:
    if outcomes.get(step.name, {}).get('status') == 'done':
      continue
    start_time = time.monotonic()
    seconds = end_time - start_time
    if step is not steps[0] and outcomes[steps[0].name]['status'] == 'failed':
      outcome = {'status': 'skipped', 'note': 'no device'}
    elif seconds < _MIN_SECONDS:
      outcome = {'status': 'skipped', 'note': 'no time left'}
    else:
      try:
        outcome: StepResult = {'status': 'done', 'result': step.run(seconds)}
      except StepError as error:
        outcome = {'status': 'failed', 'note': str(error)}
      outcome['seconds'] = round(time.monotonic() - start_time, 1)
    outcomes[step.name] = outcome
    files.write_text(path, files.to_json(record))
    print(step.name, *(outcome.get(key, '') for key in ('status', 'seconds')), file=sys.stderr)


def format_table(record: StepResult) -> str:
  """Return the results in Markdown: a table of the detectors, then laws, notes and machine."""
  step_results = {
    name: step['result'] for name, step in record['steps'].items() if step['status'] == 'done'
  }
  sizes = [str(size) for size in _BATCH_SIZES]
  titles = ['', 'fit s', 'thresholds s', 'evaluate s', 'image AUROC', 'pixel AUROC']
  titles += [*(f'batch {size} ms' for size in sizes), f'images/s at {sizes[-1]}', 'vs CPU']
  rows = []
  for label in _CONFIGS:
    run, speed = (step_results.get(f'{kind} {label}', {}) for kind in ('fit', 'speed'))
    batches = speed.get('batches', {})
    milliseconds = [batches[size]['call_ms'] if batches else None for size in sizes]
    rate = 1e3 * _BATCH_SIZES[-1] / milliseconds[-1] if milliseconds[-1] else None
    rows.append([
      label,
      *(_cell(run.get(key), 1) for key in ('fit_s', 'calibrate_s', 'evaluate_s')),
      *(_cell(run.get(key), 3) for key in ('image_auroc', 'pixel_auroc')),
      *(_cell(value, 1) for value in milliseconds),
      _cell(rate, 0),
      f'{speed["score_difference"]:.1g}' if speed else '—',
    ])  # fmt: skip
  return '\n\n'.join([tables.markdown_table(titles, rows), *_notes(record, step_results)])


def _cell(value: float | None, digits: int) -> str:
  return tables.format_cell(tables.center_and_range([value]), digits)


def _notes(record: StepResult, step_results: Mapping[str, StepResult]) -> list[str]:
  """Return the paragraphs below the table: dataset, tests, steps without a result, machine."""
  lines = [
    'Batches: median of calls from pixels to maps, both in host memory. vs CPU: largest '
    f'relative difference of a score from the CPU\'s, on {_NUM_COMPARED} test images.',
    f'{record["dataset"]}; {record["weights"]}.',
  ]  # fmt: skip
  if record['size'] == 'small':
    text = (
      'Small images, few steps and few laws: this tests the script, and no figure means anything.'
    )
    lines.append(text)
  if laws := step_results.get('laws'):
    counts = f'{laws["passed"]} passed, {len(laws["failed"])} failed, {laws["skipped"]} skipped'
    failures = [f'- {name}: {message}' for name, message in laws['failed'].items()]
    statements = [f'- {name}: {text}' for name, text in laws['statements'].items()]
    lines.append('\n'.join([f'Laws: {counts}.', *failures, *statements]))
  problems = [
    f'- {name}: {step["status"]}, {step["note"]}'
    for name, step in record['steps'].items()
    if step['status'] != 'done'
  ]
  if problems:
    lines.append('\n'.join(['Not measured:', *problems]))
  if machine := step_results.get('environment'):
    versions = ', '.join(f'{name} {version}' for name, version in machine['versions'].items())
    driver = machine['driver'] or machine['backend']
    lines.append(f'{", ".join(machine["devices"])}; {driver}; {versions}; {machine["host"]}.')
  return lines


def new_record(options: Options) -> StepResult:
  """Return the results without steps, or those of an earlier call with the same options."""
  dataset = f'Dataset {options.root}, category {options.category}'
  if options.root is None:
    dataset = f'No dataset: drawn demo dataset, category {options.category}'
  weights = f'weights {options.weights}'
  if options.weights == _EMBEDDED:
    weights = 'no weights: embedded backbone'
  described = {'dataset': dataset, 'weights': weights, 'size': options.size}
  record = {'script': 'experiments/gpu.py', 'device': options.device, **described}
  if options.results_path.is_file():
    previous = json.loads(options.results_path.read_text())
    if {key: previous.get(key) for key in record} != record:
      sys.exit(f'{options.results_path} has results of other options: choose another --out.')
    return previous
  return {**record, 'steps': {}}


def parse_options(argv: Sequence[str] | None = None) -> Options:
  """Parse the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--device', choices=_PLATFORMS, required=True)
  parser.add_argument('--root', type=Path, help='root of the dataset')
  parser.add_argument('--category', default='bottle')
  parser.add_argument('--weights', type=Path, help="file of the backbone's weights")
  parser.add_argument('--size', choices=('full', 'small'), help='default: small on a CPU')
  parser.add_argument('--out', type=Path, default=Path('runs/gpu'))
  parser.add_argument('--minutes', type=float, default=14.0)
  flags = parser.parse_args(argv)
  root = flags.root.resolve() if flags.root is not None and flags.root.is_dir() else None
  category = flags.category if root else demo.DEFAULT_CATEGORY
  weights = str(flags.weights.resolve()) if flags.weights and flags.weights.is_file() else _EMBEDDED
  size = flags.size or ('small' if flags.device == 'cpu' else 'full')
  return Options(flags.device, root, category, weights, size, flags.out.resolve(), flags.minutes)


def main(argv: Sequence[str] | None = None) -> None:
  """Run all steps for which there is time, and print the table."""
  end_time = time.monotonic()
  options = parse_options(argv)
  end_time += 60 * options.minutes
  options.out.mkdir(parents=True, exist_ok=True)
  record = new_record(options)
  root = dataset_root(options, end_time - time.monotonic())
  run_steps(all_steps(root, options), record, options.results_path, end_time)
  print(format_table(json.loads(options.results_path.read_text())))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--measure']:  # In a process that `measure` starts.
    try:
      print(json.dumps(_MEASUREMENTS[sys.argv[2]](*sys.argv[3:])))
    except UserError as error:
      sys.exit(str(error))
  else:
    main()
