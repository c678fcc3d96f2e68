"""SLURM, and what a job runs: its share of the nodes, a copy of the code, its cost beforehand."""
