"""Whether the devices of a run are the tasks of a SLURM step, or processes that Lightning starts."""

import os
import re
import socket
import time

from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from diffusion_lm.errors import UserError
from diffusion_lm.training.config import TrainingConfig

STEP = "DIFFUSION_LM_STEP"
"""Set by whoever starts one run in all tasks of a step; without it, tasks may be runs that have nothing in common."""
PATIENCE = 10  # seconds until the first device, which started at the same time, should be waiting for the others


def environment() -> list[LightningEnvironment | SLURMEnvironment]:
    """The plugin that tells Lightning who starts the other devices; none where Lightning sees it by itself.

    It takes every job for a step with a task per device: in a job of one task with four GPUs three would be idle, and
    nobody would say so.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False)] if step() else [LightningEnvironment()]


def step() -> tuple[int, int] | None:
    """Nodes and tasks per node of the step that this process is a task of; None if it is the only one."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if int(tasks) == 1:
        return None
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    each = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return nodes, int(each[0]) if each else int(tasks) // nodes


def check(training: TrainingConfig) -> None:
    """Raise `UserError` if the devices are not those that the job has."""
    tasks = step()
    devices, nodes = training.devices, training.num_nodes
    if tasks is None:
        if nodes > 1 and "SLURM_JOB_ID" in os.environ and not TorchElasticEnvironment.detect():
            raise UserError(f"training.num_nodes: got {nodes}, but this job started one process; give sbatch "
                            f"--nodes={nodes} --ntasks-per-node={devices}, and start training by SLURM/train.sh")
    elif tasks != (nodes, devices) and (STEP in os.environ or nodes * devices > 1):
        raise UserError(f"training.devices x training.num_nodes: got {devices} x {nodes}, but this job has {tasks[1]} "
                        f"task{'s' * (tasks[1] > 1)} on each of {tasks[0]} nodes; leave both keys out (SLURM/train.sh "
                        f"sets them), or give sbatch --nodes={nodes} --ntasks-per-node={devices}")


def speaks_for_step() -> bool:
    """Whether this task is the one to tell what all tasks of its step may have met.

    The first does. One on another node only tells what that node alone has: then the first went on, and waits.
    """
    if os.environ.get("SLURM_PROCID", "0") == "0":
        return True
    if os.environ.get("SLURM_LOCALID") != "0" or "MASTER_PORT" not in os.environ:
        return False
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return True
    return False
