#!/usr/bin/env bash
# One run of N processes on this machine, each with devices simulated by the CPU.
#
#   ./laptop.sh 2 python -m uadjax.main --config=padim --workdir=runs/try
#
# The --config.hosts.* flags of each process are appended to the command, and each line of its
# output starts with its index. JAX_NUM_CPU_DEVICES=4 gives each process four devices instead of
# one. The exit status is 1 if any process fails; Ctrl-C stops all of them.
#
# Requires bash and the environment where uadjax is installed.
# Tested on Debian 12, two cores, with up to four processes (tests/test_example_cluster.py).
set -euo pipefail

if ! [[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "Usage: $0 N COMMAND..." >&2
  exit 2
fi
count=$1
shift
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-1}"

port=$((20000 + RANDOM % 10000))
while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done

add_index() {
  trap '' INT TERM # The last lines of a stopped process must still be printed.
  while IFS= read -r line || [[ $line ]]; do printf '%s: %s\n' "$1" "$line"; done
}

set -m # Each process gets its own process group, so that its children are stopped with it.
groups=()
# shellcheck disable=SC2317  # Called by the trap.
stop_all() {
  trap '' INT TERM
  for group in "${groups[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done
  wait || true
  exit 130
}
trap stop_all INT TERM

for ((index = 0; index < count; index++)); do
  (
    trap : INT TERM
    "$@" --config.hosts.coordinator="127.0.0.1:$port" --config.hosts.count="$count" \
      --config.hosts.index="$index" < /dev/null 2>&1 | add_index "$index"
  ) &
  groups+=("$!")
done

status=0
for group in "${groups[@]}"; do wait "$group" || status=1; done
exit "$status"
