#!/usr/bin/env bash
# A large text into shards, its parts shared by the tasks of an array; the task that finds all parts made makes the dataset.
#
#   sbatch --array=0-15 SLURM/data_prep.sh --source DIR --out DIR [...]     from the project's folder
#   bash SLURM/data_prep.sh --source DIR --out DIR [...]                    the same on this machine, with the same bytes
#
# What follows goes to `python -m data_prep tokenize`. Repeating the command goes on: parts that are whole are left alone,
# also with another number of tasks. Each task runs as many processes as sbatch gave it cores (--cpus-per-task).
# `python -m data_prep merge DIR` makes the dataset where the last task was cut off after its parts.
#
# Site values: SLURM/env.sh (see env.example.sh). The log's place: see SLURM/sweep.sh.
#SBATCH --job-name=data_prep
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[ -f SLURM/common.sh ] || { echo "error: $PWD is not the project's folder; call sbatch there" >&2; exit 2; }
[ $# -gt 0 ] || { echo "error: which text? usage: SLURM/data_prep.sh --source DIR --out DIR" >&2; exit 2; }
. SLURM/common.sh

# An array may begin above 0 and have steps: --array=1-7:2 has four tasks.
first=${SLURM_ARRAY_TASK_MIN:-0}
task=$(((${SLURM_ARRAY_TASK_ID:-0} - first) / ${SLURM_ARRAY_TASK_STEP:-1}))
share=(--task "$task" --tasks "${SLURM_ARRAY_TASK_COUNT:-1}")
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || share+=(--processes "$SLURM_CPUS_PER_TASK")

exec "${python[@]}" -m data_prep tokenize "${share[@]}" "$@"
