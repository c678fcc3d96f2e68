"""The report: one table per corpus, errors over seeds and sequences, what failed, plots, the note, JSON."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna_dashboard import get_note

from diffusion_lm.errors import run_command
from diffusion_lm.training.result import summary
from sweeps.__main__ import main
from sweeps.analysis import comparison, report, sections, tables
from sweeps.analysis.statistics import Estimate
from sweeps.records import storage
from sweeps.work import progress


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
                 "exit status 2: error: shards: no such folder", "git commit: ", "machine: ",
                 "once upon a time", f"tensorboard --logdir {folder.path} --host 127.0.0.1",
                 f"optuna-dashboard {folder.journal} --host 127.0.0.1"):
        assert part in said and part in text, part
    assert f"-m diffusion_lm train {folder.path / '0001-mamba-seed0' / 'config.yaml'} run=NEW`" in text
    for name in ("learning_curves-c0ffee", "bounds-c0ffee", "bound_against_speed-c0ffee", "differences-c0ffee",
                 "learning_curves-0ther", "bounds-0ther"):
        image = folder.path / f"{name}.png"
        assert image.read_bytes().startswith(b"\x89PNG") and f"({image.name})" in text
    assert "| mamba |" in get_note(storage.load(folder))
    tables = comparison.compare(folder.config, records_of(finished))
    (mamba, transformer), (elsewhere,) = (table.rows for table in tables)
    assert [mamba.cell, transformer.cell, elsewhere.cell] == ["mamba", "transformer", "elsewhere"], "best first"
    assert mamba.trials == 2 and mamba.sequences_error == 0.02
    assert mamba.seeds_error == pytest.approx(0.025) and mamba.difference == pytest.approx(-0.1)
    assert mamba.difference_error == pytest.approx(0, abs=1e-9), "what both seeds share cancels in pairs"
    assert transformer.difference is None and elsewhere.difference is None


def test_a_complete_trial_whose_folder_is_gone_is_told(write_study, trained, records_of):
    """Its mean over seeds is over the others; nothing says so but this."""
    path = write_study(arms={"a": {}, "b": {}}, seeds=[0, 1], metrics={"val/nll": "minimize", "val/bpb": "minimize"})
    folder = trained(path, lambda params, seed: {"val/nll": 2.0 + seed, "val/bpb": 3.0})
    gone = folder.path / "0003-b-seed1"
    shutil.rmtree(gone)
    study = storage.load(folder)
    made = sections.gather(folder, study)
    (failed,) = (section for section in made.sections if section.title == "What failed, and why")
    assert failed.table.rows == [["3", "b", "1", "lost", "–", "n1", "complete",
                                  f"{gone} has no result.json any more: of its results only val/nll=3, val/bpb=3 is "
                                  "left (in Optuna), and it stands in no table; restore the folder"]]
    report.write(made, study)
    lost = {"trial": 3, "cell": "b", "seed": 1, "metrics": {"val/nll": 3.0, "val/bpb": 3.0}, "folder": str(gone)}
    assert json.loads((folder.path / "report.json").read_text())["lost"] == [lost]
    lines = list(csv.DictReader((folder.path / "report.csv").open()))
    assert [line["val/nll"] for line in lines] == ["2.0", "2.0", "3.0", "3.0"]


@pytest.mark.slow
def test_report_and_status_for_programs(finished, tmp_path, capsys):
    assert run_command(main, ["report", str(finished), "--root", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"] == {"complete": 6, "running": 0, "waiting": 0, "pruned": 0, "fail": 2}
    assert [row["cell"] for row in found["corpora"][0]["rows"]] == ["mamba", "transformer"]
    assert found["corpora"][0]["rows"][0]["metrics"]["val/nll"] == pytest.approx(1.925 + 3 * math.exp(-3))
    assert {entry["cell"] for entry in found["not_completed"]} == {"broken"}
    assert run_command(main, ["status", str(finished), "--root", str(tmp_path / "runs"), "--json"]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert len(trials) == 8 and trials[0]["last"]["step"] == 3 and trials[3]["reason"].startswith("exit status 2")
    assert run_command(main, ["status", str(finished), "--root", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "8 trials: 6 complete, 2 fail" in said and "exit status 2: error: shards" in said


@pytest.mark.slow
def test_sampled_study_shows_the_best_of_each_arm(write_study, work, tmp_path, capsys):
    path = write_study(arms={"a": {}, "b": {"denoiser": "mamba"}}, space={"lr": {"low": 0.001, "high": 0.01}}, trials=6,
                       overrides={"steps": 1})
    work(path)
    assert run_command(main, ["report", str(path), "--root", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["cell"]: row for row in found["corpora"][0]["rows"]}
    assert [rows[cell]["trials"] for cell in "ab"] == [3, 3] and len(rows["a"]["folders"]) == 1
    assert run_command(main, ["report", str(path), "--root", str(tmp_path / "runs")]) == 0
    assert "best of them" in (said := capsys.readouterr().out) and f"lr={rows['a']['params']['lr']:.4g}" in said


def test_the_bound_of_a_run_that_diverges_is_three_digits_long(config, trial):
    table = comparison.compare(config, [trial("good", 2.5), trial("bad", 88106676024654984301785617793024.0)])[0]
    assert [row[2] for row in tables.cells(config, table).rows[:2]] == ["2.500", "8.81e+31"]
    assert progress.describe({"step": 1, "val/nll": 8.8106e31, "val/nll_se": 2.0e6}) == (
        "step 1   val/nll 8.81e+31 ± 2e+06")
    assert summary({"val/nll": 8.8106e31, "val/nll_se": 0.5, "val/bpb": 1e32}) == (
        "val/nll 8.81e+31 ± 0.5000 nats/token  val/bpb 1e+32")
    assert summary({"val/mse": -2e9}) == "no bound  val/mse -2e+09"
    (bad,) = (row for row in table.rows if row.cell == "bad")
    row = replace(bad, against=Estimate(-2.5e8, 1e7, 2))
    shown = tables.cells(config, comparison.Comparison(corpus=table.corpus, rows=[row]))
    assert shown.rows[0][shown.header.index("minus a [95 %]")] == "-2.5e+08 [-3.77e+08, -1.23e+08] (2)", "12.7 errors"
    assert tables.number(1234567) == "1,234,567", "a rate is no bound"


@pytest.fixture
def trial():
    """A finished trial by its cell, its number and what its result.json says of the kind."""

    def made(cell, nll, kind=None, **result):
        result |= {"corpus": {"hash": "x", "name": "x"}, "parameters": {"non_embedding": 1}}
        result |= {"sample": f"text of {cell}"} | ({"kind": kind} if kind else {})
        return SimpleNamespace(cell=cell, state="complete", result=result, number=0, feasible=True, note={}.get,
                               trial=SimpleNamespace(params={"arm": cell}), device_hours=0.5, on_gpu=False,
                               last={"val/nll": nll, "val/nll_se": 0.1}, seed=0, speed=1.0, folder=Path(cell),
                               reports=[])

    return made


def kind(process, over, **depends_on):
    return {"process": process, "over": over, "depends_on": depends_on}


@pytest.fixture
def config(write_study, folder_of):
    """A study of five arms."""
    return folder_of(write_study(arms={name: {"denoiser": "mamba"} for name in "abcde"}, baseline="a")).config


def test_results_without_a_kind_are_ranked_inside_their_process(config, trial):
    """As runs of earlier versions left them."""
    records = [trial("a", 3.0, process="masked"), trial("b", 1.5, process="gaussian"),
               trial("c", 2.0, process="masked"), trial("d", 1.0, process="gaussian"), trial("e", 4.0)]
    (table,) = comparison.compare(config, records)
    assert [(row.cell, row.difference) for row in table.rows] == [
        ("c", -1.0), ("a", None), ("d", None), ("b", None), ("e", None)]
    assert [str(found) for found in table.kinds] == ["masked", "gaussian", ""]


def test_steps_and_continuous_time_and_exact_are_kinds_of_their_own(config, trial):
    """Arm b, of one step, has the lowest number; it is neither ranked above the others nor subtracted from them."""
    masked, ar = kind("masked", "continuous time"), kind("left_to_right", "exact")
    records = [trial("a", 3.0, masked), trial("b", 0.5, kind("masked", "1 step", num_steps=1)), trial("c", 2.0, masked),
               trial("d", 1.0, ar), trial("e", 0.4, kind("masked", "2 steps", num_steps=2))]
    (table,) = comparison.compare(config, records)
    assert [(row.cell, row.difference) for row in table.rows] == [
        ("c", -1.0), ("a", None), ("b", None), ("e", None), ("d", None)]
    assert [row.cell for row in table.best] == ["c", "b", "e", "d"]
    found = comparison.to_json(config, [table], [])["corpora"][0]
    assert found["best"] == {"masked, continuous time": "c", "masked, 1 step": "b", "masked, 2 steps": "e",
                             "left_to_right, exact": "d"}
    assert found["rows"][2]["kind"] == kind("masked", "1 step", num_steps=1)
    lines = tables.cells(config, table).rows
    assert [line[:3] for line in lines[2:5]] == [
        ["b", "masked, 1 step", "0.500"], ["e", "masked, 2 steps", "0.400"],
        ["d", "left_to_right, exact", "1.000 exact"]]


def test_exact_numbers_are_ranked_whatever_their_process(config, trial):
    """Masked blocks of one token against a next-token model; what each number depends on is no slack."""
    masked, alone = kind("masked", "continuous time", block_size=4), kind("masked", "exact", block_size=1)
    records = [trial("a", 3.0, masked), trial("b", 2.5, alone), trial("c", 2.0, masked),
               trial("d", 2.25, kind("left_to_right", "exact"))]
    (table,) = comparison.compare(config, records)
    assert [(row.cell, str(row.kind)) for row in table.rows] == [
        ("c", "masked, continuous time"), ("a", "masked, continuous time"), ("d", "left_to_right, exact"),
        ("b", "masked, exact")]
    assert [row.cell for row in table.best] == ["c", "d"] and tables.slack(table) == []


def test_the_best_text_of_every_kind_is_shown(config, trial):
    records = [trial("a", 3.0, kind("masked", "continuous time")), trial("b", 0.5, kind("masked", "1 step")),
               trial("c", 2.0, kind("masked", "continuous time"))]
    found = sections._samples(sections.Report(None, records, comparison.compare(config, records)))
    assert [(section.title, section.text) for section in found] == [
        ("Sample text of the best run of masked, continuous time", "text of c"),
        ("Sample text of the best run of masked, 1 step", "text of b")]


def test_an_arm_whose_trials_are_of_two_kinds_is_two_rows(config, trial):
    """A search over num_steps: the bound of more steps is no better trial than that of few."""
    few, many = (kind("masked", f"{count} steps", num_steps=count) for count in (2, 8))
    (table,) = comparison.compare(config, [trial("a", 3.0, few), trial("a", 2.0, many), trial("b", 2.5, few)])
    assert [(row.cell, row.kind.over, row.metrics["val/nll"], row.difference) for row in table.rows] == [
        ("b", "2 steps", 2.5, -0.5), ("a", "2 steps", 3.0, None), ("a", "8 steps", 2.0, None)]


def test_what_bounds_of_one_kind_do_not_share_is_said(config, trial):
    records = [trial("a", 3.0, kind("gaussian", "continuous time", log_snr_range=[3, -7])),
               trial("b", 3.1, kind("gaussian", "continuous time", log_snr_range=[2, -6])),
               trial("c", 2.0, kind("masked", "continuous time"))]
    (table,) = comparison.compare(config, records)
    assert tables.slack(table) == ["gaussian, continuous time: these bounds depend on log_snr_range, which differs "
                                   "between arms: slack is part of the differences."]


def test_a_cache_that_is_an_approximation_is_told_of_its_arms_and_is_no_slack(config, trial):
    full = {"block_size": 8, "cache": "approximate (reverse_scan: full)"}
    records = [trial("a", 3.0, kind("masked", "continuous time", block_size=8)),
               trial("b", 2.0, kind("masked", "continuous time", **full)),
               trial("c", 2.5, kind("masked", "continuous time", **full))]
    (table,) = comparison.compare(config, records)
    assert tables.slack(table) == ["b, c: the cache is approximate (reverse_scan: full): the likelihood is of the "
                                   "model without it, text is written with it."]


def test_bounds_on_a_known_source_are_distances_from_its_entropy_rate(config, trial):
    """A study on text has neither the column nor the reference row."""
    (table,) = comparison.compare(config, [trial("a", 3.0)])
    header, lines = (text := tables.cells(config, table)).header, text.rows
    assert "above floor" not in header and [line[0] for line in lines] == ["a", "unigram entropy", "uniform (log V)"]
    record = trial("a", 3.0)
    record.result["corpus"]["entropy_rate"] = 1.25
    (table,) = comparison.compare(config, [record])
    header, lines = (text := tables.cells(config, table)).header, text.rows
    assert lines[0][header.index("above floor")] == "1.750"
    assert lines[1][:3] == ["entropy rate (floor)", "", "1.250"] and len(lines) == 4
    assert tables.terminal(text).row_count == 4 and len({len(line) for line in [header, *lines]}) == 1
    found = comparison.to_json(config, [table], [])["corpora"][0]
    assert (found["corpus"]["entropy_rate"], found["rows"][0]["above_entropy_rate"]) == (1.25, 1.75)


def test_in_a_design_the_baseline_is_the_cell_with_the_same_choices(write_study, trained, records_of):
    """A choice that only the other arm has is compared with the one cell of the baseline that shares the rest."""
    bounds = {("transformer", 0.001, None): 3.0, ("transformer", 0.002, None): 4.0, ("mamba", 0.001, 32): 2.0,
              ("mamba", 0.001, 64): 2.5, ("mamba", 0.002, 32): 2.0, ("mamba", 0.002, 64): 1.0}
    path = write_study(arms={"transformer": {}, "mamba": {}}, baseline="transformer", space={
        "lr": [0.001, 0.002], "width": {"choices": [32, 64], "when": {"arm": "mamba"}}})
    folder = trained(path, lambda params, seed: {
        "val/nll": bounds[params["arm"], params["lr"], params.get("width")]})
    (table,) = comparison.compare(folder.config, records_of(path))
    assert {row.cell: row.difference for row in table.rows} == {
        "transformer,lr=0.001": None, "transformer,lr=0.002": None, "mamba,lr=0.001,width=32": -1.0,
        "mamba,lr=0.001,width=64": -0.5, "mamba,lr=0.002,width=32": -2.0, "mamba,lr=0.002,width=64": -3.0}
