"""Seconds per STFPM training step, compared with anomalib's, alternating on the same machine.

  DATA=../shared/data/mvtec_ad
  PEER="PEER_VENV/bin/python ../shared/peers/anomalib_bench.py stfpm $DATA bottle"
  python experiments/stfpm_step.py --root=$DATA --category=bottle --rival="$PEER" \
    --weights=../shared/weights/resnet18_imagenet_bnfolded.pth

Steps have 32 images of 256x256 pixels, decoding included. For uadjax: the log of a whole run,
without the first ten steps, which compile. For anomalib: the difference in fit time between 6 steps
and 1 step, so that start-up does not count; bottle's first 6 batches have 32 images each.
"""

import argparse
import json
from pathlib import Path
import re
import statistics
import subprocess
import sys
import tempfile

import subprocess_runs


def uadjax_step_seconds(root: str, category: str, weights: str) -> float:
  """Return the seconds per step of a run of uadjax."""
  with tempfile.TemporaryDirectory() as workdir:
    command = (
      f'{sys.executable} -m uadjax.main --config=configs/stfpm.py --workdir={workdir} '
      f'--config.data.root={root} --config.data.category={category} '
      f'--config.backbone.weights={weights} --config.fit.steps=20 --config.evaluate.do_eval=false'
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    log = (Path(workdir) / 'train.log').read_text()
  return float(re.findall(r' step (\d+\.\d+) s', log)[-1])


def anomalib_step_seconds(command: str) -> float:
  """Return the seconds per step of anomalib."""
  one_step_fit, six_step_fit = (_fit_seconds(f'{command} --steps {n}') for n in (1, 6))
  return (six_step_fit - one_step_fit) / 5


def _fit_seconds(command_line: str) -> float:
  command = subprocess_runs.absolute_command(command_line)
  with tempfile.TemporaryDirectory() as folder:  # For the files that anomalib writes.
    completed = subprocess_runs.run_command(command, Path(folder))
  return json.loads(completed.stdout.strip().splitlines()[-1])['fit_s']


def main() -> None:
  """Measure; print a line per round, and the medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  for flag in ('--root', '--category', '--weights', '--rival'):
    parser.add_argument(flag, required=True)
  parser.add_argument('--rounds', type=int, default=3)
  flags = parser.parse_args()
  rows = []
  for _ in range(flags.rounds):
    uadjax_s = uadjax_step_seconds(flags.root, flags.category, flags.weights)
    anomalib_s = anomalib_step_seconds(flags.rival)
    rows.append((uadjax_s, anomalib_s, uadjax_s / anomalib_s))
    print('uadjax {:.2f} s  anomalib {:.2f} s  ratio {:.2f}'.format(*rows[-1]), flush=True)
  medians = [statistics.median(column) for column in zip(*rows, strict=True)]
  print('median: uadjax {:.2f} s  anomalib {:.2f} s  ratio {:.2f}'.format(*medians))


if __name__ == '__main__':
  main()
