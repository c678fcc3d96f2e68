#!/usr/bin/env bash
# TensorBoard and the Optuna dashboard of a study, on this node's loopback interface; prints the ssh line to type.
#
#   sbatch SLURM/dashboard.sh STUDY.yaml [--root FOLDER]      from the project's folder; the line is in dashboard-JOB.out
#   bash SLURM/dashboard.sh STUDY.yaml [--root FOLDER]        the same on this machine, until Ctrl-C
#
# Without a study: TensorBoard over all runs. Both end with the job. Neither asks for a password, and whoever has an
# account on the node reaches its loopback.
#
# Site values: SLURM/env.sh (see env.example.sh).
#SBATCH --job-name=dashboard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.out
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[ -f SLURM/common.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
. SLURM/common.sh

exec "${python[@]}" -m sweeps dashboard "$@"
