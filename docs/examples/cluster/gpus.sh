#!/usr/bin/env bash
# One run on the GPUs of this machine: one process that shards batches and model state over them.
#
#   ./gpus.sh --config=patchcore --workdir=runs/bolts --config.data.root=bolts
#   GPUS=0,1 ./gpus.sh ...   # only these
#
# Without GPUs it runs on four devices simulated by the CPU, with the same sharding as on GPUs.
#
# Requires NVIDIA GPUs and JAX for them: pip install 'jax[cuda13]'. PYTHON selects the interpreter.
# Tested without GPUs only.
set -euo pipefail

if nvidia-smi -L 2> /dev/null | grep -q '^GPU'; then
  exec "${PYTHON:-python}" -m uadjax.main "$@" --config.device="gpu${GPUS:+:$GPUS}"
fi
echo 'No GPU here: simulating four devices.'
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-4}"
exec "${PYTHON:-python}" -m uadjax.main "$@" --config.mesh.shard_state=always
