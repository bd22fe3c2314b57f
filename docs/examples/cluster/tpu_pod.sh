#!/usr/bin/env bash
# One run on a TPU pod slice of Google Cloud: creates the slice, runs on all its hosts, downloads
# the run, deletes the slice.
#
#   ZONE=europe-west4-b ./tpu_pod.sh bolts runs/bolts --config=patchcore   # DATA WORKDIR FLAGS...
#
# Without ZONE it simulates two hosts of two devices each on this machine, with laptop.sh.
# The data is copied to every host. The first host writes the results, which are downloaded. STFPM
# requires a folder shared by all hosts, which this script does not create.
#
# Requires gcloud with a project and TPU quota, and this repository. TYPE and VERSION select the
# slice. Tested without TPUs only: simulated, and with a fake gcloud that records its arguments.
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
  echo 'STFPM requires a folder shared by all hosts; see docs/devices.md.' >&2
  exit 2
fi

name=uadjax-$(date +%Y%m%d-%H%M%S)-$$ # Unique, because it is deleted in any case.
tpu() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$ZONE"; }
on_all() { tpu ssh "$name" --worker=all --command="$1"; }
wheel=$(mktemp -d)
trap 'rm -rf "$wheel"; tpu delete "$name" --quiet' EXIT

"${PYTHON:-python}" -m pip wheel -q --no-deps --wheel-dir "$wheel" "$(dirname "$0")/../../.."
tpu create "$name" --accelerator-type="${TYPE:-v5litepod-16}" \
  --version="${VERSION:-v2-alpha-tpuv5-lite}"
tpu scp --recurse "$wheel" "$name:wheel" --worker=all
tpu scp --recurse "$data" "$name:data" --worker=all
# The system Python of the hosts may be too old.
on_all 'pip install -q uv && python3 -m uv venv -q --python 3.12 env &&
  python3 -m uv pip install -q --python env/bin/python wheel/*.whl "jax[tpu]"'
on_all "env/bin/python -m uadjax.main$(printf ' %q' "$@") --config.data.root=data --workdir=run"
mkdir -p "$(dirname "$workdir")"
tpu scp --recurse "$name:run" "$workdir" --worker=0
