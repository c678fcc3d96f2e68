"""Cells that failed, asked for again by hand: what is trained once more, and what never is."""

import pytest

from diffusion_lm.errors import UserError
from sweeps.__main__ import main
from sweeps.records import storage
from sweeps.work import retry


def lives(record):
    """The step at which each life of the trial's training began."""
    return [int(line.split()[-1]) for line in (record.folder / "lives.txt").read_text().splitlines()]


def test_failed_cells_are_asked_for_again_once(write_study, work, records_of, tmp_path, capsys):
    path = write_study(arms={"good": {}, "bad": {"fault": "bad"}, "memory": {"fault": "memory"}}, seeds=[0, 1])
    assert work(path)[0] == [1]
    options = [str(path), "--root", str(tmp_path / "runs")]
    assert main(["retry", *options, "--class", "out_of_memory"]) == 0
    said = capsys.readouterr().out
    assert "trial 2 (memory seed 0) is asked for again\ntrial 5 (memory seed 1) is asked for again\n" in said
    assert "2 trials wait" in said
    assert main(["retry", *options]) == 0 and "2 trials wait" in capsys.readouterr().out, "the other two"
    assert main(["retry", *options]) == 0
    assert capsys.readouterr().out == "study 's': no failed trial to ask for again\n"
    waiting = [record for record in records_of(path) if record.state == "waiting"]
    assert [(record.cell, record.seed, record.note("retry_of")) for record in waiting] == [
        ("memory", 0, 2), ("memory", 1, 5), ("bad", 0, 1), ("bad", 1, 4)]

    assert work(path)[0] == [1], "nothing was mended"
    assert main(["retry", *options, "--trial", "2"]) == 0, "by the number that it had first"
    records = records_of(path)
    assert [record.note("retry_of") for record in records if record.state == "waiting"] == [6]
    assert [record.number for record in records if record.cell == "good"] == [0, 3], "what is done is not done again"
    assert all(lives(record) == [0] for record in records if record.folder)


def test_a_cell_that_was_mended_is_trained_once_more_and_no_more(write_study, work, records_of, folder_of, experiments):
    """A sampled study, where the number of trials is no bound: it stays, and so do the parameters."""
    path = write_study(space={"lr": {"low": 1e-4, "high": 1e-2}}, trials=3, overrides={"fault": "broken"})
    assert work(path)[0] == [1]
    folder = folder_of(path)
    retry.ask_again(folder, storage.load(folder), numbers=[1])
    for record in records_of(path):
        if record.state == "waiting":
            number = record.number
    text = folder.path / f"{number:04d}-fake"
    text.mkdir()
    config = experiments.load("fake", [f"lr={records_of(path)[1].trial.params['lr']}"])
    experiments.save(config, text / "config.yaml")  # the fault is gone
    assert work(path)[0] == [0]
    records = records_of(path)
    assert [record.state for record in records] == ["fail"] * 3 + ["complete"]
    assert records[3].trial.params == records[1].trial.params and records[3].note("row") == 1
    assert retry.ask_again(folder, storage.load(folder), numbers=[1]) == []


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"numbers": [0]}, r"^--trial: trial 0 is complete; only trials that failed can be asked for again$"),
        ({"numbers": [9]}, r"^--trial: got 9, but the study has trials 0 to 1$"),
        ({"cell": "badd"}, r"^--cell: no cell 'badd'; expected one of bad, good; did you mean 'bad'\?$"),
        ({"kind": "oom"}, r"^--class: no failure class 'oom'; expected one of code, disk, input, node, not_fin"),
    ],
)
def test_asking_for_what_is_not_there(write_study, work, records_of, folder_of, asked, text):
    path = write_study(arms={"good": {}, "bad": {"fault": "bad"}})
    work(path)
    folder = folder_of(path)
    with pytest.raises(UserError, match=text):
        retry.ask_again(folder, storage.load(folder), **asked)
    assert len(records_of(path)) == 2
