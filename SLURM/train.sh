#!/usr/bin/env bash
# One experiment.
#
#   sbatch SLURM/train.sh EXPERIMENT [key=value ...]      from the project's folder; run=DIR names the run folder
#   bash SLURM/train.sh EXPERIMENT [key=value ...]        the same on this machine
#
# Repeating the command continues the run. Shortly before its time limit the job writes a checkpoint and goes back into
# the queue by itself. sbatch's options stand before the script and win over those below:
#   sbatch --partition=NAME --gpus-per-node=1 --time=24:00:00 SLURM/train.sh EXPERIMENT
#
# SLURM/env.sh, PYTHON and the log's place: see SLURM/sweep.sh.
#SBATCH --job-name=train
#SBATCH --nodes=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[ -f SLURM/train.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
[ $# -gt 0 ] || { echo "error: which experiment? usage: SLURM/train.sh EXPERIMENT [key=value ...]" >&2; exit 2; }
if [ -f SLURM/env.sh ]; then . SLURM/env.sh; fi
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; } || PYTHON=python
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}; fi

exec "$PYTHON" -m sweeps.single "$PYTHON" -m diffusion_lm train "$@"
