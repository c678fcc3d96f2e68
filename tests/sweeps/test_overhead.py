"""What a study costs beside training, as a command."""

import pytest

from diffusion_lm.errors import UserError
from sweeps.__main__ import main
from sweeps.watch import overhead


def test_table_has_every_kind_at_every_size(capsys):
    assert main(["overhead", "--trials", "30", "20", "--repeats", "3"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "journal" in line]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["journal", kind, size] for kind in ("design", "sampled") for size in ("20", "30")]
    assert rows[0][6].strip() == rows[2][6].strip() == "1.00"
    assert all(float(cell) > 0 for row in rows for cell in row[3:])


def test_half_of_the_trials_are_finished_and_one_is_claimed_each_time(tmp_path):
    (case, *_) = overhead.measure([20], 3, None, tmp_path)
    trials = case.claims.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * (10 + 1 + 3) + ["WAITING"] * 6
    assert len(case.claimed) == len(case.told) == 3


def test_more_repeats_than_trials_are_refused():
    with pytest.raises(UserError, match="--trials: got 50 with 40 repeats, expected at least 90 trials and 1 repeat"):
        main(["overhead", "--trials", "50", "--repeats", "40"])
