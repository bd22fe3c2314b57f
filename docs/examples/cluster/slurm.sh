#!/usr/bin/env bash
# One run on the nodes of a SLURM job: one process per node, with all GPUs of the job on that node.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=16 \
#     slurm.sh --config=patchcore --workdir=runs/bolts --config.data.root=bolts
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 slurm.sh ...   # one process per GPU
#
# Outside a job (./slurm.sh ...) it starts two processes on this machine, with laptop.sh.
# STFPM saves a checkpoint when SLURM stops it. A job that SLURM restarts, for example after a lost
# node or preemption, resumes from the checkpoint. Resubmit a job that ran out of time with
# --config.fit.resume=latest.
#
# Requires the environment, data and workdir in folders shared by all nodes; call sbatch in the
# activated environment. PYTHON selects the interpreter.
# Tested with SLURM 22.05.8 of Debian 12: two nodes on one machine, simulated devices, no GPUs.
#SBATCH --job-name=uadjax
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

command=("${PYTHON:-python}" -m uadjax.main "$@")
if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo 'Not in a SLURM job: simulating two nodes on this machine.'
  exec "$(dirname "$0")/laptop.sh" 2 "${command[@]}"
fi
for flag in "$@"; do
  if [[ ${SLURM_RESTART_COUNT:-0} != 0 && $flag == --workdir=* ]] \
    && compgen -G "${flag#*=}/checkpoints/rolling/[0-9]*" > /dev/null; then
    command+=(--config.fit.resume=latest)
  fi
done
# Since SLURM 22.05 srun does not inherit this value from the job.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
exec srun --label "${command[@]}"
