# What the scripts share; they source it from the project's folder, since sbatch runs a copy of them somewhere else.
#
# It sources SLURM/env.sh, if there is one (see env.example.sh), and sets
#   PYTHON   the interpreter: what the environment or env.sh says, else that of .venv, else `python`
#   python   an array: what starts it, with RUN (a container, say) in front
if [ -f SLURM/env.sh ]; then . SLURM/env.sh; fi
[ -n "${PYTHON:-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; } || PYTHON=python
python=(${RUN[@]+"${RUN[@]}"} "$PYTHON")
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}; fi

# dry_run SCRIPT COMMAND ARGUMENTS...: for `bash SCRIPT ... --dry-run`, print instead what SCRIPT would ask for, and what
# its work would cost. Nothing is submitted or written.
dry_run() {
    local script=$1 command=$2 argument arguments=() wanted=
    shift 2
    for argument in "$@"; do
        if [ "$argument" = --dry-run ]; then wanted=yes; else arguments+=("$argument"); fi
    done
    [ -z "$wanted" ] || exec "${python[@]}" -m sweeps estimate --script "$script" "$command" ${arguments[@]+"${arguments[@]}"}
}
