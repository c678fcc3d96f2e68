"""Which process of a SLURM job is which device: what Lightning is told, what is refused, who says it."""

import socket

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from diffusion_lm.errors import UserError
from diffusion_lm.training import allocation
from diffusion_lm.training.config import TrainingConfig

JOB = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "sweep"}
STEP = {**JOB, "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "DIFFUSION_LM_STEP": "1"}


@pytest.fixture
def job(monkeypatch):
    """Sets SLURM's variables, and takes away those of a job that the tests run in."""
    names = {*STEP, "SLURM_PROCID", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"}

    def set_all(variables):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, []), (JOB, [LightningEnvironment]), (STEP, [SLURMEnvironment]), ({**STEP, "TORCHELASTIC_RUN_ID": "1"}, [])])
@pytest.mark.filterwarnings("ignore:The `srun` command")
def test_lightning_is_told_who_starts_devices(job, variables, expected):
    """A job of one task is no step: with SLURM's own numbers four devices would count as a world of one."""
    job(variables)
    found = allocation.environment()
    assert [type(plugin) for plugin in found] == expected
    assert not any(getattr(plugin, "auto_requeue", False) for plugin in found)


@pytest.mark.parametrize(("variables", "devices", "nodes"), [({}, 2, 3), (JOB, 4, 1), (STEP, 4, 2)])
def test_what_fits(job, variables, devices, nodes):
    job(variables)
    allocation.check(TrainingConfig(devices=devices, num_nodes=nodes))


def test_tasks_that_are_runs_of_their_own_are_left_alone(job):
    job({name: value for name, value in STEP.items() if name != "DIFFUSION_LM_STEP"})
    allocation.check(TrainingConfig())


@pytest.mark.parametrize(("variables", "devices", "nodes", "said"), [
    (JOB, 2, 2, "training.num_nodes: got 2, but this job started one process; give sbatch --nodes=2 "
                "--ntasks-per-node=2, and start training by SLURM/train.sh"),
    (STEP, 1, 1, "training.devices x training.num_nodes: got 1 x 1, but this job has 4 tasks on each of 2 nodes; leave "
                 "both keys out (SLURM/train.sh sets them), or give sbatch --nodes=1 --ntasks-per-node=1"),
])
def test_what_does_not_fit_is_one_line(job, variables, devices, nodes, said):
    job(variables)
    with pytest.raises(UserError) as error:
        allocation.check(TrainingConfig(devices=devices, num_nodes=nodes))
    assert str(error.value) == said


@pytest.mark.parametrize(("process", "on_its_node", "expected"), [
    ("0", "0", True), ("1", "1", False), ("5", "1", False)])
def test_the_first_device_speaks(job, process, on_its_node, expected):
    job({**STEP, "SLURM_PROCID": process, "SLURM_LOCALID": on_its_node, "MASTER_PORT": "1"})
    assert allocation.speaks_for_step() is expected


def test_another_node_speaks_if_the_first_device_went_on(job, monkeypatch):
    """It went on if it listens for the others; otherwise it has said the same."""
    monkeypatch.setattr(allocation, "PATIENCE", 0.5)
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(first.getsockname()[1])}
        job({**STEP, "SLURM_PROCID": "4", "SLURM_LOCALID": "0", **place})
        assert not allocation.speaks_for_step()
        first.listen()
        assert allocation.speaks_for_step()
