#!/usr/bin/env bash
# One run on a TPU pod slice of Google Cloud: makes it, runs on all its hosts, fetches the run,
# deletes it.
#
#   ZONE=europe-west4-b ./tpu_pod.sh bolts runs/bolts --config=patchcore   # DATA WORKDIR FLAGS...
#
# Without ZONE it simulates two hosts of two devices each on this machine, with laptop.sh.
# The data are copied to every host. Only the first host's results are fetched, which are the run's.
# STFPM needs a folder that all hosts share, which this script does not make.
#
# Needs gcloud with a project and TPU quota, and this repository. TYPE and VERSION choose the slice.
# Tried without TPUs only: simulated, and with a gcloud that writes down what it is asked.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "Usage: ZONE=... $0 DATA WORKDIR --config=..." >&2
  exit 2
fi
data=$1 workdir=$2
shift 2
if [[ -z ${ZONE:-} ]]; then
  echo 'No ZONE: simulating two hosts on this machine.'
  export JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-2}"
  exec "$(dirname "$0")/laptop.sh" 2 "${PYTHON:-python}" -m uadjax.main "$@" \
    --config.data.root="$data" --workdir="$workdir"
fi
if [[ "$*" == *stfpm* ]]; then
  echo 'STFPM needs a folder that all hosts share; see docs/devices.md.' >&2
  exit 2
fi

name=uadjax-$(date +%Y%m%d-%H%M%S)-$$ # No other's: it is deleted in any case.
tpu() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$ZONE"; }
on_all() { tpu ssh "$name" --worker=all --command="$1"; }
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"; tpu delete "$name" --quiet' EXIT

"${PYTHON:-python}" -m pip wheel -q --no-deps --wheel-dir "$wheel" "$(dirname "$0")/../../.."
tpu create "$name" --accelerator-type="${TYPE:-v5litepod-16}" \
  --version="${VERSION:-v2-alpha-tpuv5-lite}"
tpu scp --recurse "$wheel" "$name:wheel" --worker=all
tpu scp --recurse "$data" "$name:data" --worker=all
# The hosts' own Python may be too old.
on_all 'pip install -q uv && python3 -m uv venv -q --python 3.12 env &&
  python3 -m uv pip install -q --python env/bin/python wheel/*.whl "jax[tpu]"'
on_all "env/bin/python -m uadjax.main$(printf ' %q' "$@") --config.data.root=data --workdir=run"
mkdir -p "$(dirname "$workdir")"
tpu scp --recurse "$name:run" "$workdir" --worker=0
