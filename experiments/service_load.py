"""The service under load, on loopback: throughput, latency, memory, a burst, and SIGTERM.

  python experiments/service_load.py RUN/model IMAGE [--requests 10000]

First, 1, 8 and 64 clients alternate with batching (--batch 8) and without (--batch 1). The table
has requests per second, and the median and 99th percentile of the latency. Clients are coroutines
of this process. Each sends the image again as soon as it has its response; clients use the same
cores as the service.

Then --requests requests go to one service. The script prints the statuses, the number of different
scores, and the memory before, after a tenth, and at the end. Then it sends a burst that exceeds the
queue, and SIGTERM during requests.
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

import httpx2 as httpx
import subprocess_runs

from uadjax.sweep import tables

_CLIENTS = 1, 8, 64
_BATCHES = 8, 1
_HEADERS = {'Content-Type': 'application/octet-stream'}
_ROUTE = '/image-anomaly-detection'


class LoadResult(NamedTuple):
  """Responses that clients received.

  Attributes:
    statuses: number of responses by HTTP status; 0 for a closed connection, -1 for a failed one.
    seconds: latency of each successful request, in order.
    scores: number of responses by score.
    duration: total seconds.
  """

  statuses: collections.Counter[int]
  seconds: list[float]
  scores: collections.Counter[float]
  duration: float


@contextlib.contextmanager
def running_service(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
  """Run a service and yield its process and URL once it is ready."""
  with socket.socket() as probe_socket:
    probe_socket.bind(('127.0.0.1', 0))
    port = probe_socket.getsockname()[1]
  command = [sys.executable, '-m', 'uadjax', 'serve', str(model), '--port', str(port), *options]
  process = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
  url = f'http://127.0.0.1:{port}'
  try:
    while True:
      if process.poll() is not None:
        sys.exit(f'The service ended with exit status {process.returncode}.')
      with contextlib.suppress(httpx.TransportError):
        if httpx.get(f'{url}/v2/health/ready').status_code == 200:
          break
      time.sleep(0.2)
    yield process, url
  finally:
    process.kill()
    process.wait()


async def send_requests(url: str, image: bytes, clients: int, requests: int) -> LoadResult:
  """Send requests from several clients; a client stops if it cannot connect."""
  statuses: collections.Counter[int] = collections.Counter()
  scores: collections.Counter[float] = collections.Counter()
  seconds, num_remaining = [], requests

  async def run_client() -> None:
    nonlocal num_remaining
    async with httpx.AsyncClient(timeout=120) as http_client:
      while num_remaining > 0:
        num_remaining -= 1
        start_time = time.perf_counter()
        try:
          response = await http_client.post(f'{url}{_ROUTE}', content=image, headers=_HEADERS)
        except httpx.ConnectError:
          statuses[-1] += 1
          return
        except httpx.TransportError:
          statuses[0] += 1
          return
        statuses[response.status_code] += 1
        if response.status_code == 200:
          seconds.append(time.perf_counter() - start_time)
          scores[float(re.findall(rb'"score":([^,]+)', response.content)[0])] += 1

  start_time = time.perf_counter()
  await asyncio.gather(*(run_client() for _ in range(clients)))
  return LoadResult(statuses, seconds, scores, time.perf_counter() - start_time)


def resident_mb(process: subprocess.Popen[str]) -> int:
  """Return the resident size of a process in MB."""
  status = Path(f'/proc/{process.pid}/status').read_text()
  return int(re.findall(r'VmRSS:\s+(\d+)', status)[0]) >> 10


def format_columns(result: LoadResult) -> list[str]:
  """Return requests per second, and median and 99th percentile of the latency."""
  percentiles = statistics.quantiles(result.seconds, n=100)
  return [
    f'{len(result.seconds) / result.duration:.1f}',
    f'{1e3 * statistics.median(result.seconds):.0f}',
    f'{1e3 * percentiles[98]:.0f}',
  ]


def measure_throughput(model: Path, image: bytes, num_rounds: int, num_requests: int) -> None:
  """Print a table of throughput and latency by batch size and number of clients."""
  titles = ['round', 'clients', 'batch', 'requests/s', 'median ms', '99 % ms']
  print(tables.markdown_table(titles, []), flush=True)
  for round_number in range(1, num_rounds + 1):
    for batch in _BATCHES:
      with running_service(model, '--batch', str(batch)) as (_, url):
        for clients in _CLIENTS:
          asyncio.run(send_requests(url, image, clients, 2 * clients))
          result = asyncio.run(send_requests(url, image, clients, num_requests))
          cells = [round_number, clients, batch, *format_columns(result)]
          print(f'| {" | ".join(map(str, cells))} |', flush=True)


def measure_memory(model: Path, image: bytes, num_requests: int) -> None:
  """Print the memory of the service before, during and after many requests."""
  with running_service(model) as (process, url):
    memory_mb = [resident_mb(process)]
    first_tenth = asyncio.run(send_requests(url, image, 8, num_requests // 10))
    memory_mb.append(resident_mb(process))
    remainder = asyncio.run(send_requests(url, image, 8, num_requests - num_requests // 10))
    memory_mb.append(resident_mb(process))
  statuses = first_tenth.statuses + remainder.statuses
  print(
    f'\n{num_requests} requests: {dict(statuses)}, '
    f'{len(first_tenth.scores + remainder.scores)} different scores; '
    f'{memory_mb[0]} MB before, {memory_mb[1]} after a tenth, {memory_mb[2]} at the end.',
    flush=True,
  )


def measure_overload(model: Path, image: bytes) -> None:
  """Print the statuses of a burst of requests, and of requests during a shutdown."""
  with running_service(model, '--queue', '16') as (process, url):
    burst_result = asyncio.run(send_requests(url, image, 256, 256))
    later_result = asyncio.run(send_requests(url, image, 8, 32))
    print(
      f'A burst of 256 on a queue of 16: {dict(burst_result.statuses)}; '
      f'then {dict(later_result.statuses)}.',
      flush=True,
    )

    async def stop_under_load() -> LoadResult:
      load_task = asyncio.create_task(send_requests(url, image, 8, 1_000_000))
      await asyncio.sleep(3)
      process.send_signal(signal.SIGTERM)
      return await load_task

    shutdown_result = asyncio.run(stop_under_load())
    print(
      f'SIGTERM with 8 clients: {dict(shutdown_result.statuses)}; exit status {process.wait()}.'
    )


def main() -> None:
  """Measure and print the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('model', type=Path)
  parser.add_argument('image', type=Path)
  parser.add_argument('--requests', type=int, default=10_000)
  parser.add_argument('--rounds', type=int, default=2)
  parser.add_argument(
    '--requests_per_row', type=int, default=256, help='requests for a row of the table'
  )
  flags = parser.parse_args()
  image = flags.image.read_bytes()
  print(
    f'{flags.image.stat().st_size >> 10} KB; {subprocess_runs.describe_machine()}\n', flush=True
  )
  measure_throughput(flags.model, image, flags.rounds, flags.requests_per_row)
  measure_memory(flags.model, image, flags.requests)
  measure_overload(flags.model, image)


if __name__ == '__main__':
  main()
