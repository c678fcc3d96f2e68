#!/usr/bin/env bash
# A study's trials, shared by any number of workers: an array of them under SLURM, one of them without.
#
#   sbatch SLURM/sweep.sh [STUDY.yaml]      from the project's folder; the study is sweeps/quickstart.yaml by default
#   bash SLURM/sweep.sh [STUDY.yaml]        the same study on this machine, with the same files
#
# Both may be repeated, and may run at once: a study goes on where it stopped. What follows the study goes to
# `python -m sweeps run` (for example --root FOLDER). sbatch's own options stand before the script and win over those
# below:  sbatch --array=0-15 --partition=NAME --gpus-per-node=1 --time=24:00:00 SLURM/sweep.sh STUDY.yaml
# Each array task is one worker, which trains one trial after the other on what sbatch gave the task.
#
# SLURM/env.sh, if there is one, is sourced first: the place for `module load`, `conda activate` and the like.
# PYTHON names the interpreter; by default that of .venv, else `python`. Logs of workers: sweep-JOB_TASK.out in the
# folder that sbatch was called in (SLURM drops the log of a folder that does not exist); of training: train.log of the trial.
#SBATCH --job-name=sweep
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

# sbatch runs a copy of this file in a spool folder, so its own place says nothing about the project's.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[ -f SLURM/sweep.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
if [ -f SLURM/env.sh ]; then . SLURM/env.sh; fi
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; } || PYTHON=python
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}; fi

# exec: the worker takes the place of this shell, so it gets SLURM's signals, and its exit status is the job's.
exec "$PYTHON" -m sweeps run "${1:-sweeps/quickstart.yaml}" "${@:2}"
