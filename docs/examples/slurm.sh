#!/bin/bash
# Train one model on two machines with four GPUs each.
#
#     sbatch slurm.sh TEXT RUN
#
# TEXT and RUN must be on a file system that all machines share. The same command continues a run.
# Before the time limit, and if the job is preempted, recurra saves a checkpoint and Slurm requeues
# the job.
#SBATCH --job-name=recurra
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
text=$1 run=$2

if [ -e "$run/config.json" ]; then
  arguments=(--resume "$run")
else
  arguments=("$text" --out "$run")
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Slurm sends USR1 to this script two minutes before the time limit. To requeue the job, Slurm ends
# the training by SIGTERM.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

srun --cpus-per-task "$SLURM_CPUS_PER_TASK" torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m recurra train "${arguments[@]}" &
training=$!

wait "$training" || wait "$training"
