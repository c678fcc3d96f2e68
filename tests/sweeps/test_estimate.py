"""What a study would take: sums of what was timed, sbatch's options as typed, and one real timing."""

import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lm.errors import UserError, run_command
from sweeps.__main__ import main
from sweeps.cluster import estimate, sbatch
from sweeps.definition import study

PROJECT = Path(__file__).resolve().parents[2]
TIMED = {"startup": 10.0, "steps": 100, "step": 0.5, "validations": 4, "validation": 2.0, "tokens": 3200,
         "parameters": 1000, "memory": 0, "accelerator": "cuda"}


def test_cost_of_a_trial_and_of_all(monkeypatch):
    monkeypatch.setattr(estimate.provenance, "machine", lambda: "a machine")
    cost = estimate.Cost("a", 3, TIMED)
    assert cost.seconds(1) == 10 + 50 + 8 and cost.seconds(2) == 10 + 29
    told = estimate.text([cost, estimate.Cost("b", 1, {**TIMED, "step": 36.0})], 1, 2)
    # a: 68 s, b: 3618 s; two at a time: 68 + 68 beside 68 + 3618
    assert told.splitlines()[1].split() == ["a", "3", "1,000", "3,200", "0.5", "2", "0.0189", "0.0567"]
    assert told.splitlines()[4] == ("4 trials, 12,800 tokens: 1.06 device hours, 1.02 hours with 2 at a time, without "
                                    "restarts and waiting")
    assert told.splitlines()[5] == "timed on a machine"


def test_devices_share_a_trial_and_count(monkeypatch):
    monkeypatch.setattr(estimate.provenance, "machine", lambda: "a machine")
    told = estimate.summary([estimate.Cost("a", 1, {**TIMED, "accelerator": "cpu", "steps": 7200})], 4, 1)
    # 10 + (3600 + 8) / 4 = 912 s on each of four
    assert told.startswith("1 trial of 4 devices each (their exchange was not timed), 3,200 tokens: 1.01 device "
                           "hours, 0.253 hours with 1 at a time")
    assert "call it on a node that has one" in told


@pytest.mark.parametrize(("durations", "width", "expected"), [
    ([3, 3, 3], 3, 3), ([3, 3, 3], 1, 9), ([5, 1, 1, 1], 2, 5), ([1, 1, 4], 2, 5), ([2], 8, 2)])
def test_workers_take_trials_in_order(durations, width, expected):
    assert estimate.wall(durations, width) == expected


def test_each_cell_is_timed_once_with_its_own_values(write_study, experiments):
    path = write_study(arms={"small": {}, "wide": {"width": 128}}, space={"lr": [0.001, 0.002]}, seeds=[0, 1, 2])
    seen = []

    def measure(config):
        seen.append(config.read_text())
        return TIMED

    costs = estimate.study(study.load(path), experiments, measure)
    assert [(cost.cell, cost.trials) for cost in costs] == [
        ("small,lr=0.001", 3), ("small,lr=0.002", 3), ("wide,lr=0.001", 3), ("wide,lr=0.002", 3)]
    assert ["width: 128" in text for text in seen] == [False, False, True, True]
    assert ["lr: 0.002" in text for text in seen] == [False, True, False, True]


def test_what_cannot_be_built_is_refused(write_study, experiments):
    path = write_study(arms={"fine": {}, "odd": {"denoiser": "dimba"}})
    with pytest.raises(UserError, match="arm odd: denoiser 'dimba' has no meaning under 'masked'"):
        estimate.study(study.load(path), experiments, lambda config: pytest.fail("nothing is timed"))


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "job.sh"
    path.write_text("#!/bin/bash\n#SBATCH --array=0-3\n#SBATCH --requeue\n#SBATCH --time=1:00:00\necho\n")
    return path


