"""How training is started where a job has several tasks or nodes: one ``srun`` per trial, a process per task.

What srun does with signals, and why the options below are what they are, was tried on SLURM 22.05. SIGUSR1 goes to all
tasks once; SIGINT too, but only with ``--disable-status``; SIGTERM is not passed on, srun then kills its tasks, and so
does not stand for "write a checkpoint". ``--kill-on-bad-exit=1`` would stop the other tasks when the first device ends
with 75 (checkpointed), and 143 would be the step's status; ``--wait`` ends those that a crash left behind.
"""

import os
import random
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Self

from diffusion_lm.errors import UserError

SRUN = "srun"
WAIT = 60  # seconds that the other tasks get after the first has ended
PORTS = range(15000, 32000)  # below those that the kernel gives to outgoing connections
STEP = "DIFFUSION_LM_STEP"  # as in diffusion_lm.training.allocation, which imports torch
"""Set in tasks that are the devices of one run, so that they know that SLURM's numbers are about them."""
FORWARDED = {signal.SIGTERM: signal.SIGUSR1, signal.SIGKILL: signal.SIGTERM}
"""What srun has to be sent instead, for its tasks to get what the key asks for."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """The tasks of this job: `nodes` times `tasks`, the devices that training has."""

    nodes: int = 1
    tasks: int = 1

    @classmethod
    def current(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """This job's; one task outside SLURM. Raises `UserError` where nodes have different numbers of tasks."""
        nodes = int(environment.get("SLURM_NNODES") or environment.get("SLURM_JOB_NUM_NODES") or 1)
        if "SLURM_NTASKS" not in environment:  # without --ntasks SLURM counts processors, not tasks
            return cls(nodes)
        total = int(environment["SLURM_NTASKS"])
        given = environment.get("SLURM_NTASKS_PER_NODE")
        each = {int(given)} if given else _per_node(environment.get("SLURM_TASKS_PER_NODE", str(total)))
        if len(each) > 1 or nodes * max(each) != total:
            raise UserError(f"sbatch: got {total} tasks on {nodes} nodes, expected as many on each node; give sbatch "
                            "--nodes=N --ntasks-per-node=DEVICES")
        return cls(nodes, max(each))

    @property
    def alone(self) -> bool:
        """Whether there is nothing to launch: training starts its own devices, if it has several."""
        return self.nodes == self.tasks == 1


def command(base: Sequence[str]) -> list[str]:
    """`base`, with srun in front of it where this job has several tasks or nodes.

    Then each task is a device: ``training.devices`` and ``training.num_nodes`` follow the allocation, unless `base`
    names them itself. Raises `UserError` for tasks that are not spread evenly.
    """
    allocation = Allocation.current()
    if allocation.alone:
        return list(base)
    wanted = {"training.devices": allocation.tasks, "training.num_nodes": allocation.nodes}
    named = {argument.partition("=")[0] for argument in base}
    return [*_srun(allocation), *base, *(f"{key}={value}" for key, value in wanted.items() if key not in named)]


def relay(process: Popen[bytes], number: signal.Signals) -> None:
    """Send `number` to training, however it was started: every device gets it, once."""
    launched = Path(_program(process)).name == SRUN
    process.send_signal(FORWARDED.get(number, number) if launched else number)


def deadly(arguments: Sequence[str]) -> signal.Signals:
    """The signal on which the command that starts with `arguments` ends at once, with all its tasks.

    Of an srun that is killed the tasks train on.
    """
    return FORWARDED[signal.SIGKILL] if Path(arguments[0]).name == SRUN else signal.SIGKILL


def _srun(allocation: Allocation) -> list[str]:
    """srun and its options. A job with several trials, or two jobs on one node, meet on ports of their own."""
    nodes, tasks = allocation.nodes, allocation.tasks
    options = [f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}", "--job-name=train",
               "--kill-on-bad-exit=0", f"--wait={WAIT}", "--disable-status"]
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        options.append(f"--cpus-per-task={cores}")  # since 22.05 srun does not take sbatch's
    if "SLURM_GPUS_PER_TASK" in os.environ or "gpu" in os.environ.get("SLURM_TRES_PER_TASK", ""):
        options.append("--gpu-bind=none")  # Lightning chooses by the task's number among all of the node's
    variables = {STEP: "1", "MASTER_ADDR": os.environ.get("MASTER_ADDR") or _address(), "MASTER_PORT": _free_port()}
    # ALL: an sbatch with --export=NONE would keep ours from the tasks as well
    return [SRUN, *options, "--export=" + ",".join(["ALL", *(f"{key}={value}" for key, value in variables.items())])]


def _per_node(text: str) -> set[int]:
    """The numbers in SLURM's ``2(x3),1``."""
    return {int(part) for part in re.sub(r"\(x\d+\)", "", text).split(",")}


def _address() -> str:
    """A name of this node, which is the first of the job: SLURM's where it resolves, else the machine's own."""
    names = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    for name in filter(None, names):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            continue
        return name
    return "127.0.0.1"


def _free_port() -> int:
    """A port that nobody listens on now, on this node."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {PORTS.start} and {PORTS.stop - 1} on {socket.gethostname()}; use another "
                    "node, or set MASTER_PORT")


def _program(process: Popen[bytes]) -> str:
    arguments = process.args
    return str(arguments if isinstance(arguments, str | bytes | os.PathLike) else arguments[0])
