#!/usr/bin/env bash
# One run of N processes on this machine, each with devices that a CPU simulates.
#
#   ./laptop.sh 2 python -m uadjax.main --config=padim --workdir=runs/try
#
# The command gets the --config.hosts.* flags of each process at its end, and what it says the
# process's number in front. JAX_NUM_CPU_DEVICES=4 gives each process four devices instead of one.
# The exit status is not 0 if one of them fails; Ctrl-C ends all.
#
# Needs bash and the environment that uadjax is installed in.
# Tried on Debian 12, two cores, with up to four processes (tests/test_example_cluster.py).
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

numbered() {
  trap '' INT TERM # It has to hear the last words.
  while IFS= read -r line || [[ $line ]]; do printf '%s: %s\n' "$1" "$line"; done
}

set -m # Each in a process group of its own, to be ended with all that it started.
groups=()
# shellcheck disable=SC2317  # It is trapped.
end() {
  trap '' INT TERM
  for group in "${groups[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done
  wait || true
  exit 130
}
trap end INT TERM

for ((index = 0; index < count; index++)); do
  (
    trap : INT TERM
    "$@" --config.hosts.coordinator="127.0.0.1:$port" --config.hosts.count="$count" \
      --config.hosts.index="$index" < /dev/null 2>&1 | numbered "$index"
  ) &
  groups+=("$!")
done

status=0
for group in "${groups[@]}"; do wait "$group" || status=1; done
exit "$status"
