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


@pytest.mark.parametrize(
    ("storage", "seeds"),
    [("journal", 6), ("postgresql", 2), pytest.param("postgresql", 6, marks=pytest.mark.long)],
    indirect=["storage"],
)
def test_a_study_survives_all_that_a_cluster_does(storage, seeds, cluster, submit, experiment, undisturbed, disturbed,
                                                  traces, records_of, over, logs, tmp_path):
    study, root = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(yaml.safe_dump({"experiment": str(experiment), "arms": ARMS, "seeds": list(SEEDS)[:seeds]}))
    options = ("--array=0-3", "--partition=preempt", "--cpus-per-task=8")
    job = submit("SLURM/sweep.sh", study, "--root", root, options=options, PYTHONPATH=str(HERE / "held_steps"),
                 SWEEPS_STORAGE=storage)
    sweep = disturbed(cluster, job, root / "study")
    hit = disturb(cluster, sweep)
    cluster.until(over(job), 240)

    records, said = records_of(study, root), logs()
    assert [(record.number, record.state) for record in records] == [(n, "complete") for n in range(2 * seeds)], said
    expected = dict.fromkeys(range(2 * seeds), 1)
    for worker in hit:
        expected[worker.number] += 1
    assert sweep.lives() == {record.number: record.note("restarts") + 1 for record in records} == expected, said
    for record in records:
        check(record, undisturbed(record.note("arm"), record.seed), traces)


def disturb(cluster, sweep):
    """Five faults that overlap; returns the workers that were hit, each in the midst of a trial."""
    late, lost, killed = sweep.held(3)
    sweep.limit(late.task, 3)  # the script asks for a signal 180 s before: SLURM sends it within half a minute
    cluster.fail(lost.node)
    sweep.kill(killed)
    # The fourth task takes the killed one's node, and its trial.
    cluster.until(lambda: [worker for worker in sweep.held() if worker.life], 60)
    (requeued,) = [worker for worker in sweep.held() if worker.life]
    cluster.run("scontrol", "requeue", requeued.task)
    stop(cluster, requeued)
    stop(cluster, late)
    cluster.until(lambda: sweep.restarts(late.task) == 1, 20)
    sweep.limit(late.task, 30)
    cluster.until(lambda: sweep.restarts(lost.task) == 1, 60)
    cluster.heal(lost.node)
    lost.go()
    evicted = sweep.held()[0]
    cluster.run("sbatch", "--partition=main", f"--nodelist={evicted.node}", "--cpus-per-task=8", "--output=/dev/null",
                "--wrap", "true")
    stop(cluster, evicted)
    sweep.go()
    return [late, lost, killed, requeued, evicted]


def stop(cluster, worker):
    """Wait until a signal reached the held training, and let it end its step."""
    cluster.until(lambda: worker.asked, 60)
    worker.go()


def check(record, run, traces):
    """A trial equals the undisturbed run of its arm and seed, and did no more than was lost with a worker again."""
    trial = record.folder
    assert traces.reports(trial) == traces.reports(run)
    curve = {line["step"]: line["val/nll"] for line in traces.reports(run)}
    assert record.trial.values == [curve[STEPS]]
    # A worker passes the newest report on every few seconds, so quick trials lack some in between.
    assert record.trial.intermediate_values.items() <= curve.items() and STEPS in record.trial.intermediate_values
    curves = traces.curves(run)
    assert [step for step, _ in curves["train/loss"]] == list(range(1, STEPS + 1))
    assert traces.curves(trial) == curves
    assert traces.weights(trial) == traces.weights(run)
    done, lives = traces.times_done(trial), traces.lives(trial)
    assert done[1] == 1, f"{trial}: begun {done[1]} times from zero"
    assert done.total() < STEPS + EVERY * len(lives)
    assert len(lives) == record.note("restarts") + 1 and lives.count(0) == 1, (trial, lives)
