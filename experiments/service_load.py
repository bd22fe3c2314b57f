"""The service under load, on loopback: throughput, latency, memory, a burst, and SIGTERM.

  python experiments/service_load.py RUN/model IMAGE [--requests 10000]

For 1, 8 and 64 clients, with batching (--batch 8) and without (--batch 1), in turn: requests per
second, and the median and 99th percentile of their time. Clients are coroutines of this process,
each of which sends the image's bytes again as soon as it was answered; they take a part of the same
cores. Then so many requests to one service: how many were answered otherwise than the first, and
its memory before, after a tenth, and at the end; then a burst beyond its queue, and SIGTERM while
clients go on.
"""

import argparse
import asyncio
import collections
from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import fresh
import httpx2 as httpx

from uadjax.sweep import tables

_CLIENTS = 1, 8, 64
_BATCHES = 8, 1
_HEADERS = {'Content-Type': 'application/octet-stream'}
_ROUTE = '/image-anomaly-detection'


class Load(NamedTuple):
  """What clients saw.

  Attributes:
    statuses: how often each was answered; 0 where the connection was closed, -1 where it could not
      be made.
    seconds: of the answered ones, in order.
    scores: how often each.
    lasted: seconds in all.
  """

  statuses: collections.Counter[int]
  seconds: list[float]
  scores: collections.Counter[float]
  lasted: float


@contextlib.contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
  """A service, warm."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'uadjax', 'serve', str(model), '--port', str(port), *options]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
  url = f'http://127.0.0.1:{port}'
  try:
    while True:
      if process.poll() is not None:
        sys.exit(f'The service ended with {process.returncode}.')
      with contextlib.suppress(httpx.TransportError):
        if httpx.get(f'{url}/v2/health/ready').status_code == 200:
          break
      time.sleep(0.2)
    yield process, url
  finally:
    process.kill()
    process.wait()


async def load(url: str, image: bytes, clients: int, requests: int) -> Load:
  """Let clients send so many requests in all; they stop early where nobody listens."""
  statuses: collections.Counter[int] = collections.Counter()
  scores: collections.Counter[float] = collections.Counter()
  seconds, left = [], requests

  async def client() -> None:
    nonlocal left
    async with httpx.AsyncClient(timeout=120) as own:
      while left > 0:
        left -= 1
        began = time.perf_counter()
        try:
          answer = await own.post(f'{url}{_ROUTE}', content=image, headers=_HEADERS)
        except httpx.ConnectError:
          statuses[-1] += 1
          return
        except httpx.TransportError:
          statuses[0] += 1
          return
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
          seconds.append(time.perf_counter() - began)
          scores[float(re.findall(rb'"score":([^,]+)', answer.content)[0])] += 1

  began = time.perf_counter()
  await asyncio.gather(*(client() for _ in range(clients)))
  return Load(statuses, seconds, scores, time.perf_counter() - began)


def resident_mb(process: subprocess.Popen[str]) -> int:
  """Of a process, now."""
  status = Path(f'/proc/{process.pid}/status').read_text()
  return int(re.findall(r'VmRSS:\s+(\d+)', status)[0]) >> 10


def row(found: Load) -> list[str]:
  """Requests per second, median and 99th percentile."""
  cuts = statistics.quantiles(found.seconds, n=100)
  return [
    f'{len(found.seconds) / found.lasted:.1f}',
    f'{1e3 * statistics.median(found.seconds):.0f}',
    f'{1e3 * cuts[98]:.0f}',
  ]


def main() -> None:
  """Measure, and print tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('model', type=Path)
  parser.add_argument('image', type=Path)
  parser.add_argument('--requests', type=int, default=10_000)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument('--each', type=int, default=256, help='requests for a line of the table')
  flags = parser.parse_args()
  image = flags.image.read_bytes()
  print(f'{flags.image.stat().st_size >> 10} KB; {fresh.machine()}\n', flush=True)
  titles = ['round', 'clients', 'batch', 'requests/s', 'median ms', '99 % ms']
  print(tables.markdown_table(titles, []), flush=True)
  for number in range(1, flags.rounds + 1):
    for batch in _BATCHES:
      with served(flags.model, '--batch', str(batch)) as (_, url):
        for clients in _CLIENTS:
          asyncio.run(load(url, image, clients, 2 * clients))
          found = asyncio.run(load(url, image, clients, flags.each))
          cells = [number, clients, batch, *row(found)]
          print(f'| {" | ".join(map(str, cells))} |', flush=True)
  with served(flags.model) as (process, url):
    memory = [resident_mb(process)]
    tenth = asyncio.run(load(url, image, 8, flags.requests // 10))
    memory.append(resident_mb(process))
    rest = asyncio.run(load(url, image, 8, flags.requests - flags.requests // 10))
    memory.append(resident_mb(process))
    statuses = tenth.statuses + rest.statuses
    print(
      f'\n{flags.requests} requests: {dict(statuses)}, {len(tenth.scores + rest.scores)} different '
      f'scores; {memory[0]} MB before, {memory[1]} after a tenth, {memory[2]} at the end.',
      flush=True,
    )
  with served(flags.model, '--queue', '16') as (process, url):
    burst = asyncio.run(load(url, image, 256, 256))
    after = asyncio.run(load(url, image, 8, 32))
    print(
      f'A burst of 256 on a queue of 16: {dict(burst.statuses)}; then {dict(after.statuses)}.',
      flush=True,
    )

    async def stopped() -> Load:
      going = asyncio.create_task(load(url, image, 8, 1_000_000))
      await asyncio.sleep(3)
      process.send_signal(signal.SIGTERM)
      return await going

    last = asyncio.run(stopped())
    print(f'SIGTERM with 8 clients: {dict(last.statuses)}; exit status {process.wait()}.')


if __name__ == '__main__':
  main()
