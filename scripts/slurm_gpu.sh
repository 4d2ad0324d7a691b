#!/usr/bin/env bash
# `dsbs train` on several GPU nodes under SLURM; goes on by itself after preemption, a node's death or the time limit.
#
#   sbatch scripts/slurm_gpu.sh --gin_file datasets/cqa --gin_file models/t5_1_1_xl --data_dir DATA \
#     --model_dir /shared/runs/cqa --gin.MESH="'fsdp'"
#
# The folder of the run lies on a file system that all nodes see. Set what differs on your cluster: here, or as options
# of sbatch before the script's name, which win (sbatch --nodes=4 --partition=h100 scripts/slurm_gpu.sh ...).
#
# One process a node drives all of its GPUs: one copy of the token store in memory, one reader of its share of the rows.
#SBATCH --job-name=dsbs
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# SIGTERM five minutes before the time limit, as SLURM sends it on preemption: every process saves and ends with 143.
#SBATCH --signal=TERM@300
#SBATCH --requeue
set -euo pipefail

DSBS=${DSBS:-dsbs} # the command: /path/to/venv/bin/dsbs, or a container's

# A process that fails must not leave the others waiting for it.
code=0
srun --kill-on-bad-exit=1 "$DSBS" train "$@" || code=$?
if ((code == 143)); then
  # Stopped and saved: the same job again goes on where this one ended.
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
