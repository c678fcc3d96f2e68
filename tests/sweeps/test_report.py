"""The report: one table per corpus, errors over seeds and sequences, what failed, plots, the note, JSON."""

import json
import math
from types import SimpleNamespace

import pytest
from optuna_dashboard import get_note

from diffusion_lm.errors import run_command
from sweeps import comparison, storage
from sweeps.__main__ import main
from sweeps.comparison import standard_error


@pytest.fixture
def finished(write_study, work):
    """A study of two arms with two seeds, one arm on another corpus and one that fails."""
    path = write_study(
        arms={"transformer": {"denoiser": "transformer"}, "mamba": {"denoiser": "mamba"},
              "elsewhere": {"corpus": "0ther"}, "broken": {"fault": "bad"}},
        seeds=[0, 1], baseline="transformer", overrides={"steps": 3})
    assert work(path)[0] == [1]
    return path


def test_report(finished, folder_of, records_of, tmp_path, capsys):
    folder = folder_of(finished)
    assert run_command(main, ["report", str(finished), "--root", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    text = (folder.path / "report.md").read_text()
    for part in ("transformer", "mamba", "unigram entropy", "uniform (log V)", "corpus fake (hash c0ffee)",
                 "corpus fake (hash 0ther)", "do not rank processes on the bound alone", "saw different corpora",
                 "trial 3 (broken, seed 0) fail: exit status 2: error: shards: no such folder", "git commit: ",
                 "machine: ", "once upon a time", f"tensorboard --logdir {folder.path} --host 127.0.0.1",
                 f"optuna-dashboard {folder.journal} --host 127.0.0.1"):
        assert part in said and part in text, part
    assert f"-m diffusion_lm train {folder.path / '0001-mamba-seed0' / 'config.yaml'} run=NEW`" in text
    for name in ("learning_curves", "bounds", "bound_against_speed"):
        for suffix in ("c0ffee", "0ther"):
            image = folder.path / f"{name}-{suffix}.png"
            assert image.read_bytes().startswith(b"\x89PNG") and image.name in text
    assert "| mamba |" in get_note(storage.load(folder))
    tables = comparison.compare(folder.config, records_of(finished))
    (mamba, transformer), (elsewhere,) = (table.rows for table in tables)
    assert [mamba.cell, transformer.cell, elsewhere.cell] == ["mamba", "transformer", "elsewhere"], "best first"
    assert mamba.trials == 2 and mamba.sequences_error == 0.02
    assert mamba.seeds_error == pytest.approx(0.025) and mamba.difference == pytest.approx(-0.1)
    assert mamba.difference_error == pytest.approx(0, abs=1e-9), "what both seeds share cancels in pairs"
    assert transformer.difference is None and elsewhere.difference is None


def test_report_and_status_for_programs(finished, tmp_path, capsys):
    assert run_command(main, ["report", str(finished), "--root", str(tmp_path / "runs"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["trials"] == {"complete": 6, "running": 0, "waiting": 0, "pruned": 0, "fail": 2}
    assert [row["cell"] for row in report["corpora"][0]["rows"]] == ["mamba", "transformer"]
    assert report["corpora"][0]["rows"][0]["metrics"]["val/nll"] == pytest.approx(1.925 + 3 * math.exp(-3))
    assert {entry["cell"] for entry in report["not_completed"]} == {"broken"}
    assert run_command(main, ["status", str(finished), "--root", str(tmp_path / "runs"), "--json"]) == 0
    trials = json.loads(capsys.readouterr().out)
    assert len(trials) == 8 and trials[0]["last"]["step"] == 3 and trials[3]["reason"].startswith("exit status 2")
    assert run_command(main, ["status", str(finished), "--root", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "8 trials: 6 complete, 2 fail" in said and "exit status 2: error: shards" in said


def test_sampled_study_shows_the_best_of_each_arm(write_study, work, tmp_path, capsys):
    path = write_study(arms={"a": {}, "b": {"denoiser": "mamba"}}, space={"lr": {"low": 0.001, "high": 0.01}}, trials=6,
                       overrides={"steps": 1})
    work(path)
    assert run_command(main, ["report", str(path), "--root", str(tmp_path / "runs"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["cell"]: row for row in report["corpora"][0]["rows"]}
    assert [rows[cell]["trials"] for cell in "ab"] == [3, 3] and len(rows["a"]["folders"]) == 1
    assert run_command(main, ["report", str(path), "--root", str(tmp_path / "runs")]) == 0
    assert "best of them" in (said := capsys.readouterr().out) and f"lr={rows['a']['params']['lr']:.4g}" in said


def test_standard_error():
    assert standard_error([1.0, 2.0, 3.0]) == pytest.approx(1 / math.sqrt(3))
    assert standard_error([1.0]) is None and standard_error([]) is None


def test_arms_are_ranked_and_compared_inside_a_process_only(write_study, folder_of):
    config = folder_of(write_study(arms={name: {"denoiser": "mamba"} for name in "abcd"}, baseline="a")).config

    def record(cell, process, nll):
        result = {"corpus": {"hash": "x"}, "process": process, "parameters": {"non_embedding": 1}}
        return SimpleNamespace(cell=cell, state="complete", result=result, trial=SimpleNamespace(params={"arm": cell}),
                               last={"val/nll": nll, "val/nll_se": 0.1}, seed=0, speed=1.0)

    records = [record("a", "masked", 3.0), record("b", "gaussian", 1.5), record("c", "masked", 2.0),
               record("d", "gaussian", 1.0)]
    (table,) = comparison.compare(config, records)
    assert [(row.cell, row.difference) for row in table.rows] == [("c", -1.0), ("a", None), ("d", None), ("b", None)]
