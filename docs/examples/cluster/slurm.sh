#!/usr/bin/env bash
# One run over the nodes of a SLURM job: a process on each, with all GPUs that the job has there.
#
#   sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=16 \
#     slurm.sh --config=patchcore --workdir=runs/bolts --config.data.root=bolts
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-task=1 slurm.sh ...   # a process for each GPU
#
# Outside of a job (./slurm.sh ...) it starts two processes on this machine, with laptop.sh.
# STFPM saves when SLURM asks it to stop. A job that SLURM itself starts again, as after a lost node
# or preemption, goes on from there; one that ran out of time does when submitted again with
# --config.fit.resume=latest.
#
# Needs the environment, data and workdir in folders that all nodes see, and sbatch called with the
# environment activated. PYTHON names another python.
# Tried with SLURM 22.05.8 of Debian 12: two nodes on one machine, simulated devices, no GPUs.
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
# Since 22.05 srun does not take it from the job.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
exec srun --label "${command[@]}"