def test_typed_options_win_over_the_environments_and_the_scripts(script):
    environment = {"SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "2:00:00"}
    found = sbatch.options(script, "--time 3:00:00 -N2 -n 4 --exclusive", environment)
    assert found == {"array": "0-3", "requeue": "", "time": "3:00:00", "partition": "gpu", "nodes": "2", "ntasks": "4",
                     "exclusive": ""}
    assert sbatch.line(found, script, ["a b"]) == (
        f"sbatch --array=0-3 --requeue --time=3:00:00 --partition=gpu --nodes=2 --ntasks=4 --exclusive {script} 'a b'")


@pytest.mark.parametrize(("array", "width"), [("0-15", 16), ("0-15%4", 4), ("1-7:2", 4), ("0,3,9", 3), ("5", 1)])
def test_array_says_how_many_run_at_once(array, width):
    assert sbatch.width({"array": array}) == width
    assert sbatch.width({}) == 1


@pytest.mark.parametrize(("found", "devices"), [
    ({}, None), ({"nodes": "2"}, 2), ({"nodes": "2", "ntasks-per-node": "4"}, 8), ({"ntasks": "3"}, 3)])
def test_tasks_are_devices(found, devices):
    assert sbatch.devices(found) == devices


@pytest.mark.parametrize(("typed", "said"), [("16", "--sbatch: got '16', expected options of sbatch"),
                                             ("--array=all", "--array: got 'all', expected tasks like 0-15")])
def test_what_sbatch_would_not_take(script, typed, said):
    with pytest.raises(UserError, match=said):
        sbatch.width(sbatch.options(script, typed, {}))


@pytest.mark.parametrize(("typed", "said"), [
    ("--nodes=1-2", "--nodes: got '1-2', expected one number from 1 on, like --nodes=2"),
    ("--nodes=2 --ntasks-per-node=0", "--ntasks-per-node: got '0', expected one number from 1 on"),
    ("--ntasks=x", "--ntasks: got 'x', expected one number from 1 on, like --ntasks=2")])
def test_a_number_of_tasks_that_is_none_is_refused_before_anything_is_timed(write_study, monkeypatch, capsys, typed,
                                                                           said):
    monkeypatch.setattr(estimate, "measure", lambda path: pytest.fail("timed"))
    code = run_command(main, ["estimate", "study", str(write_study(experiment="quickstart")), f"--sbatch={typed}"])
    shown = capsys.readouterr()
    assert code == 2 and shown.out == "" and said in shown.err and shown.err.count("\n") == 1


def test_the_line_has_every_option_that_was_typed(write_study, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "measure", lambda path: TIMED)
    path = write_study(experiment="quickstart")
    for more in ([], ["--root", "elsewhere", "--storage", "postgresql://me@host/db", "--code", "new"]):
        assert main(["estimate", "study", str(path), *more]) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith("sbatch ") and line.endswith(" ".join(["SLURM/sweep.sh", str(path), *more]))


@pytest.mark.slow
def test_a_real_timing_leaves_nothing(tmp_path):
    """`--dry-run` of the script: 20 steps and 2 validations are told from 6 steps and one batch."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(f"{number} words of a text that is long enough " * 9)
    shard = ["-m", "data_prep", "shard", "--source", tmp_path / "text", "--out", tmp_path / "shards", "--length", "32"]
    subprocess.run([sys.executable, *map(str, shard), "--val-fraction", "0.3"], check=True, capture_output=True)
    (tmp_path / "x.yaml").write_text(f"""
data: {{path: {tmp_path}/shards, length: 32, val_sequences: 40}}
model: {{d_model: 32}}
denoiser: {{name: transformer, n_layers: 1, mixer: {{head_dim: 16}}}}
training: {{steps: 20, batch_size: 8, warmup_steps: 2, val_every: 10, samples: 1, accelerator: cpu}}
sampler: {{num_steps: 3}}
evaluation: {{draws: 2}}
""")
    before = sorted(tmp_path.rglob("*"))
    script, temporary = PROJECT / "SLURM" / "train.sh", tmp_path.with_name("temporary")
    temporary.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    done = subprocess.run(["bash", script, tmp_path / "x.yaml", "--dry-run", "--sbatch=--nodes=2"], cwd=tmp_path,
                          env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].startswith("sbatch --job-name=train --nodes=2 "), done
    assert lines[0].endswith(f" SLURM/train.sh {tmp_path / 'x.yaml'}")
    assert lines[3].split()[0] == "x" and "5,120" in lines[3].split(), "20 steps x 8 sequences x 32 tokens"
    assert lines[5].startswith("1 trial of 2 devices each")
    assert sorted(tmp_path.rglob("*")) == before and not list(temporary.glob("estimate-*"))
