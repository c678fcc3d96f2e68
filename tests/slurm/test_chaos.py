"""A study on a real cluster where all goes wrong at once comes to what an undisturbed one comes to, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
ARMS = {"attention": {}, "mamba": {"denoiser": {"name": "mamba", "n_layers": 1}}}
SEEDS = range(6)
STEPS, EVERY = 40, 4
TRAINING = {"steps": STEPS, "val_every": STEPS // 2, "checkpoint_every": EVERY, "log_every": 1, "samples": 0,
            "precision": "float32"}
PAUSE = 0.2  # seconds per step

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def experiment(tiny):
    """The tiny experiment with a checkpoint every few steps and every loss logged."""
    raw = yaml.safe_load(tiny.read_text())
    raw["training"] |= TRAINING
    del raw["sampler"]
    path = tiny.with_name("disturbed.yaml")
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment, tmp_path_factory):
    """Trains every arm and seed in one process beside the sweep; returns the run folder of an arm and a seed."""
    root = tmp_path_factory.mktemp("undisturbed")
    overrides = {"attention": [], "mamba": ["denoiser=mamba", "denoiser.n_layers=1"]}
    runs = {str(root / f"{arm}-{seed}"): [str(experiment), *overrides[arm], f"seed={seed}"]
            for arm in ARMS for seed in SEEDS}
    (root / "runs.json").write_text(json.dumps(runs))
    command = ["nice", sys.executable, str(HERE / "undisturbed.py"), str(root / "runs.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(root / "log", "w") as log:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def find(arm, seed):
        assert process.wait(240) == 0, (root / "log").read_text()
        return root / f"{arm}-{seed}"

    yield find
    process.kill()
    process.wait()


def test_a_study_survives_all_that_a_cluster_does(cluster, submit, experiment, undisturbed, disturbed, traces,
                                                  records_of, over, logs, tmp_path):
    study, root = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump({"experiment": str(experiment), "arms": ARMS, "seeds": list(SEEDS)}))
    options = ("--array=0-3", "--partition=preempt", "--cpus-per-task=8")
    job = submit("SLURM/sweep.sh", study, "--root", root, options=options, STEP_PAUSE=str(PAUSE),
                 PYTHONPATH=str(HERE / "slow_steps"))
    sweep = disturbed(cluster, job, root / "study")
    hit = disturb(cluster, sweep)
    cluster.until(over(job), 240)

    records, said = records_of(study, root), logs()
    assert [(record.number, record.state) for record in records] == [(n, "complete") for n in range(12)], said
    lives = sweep.lives()
    assert {record.number: record.note("restarts") + 1 for record in records} == lives
    assert all(lives[worker.number] > worker.life + 1 for worker in hit), (hit, lives, said)
    assert sum(lives.values()) <= 12 + 5, "each of five faults ends one life at most"
    for record in records:
        check(record, undisturbed(record.note("arm"), record.seed), traces)


def disturb(cluster, sweep):
    """Five faults that overlap; returns the workers that were hit at once, in the middle of a trial."""
    late = sweep.victim()
    sweep.end_time(late.task, 3)  # the script asks for a signal 180 s before: SLURM sends it within half a minute
    lost = sweep.victim(late.task)
    cluster.fail(lost.node)
    killed = sweep.victim(late.task, lost.task)
    sweep.kill(killed)
    # The fourth task takes the killed one's node, and its trial.
    requeued = sweep.victim(late.task, lost.task, killed.task)
    cluster.run("scontrol", "requeue", requeued.task)
    sweep.wait_for_restart(late.task, 60)
    sweep.end_time(late.task, 30)
    cluster.until(lambda: sweep.restarts(lost.task) > 0, 60)
    cluster.heal(lost.node)
    evicted = sweep.victim(seconds=180)
    cluster.run("sbatch", "--partition=main", f"--nodelist={evicted.node}", "--cpus-per-task=8", "--output=/dev/null",
                "--wrap", "sleep 1")
    before = sweep.restarts(evicted.task)
    cluster.until(lambda: sweep.restarts(evicted.task) > before, 60)
    return [lost, killed, requeued]


def check(record, run, traces):
    """A trial equals the undisturbed run of its arm and seed, and did no more than was lost with a worker again."""
    trial = record.folder
    assert traces.reports(trial) == traces.reports(run)
    assert record.trial.values == [traces.reports(run)[-1]["val/nll"]]
    assert record.trial.intermediate_values == {line["step"]: line["val/nll"] for line in traces.reports(run)}
    curves = traces.curves(run)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, STEPS + 1))
    assert traces.curves(trial) == curves
    assert traces.weights(trial) == traces.weights(run)
    done = traces.times_done(trial)
    assert done[1] == 1, f"{trial}: begun {done[1]} times from zero"
    assert done.total() <= STEPS + EVERY * record.note("restarts")
    lives = traces.lives(trial)
    assert lives == sorted(lives) and lives.count(0) == 1, (trial, lives)
