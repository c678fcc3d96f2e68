"""A run goes on with another batch size: every sequence once, in the same order, and the numbers say so."""

import json
import signal

import pytest

STEP = "diffusion_lm.lightning_module:DiffusionModule.training_step"
LENGTH = 32


def interrupted(place, run, *overrides):
    """A run with batches of 8 that stops after 4 steps, at sequence 32."""
    fault = {"place": STEP, "call": 4, "signal": int(signal.SIGTERM), "when": "before"}
    place.train(run, *overrides, faults=[fault], status=75)


@pytest.mark.parametrize("size", [4, 16])
def test_by_a_whole_factor(place, size):
    interrupted(place, "run")
    done = place.train("run", f"training.batch_size={size}")
    assert "resuming at step 4\n" in done.out
    tokens = {step: line["tokens"] for step, line in place.reports("run").items()}
    assert tokens == {4: 32 * LENGTH, 8: (32 + 4 * size) * LENGTH, 12: (32 + 8 * size) * LENGTH}
    assert place.result("run")["tokens"] == (32 + 8 * size) * LENGTH
    assert json.loads((place.folder / "run" / "batches.json").read_text()) == [[0, 0, 8], [4, 32, size]]


def test_the_checkpoint_counts_sequences(place):
    interrupted(place, "run", "training.steps=6")
    place.train("run", "training.steps=6", "training.batch_size=16")
    state = place.checkpoint("run")["TokenDataModule"]
    assert (state["consumed"], state["global_batch"], state["step"]) == (32 + 2 * 16, 16, 6)


def test_back_to_the_first_size(place):
    """A size that no step was trained with leaves no trace."""
    interrupted(place, "run")
    fault = {"place": "diffusion_lm.training.train:make_trainer", "call": 1, "signal": 9, "when": "before"}
    place.train("run", "training.batch_size=16", faults=[fault], status=-9)
    place.train("run")
    assert json.loads((place.folder / "run" / "batches.json").read_text()) == [[0, 0, 8]]
    place.train("whole")
    assert place.curves("run")["train/loss"] == place.curves("whole")["train/loss"]


@pytest.mark.parametrize(("size", "said"), [(12, "a multiple or a divisor of 8"), (64, "that divides 32")])
def test_sizes_that_do_not_fit_are_refused(place, size, said):
    interrupted(place, "run")
    before = (place.folder / "run" / "config.yaml").read_text()
    line = place.refused("train", "tiny.yaml", "run=run", f"training.batch_size={size}")
    assert "trained with a batch of 8 sequences and has consumed 32" in line and said in line
    assert (place.folder / "run" / "config.yaml").read_text() == before


def test_a_finished_run_is_another_run(place):
    place.train("run", "training.steps=2")
    done = place.command("train", "tiny.yaml", "run=run", "training.steps=2", "training.batch_size=16")
    assert done.code == 2 and "training.batch_size: 8 -> 16" in done.err
