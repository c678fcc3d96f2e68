#!/usr/bin/env bash
# A study's trials, shared by any number of workers: an array of them under SLURM, one of them without.
#
#   sbatch SLURM/sweep.sh [STUDY.yaml]           from the project's folder; the study is sweeps/quickstart.yaml by default
#   bash SLURM/sweep.sh [STUDY.yaml]             the same study on this machine, with the same files
#   bash SLURM/sweep.sh STUDY.yaml --dry-run     what sbatch would be asked for, and the hours that the study would take
#
# The first two may be repeated, and may run at once: a study goes on where it stopped, with the code that it started
# with. What follows the study goes to `python -m sweeps run` (for example --root FOLDER, --code new). sbatch's own
# options stand before the script and win over those below:
#   sbatch --array=0-15 --partition=NAME --gpus-per-node=1 --time=24:00:00 SLURM/sweep.sh STUDY.yaml
# Each array task is one worker, which trains one trial after the other on what sbatch gave the task; with several nodes
# (--nodes=2 --ntasks-per-node=4 --gpus-per-node=4) each trial on all of them.
#
# Site values: SLURM/env.sh (see env.example.sh). Logs of workers: sweep-JOB_TASK.out in the folder that sbatch was
# called in (SLURM drops the log of a folder that does not exist); of training: train.log of the trial.
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
[ -f SLURM/common.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
. SLURM/common.sh
[ $# -gt 0 ] && [ "$1" != --dry-run ] || set -- sweeps/quickstart.yaml "$@"
dry_run SLURM/sweep.sh study "$@"

# exec: the worker takes the place of this shell, so it gets SLURM's signals, and its exit status is the job's.
exec "${python[@]}" -m sweeps run "$@"
