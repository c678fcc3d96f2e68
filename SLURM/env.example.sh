# What your site needs before Python starts. Copy it to SLURM/env.sh (git ignores that) and keep what applies; all scripts
# source it, on the node that they run on. Partition, account and the like are sbatch's: options before the script, or
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_CONSTRAINT in the shell that you submit from.

# Modules:
# module load python/3.12 cuda/12.8

# A conda environment, or a virtual one elsewhere than in .venv:
# source ~/miniforge3/etc/profile.d/conda.sh && conda activate diffusion_lm
# PYTHON=/scratch/$USER/venv/bin/python

# A container: what stands in front of Python. The SLURM clients are mounted so that workers can see which jobs live, put
# themselves back into the queue, and start training on several nodes.
# RUN=(apptainer exec --nv --bind "$PWD,/scratch,/usr/bin/squeue,/usr/bin/scontrol,/usr/bin/srun,/etc/slurm,/run/munge" image.sif)
# RUN=(srun --nodes=1 --ntasks=1 --container-image=IMAGE --container-mounts="$PWD,/scratch" --container-workdir="$PWD")
# PYTHON=python

# Studies in PostgreSQL, not in a journal on the shared disk (the password is in ~/.pgpass):
# export SWEEPS_STORAGE=postgresql://$USER@database.example.org/sweeps

# The network between nodes, where NCCL or gloo choose the wrong one:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
