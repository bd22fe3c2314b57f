#!/usr/bin/env bash
# One run on the GPUs of this machine: one process, whose batches and what it learns they share.
#
#   ./gpus.sh --config=patchcore --workdir=runs/bolts --config.data.root=bolts
#   GPUS=0,1 ./gpus.sh ...   # only these
#
# Without GPUs it runs on four devices that the CPU simulates, splitting what GPUs would split.
#
# Needs NVIDIA GPUs and JAX for them: pip install 'jax[cuda13]'. PYTHON names another python.
# Tried without GPUs only.
set -euo pipefail

if nvidia-smi -L 2> /dev/null | grep -q '^GPU'; then
  exec "${PYTHON:-python}" -m uadjax.main "$@" --config.device="gpu${GPUS:+:$GPUS}"
fi
echo 'No GPU here: simulating four devices.'
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-4}"
exec "${PYTHON:-python}" -m uadjax.main "$@" --config.mesh.shard_state=always
