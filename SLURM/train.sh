#!/usr/bin/env bash
# One experiment.
#
#   sbatch SLURM/train.sh EXPERIMENT [key=value ...]          from the project's folder; run=DIR names the run folder
#   bash SLURM/train.sh EXPERIMENT [key=value ...]            the same on this machine
#   bash SLURM/train.sh EXPERIMENT [...] --dry-run            what sbatch would be asked for, and the hours it would take
#
# Repeating the command continues the run, with the code that it started with (--code new takes what is here now). Shortly
# before its time limit the job writes a checkpoint and goes back into the queue by itself. sbatch's options stand before
# the script and win over those below:
#   sbatch --partition=NAME --gpus-per-node=1 --time=24:00:00 SLURM/train.sh EXPERIMENT
# Several devices: one task for each; training.devices and training.num_nodes follow.
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 SLURM/train.sh EXPERIMENT training.strategy=fsdp
#
# Site values: SLURM/env.sh (see env.example.sh). The log: train-JOB.out in the folder that sbatch was called in.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[ -f SLURM/common.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
[ $# -gt 0 ] || { echo "error: which experiment? usage: SLURM/train.sh EXPERIMENT [key=value ...]" >&2; exit 2; }
. SLURM/common.sh
dry_run SLURM/train.sh experiment "$@"

exec "${python[@]}" -m sweeps train "$@"
