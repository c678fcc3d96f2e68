"""What stands in front of training in a job of several tasks, and what its signals become. Real: tests/slurm/."""

import signal
import subprocess
import sys

import pytest

from diffusion_lm.errors import UserError
from sweeps.cluster import launch

BASE = ["python", "-m", "diffusion_lm", "train", "x.yaml"]
TWO_BY_FOUR = {"SLURM_NNODES": "2", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}


@pytest.fixture
def job(monkeypatch):
    """Sets SLURM's variables, and takes away those of a job that the tests run in."""

    def set_all(**variables):
        for name in ("NNODES", "JOB_NUM_NODES", "NTASKS", "NTASKS_PER_NODE", "TASKS_PER_NODE", "CPUS_PER_TASK",
                     "GPUS_PER_TASK", "TRES_PER_TASK"):
            monkeypatch.delenv(f"SLURM_{name}", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize("variables", [{}, {"SLURM_NNODES": "1"}, {"SLURM_NNODES": "1", "SLURM_NTASKS": "1"},
                                       {"SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "8"}])
def test_one_task_is_started_as_it_is(job, variables):
    job(**variables)
    assert launch.command(BASE) == BASE


@pytest.mark.parametrize(("variables", "nodes", "tasks"), [
    (TWO_BY_FOUR, 2, 4),
    ({"SLURM_NNODES": "1", "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "3"}, 1, 3),
    ({"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "2(x3)"}, 3, 2),
    ({"SLURM_NNODES": "2", "SLURM_TASKS_PER_NODE": "8(x2)"}, 2, 1),  # --nodes alone: those are processors
])
def test_several_tasks_are_the_devices(job, variables, nodes, tasks):
    job(**variables)
    command = launch.command(BASE)
    assert command[0] == "srun" and command[-2:] == [f"training.devices={tasks}", f"training.num_nodes={nodes}"]
    assert command[command.index("python"):-2] == BASE
    assert {f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"} < set(command)


def test_what_the_command_names_is_left_to_training_to_refuse(job):
    job(**TWO_BY_FOUR)
    command = launch.command([*BASE, "training.devices=3"])
    assert command[-2:] == ["training.devices=3", "training.num_nodes=2"]


def test_cores_graphics_cards_and_ports(job, monkeypatch):
    job(**TWO_BY_FOUR, SLURM_CPUS_PER_TASK="6", SLURM_GPUS_PER_TASK="1", MASTER_ADDR="node7")
    first, second = launch.command(BASE), launch.command(BASE)
    assert "--cpus-per-task=6" in first and "--gpu-bind=none" in first
    exports = [next(word for word in command if word.startswith("--export=")) for command in (first, second)]
    shared = "--export=ALL,DIFFUSION_LM_STEP=1,MASTER_ADDR=node7,MASTER_PORT="
    assert all(export.startswith(shared) for export in exports)
    ports = [int(export.rpartition("=")[2]) for export in exports]
    assert ports[0] != ports[1] and min(ports) >= 15000, "two trials at once do not meet"


@pytest.mark.parametrize("variables", [{"SLURM_NNODES": "2", "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "2,1"},
                                       {"SLURM_NNODES": "2", "SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "2"}])
def test_uneven_tasks_are_refused(job, variables):
    job(**variables)
    with pytest.raises(UserError) as error:
        launch.command(BASE)
    assert str(error.value) == ("sbatch: got 3 tasks on 2 nodes, expected as many on each node; give sbatch --nodes=N "
                                "--ntasks-per-node=DEVICES")


@pytest.mark.parametrize(("name", "sent", "arrives"), [
    ("srun", signal.SIGTERM, signal.SIGUSR1), ("srun", signal.SIGUSR1, signal.SIGUSR1),
    ("srun", signal.SIGINT, signal.SIGINT), ("srun", signal.SIGKILL, signal.SIGTERM),
    ("other", signal.SIGTERM, signal.SIGTERM), ("other", signal.SIGKILL, signal.SIGKILL)])
def test_srun_gets_what_it_passes_on(tmp_path, name, sent, arrives):
    """SIGTERM would make srun kill its tasks."""
    program = tmp_path / name
    program.symlink_to(sys.executable)
    # a background process of a shell ignores SIGINT, and so do its children
    code = "import signal, time; signal.signal(2, signal.SIG_DFL); print('ready', flush=True); time.sleep(30)"
    with subprocess.Popen([str(program), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        launch.relay(process, sent)
        assert process.wait(20) == -arrives
