"""Block diffusion through the commands: runs of every kind, ranges of times that are searched, weights to start from.

Sizes are tiny; what the numbers are is for the oracles.
"""

import shutil

import pytest

BLOCKS = ["block_size=8", "training.steps=8"]
MAMBA = ["denoiser={name: mamba, n_layers: 1, mixer: {inner: {head_dim: 16, d_state: 8}}}"]
HYBRID = ["denoiser={name: hybrid, n_layers: 6, mamba: {inner: {head_dim: 16, d_state: 8}}, attention: {head_dim: 16}}"]
GAUSSIAN = ["objective=gaussian", "model.self_conditioning=0.5", "prompt.fraction=0.5"]
ARMS = {"transformer": [], "mamba": MAMBA, "hybrid": HYBRID, "gaussian": GAUSSIAN}
CLIPPED = ["block_size=4", "times={name: clipped, draws: 2, step: 0.25}"]


@pytest.fixture(scope="module")
def blocks(shared):
    """A finished run of blocks of 8."""
    shared.train("blocks", *BLOCKS)
    return "blocks"


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_run_in_blocks_is_trained_and_evaluated(shared, arm):
    run, overrides = f"blocks-of-{arm}", [*BLOCKS, *ARMS[arm]]
    shared.train(run, *overrides)
    found, last = shared.json("evaluate", run), shared.result(run)
    assert found["val/nll"] == pytest.approx(last["metrics"]["val/nll"], rel=1e-5)
    assert sum(found["terms"].values()) == pytest.approx(found["val/nll"], rel=1e-5)
    assert found["tokens"] == 12 * 32
    assert found["kind"] == last["kind"] and found["kind"]["depends_on"]["block_size"] == 8
    text = shared.command("evaluate", run).out
    assert "; block_size 8" in text and " continuous time" in text
    whole, parts = (shared.json("describe", "tiny.yaml", *more) for more in (overrides[2:], overrides))
    assert parts["block size"] == 8 and "block size" not in whole
    assert parts["parameters"] == whole["parameters"] == last["parameters"]["total"]
    forward = "FLOPs per token, forward"
    assert 1.2 * whole[forward] < parts[forward] < 2 * whole[forward]


def test_a_run_in_blocks_beside_one_of_whole_texts(shared, blocks):
    """Both are bounds of one process: compared, and the output says that their slack is not the same."""
    found = shared.json("evaluate", "run", blocks)["manifest"]["difference"]
    assert found["comparable"] and not found["common_noise_levels"]
    assert found["caution"] == "the bounds depend on block_size, which differs: slack is part of the difference"
    same = shared.json("evaluate", blocks, blocks)["manifest"]["difference"]
    assert same["caution"] is None and same["nll"] == 0 and same["common_noise_levels"]


def test_blocks_of_one_token_are_compared_with_a_next_token_model(shared, blocks):
    """Both numbers are exact; that of larger blocks is a bound, compared to the first with a caution."""
    shared.train("one", "block_size=1", "training.steps=4")
    shared.train("next", "objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true",
                 "training.steps=4")  # fmt: skip
    done = shared.command("evaluate", "one", "next")
    assert "  kind        masked, exact; block_size 1\n" in done.out and "\nnext - one: " in done.out
    assert not any(word in done.out for word in ("caution", "not compared", "noise levels", "bound  "))
    found = shared.json("evaluate", "one", "next")["manifest"]
    assert found["difference"]["comparable"] and found["difference"]["caution"] is None
    a, b = (each["val/nll"] for each in found["runs"])
    assert found["difference"]["nll"] == pytest.approx(b - a, abs=1e-6)
    assert shared.result("one")["kind"] == {"process": "masked", "over": "exact", "depends_on": {"block_size": 1}}
    said = shared.command("evaluate", "one", blocks).out
    assert "\nblocks - one: " in said and "caution     one number is exact and the other a bound (masked, ex" in said
    said = shared.command("evaluate", "next", blocks).out
    assert "not compared: one number is exact and the other a bound (left_to_right, exact; masked, cont" in said


def test_a_block_size_that_does_not_fit_is_refused(shared):
    line = shared.refused("train", "tiny.yaml", "run=odd", "block_size=5")
    assert "block_size: got 5, expected a divisor of data.length 32, or 0 for the whole text at once" in line
    line = shared.refused("train", "tiny.yaml", "run=odd", "block_size=1", "prompt.fraction=0.5")
    assert "prompt.fraction: got 0.5, which has no effect here: a block of one token (block_size=1) has" in line


def test_a_searched_range_is_logged_and_kept_by_a_resumed_run(place):
    """A run that is killed after its first search goes on with the range found, and ends as one that was not."""
    place.train("whole", *CLIPPED)
    reports = place.reports("whole")
    assert list(reports) == [4, 8, 12]
    for line in reports.values():
        low, high = line["val_times/low"], line["val_times/high"]
        assert 0 <= low < high <= 1 and (low, high) != (0, 1)  # one masked token of four, or less, is a rare large loss
        assert 0 < line["val_times/variance"] < line["val_times/variance_of_whole_range"]
    saved = [value for name, value in place.checkpoint("whole")["callbacks"].items() if name.startswith("ClipSearch")]
    assert saved == [{"low": reports[12]["val_times/low"], "high": reports[12]["val_times/high"]}]
    kill = {"place": "diffusion_lm.lightning_module:DiffusionModule.training_step", "call": 6, "signal": 9}
    place.train("cut", *CLIPPED, status=-9, faults=[kill | {"when": "before"}])
    assert place.checkpoint("cut")["global_step"] == 4
    place.train("cut", *CLIPPED)
    losses = [place.curves(run)["train/loss"] for run in ("whole", "cut")]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    assert place.result("cut")["metrics"]["val_times/variance"] == reports[12]["val_times/variance"]


def test_a_found_range_is_trained_in_and_the_bound_is_of_all_levels(place):
    """The same run, but for the search, has the same losses up to the first validation and others after it."""
    place.train("clipped", *CLIPPED)
    place.train("plain", "block_size=4")
    clipped, plain = (place.curves(run) for run in ("clipped", "plain"))
    same = [step for step, loss in plain["train/loss"].items() if clipped["train/loss"][step] == loss]
    assert same == [1, 2, 3, 4]
    assert clipped["val/nll"][4] == plain["val/nll"][4] != clipped["val/nll"][12]


def weights(place, run, which="state_dict"):
    return {name: value for name, value in place.checkpoint(run)[which].items() if name.startswith("model.")}


START = "training.from_pretrained=run"
STILL = ["training.steps=1", "training.lr=1e-30", "training.weight_decay=0", "training.val_every=0"]


def test_a_block_run_starts_from_a_run_of_whole_texts(shared):
    """From its averaged weights, or its live ones: with a learning rate of nothing they are what comes out."""
    for word, which in (("averaged", "state_dict"), ("live", "current_model_state")):
        done = shared.train(f"from-{word}", "block_size=8", START, *STILL, f"training.pretrained_weights={word}")
        assert ", from the weights of run at step 12\n" in done.out
        found, wanted = weights(shared, f"from-{word}", "current_model_state"), weights(shared, "run", which)
        assert all(found[name].equal(value) for name, value in wanted.items())
        decay = 0.9 if word == "averaged" else 0.0
        assert shared.result(f"from-{word}")["from_pretrained"] == {"source": "run", "step": 12, "ema_decay": decay}
    assert "from_pretrained: run" in (shared.folder / "from-live" / "config.yaml").read_text()
    assert "from_pretrained" not in shared.result("run")


def test_training_starts_from_a_folder_of_weights(shared):
    assert shared.command("convert", "run", "run", "--out", "exported").code == 0
    shared.train("from-folder", "training.from_pretrained=exported", *STILL)
    found, wanted = weights(shared, "from-folder", "current_model_state"), weights(shared, "run")
    assert all(found[name].equal(value) for name, value in wanted.items())
    line = shared.refused("train", "tiny.yaml", "run=x", "training.from_pretrained=exported",
                          "training.pretrained_weights=live")  # fmt: skip
    assert "training.pretrained_weights: got live, but exported holds one set of weights; leave it averaged" in line


def test_what_may_differ_from_the_weights_is_told(shared):
    """Blocks from a next-token model; kernels, chunks and values before training are nobody's business."""
    next_token = ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true"]
    shared.train("told-source", *next_token, "training.steps=1")
    start = "training.from_pretrained=told-source"
    done = shared.train("told", "block_size=8", start, *STILL, "denoiser.mixer.kernel=sdpa", "model.token_std=0.5")
    told = ["denoiser.mixer.causal: True -> False", "process.name: left_to_right -> masked"]
    assert f", from the weights of told-source at step 1 ({'; '.join(told)})\n" in done.out
    assert shared.result("told")["from_pretrained"]["differences"] == told


def test_a_resumed_run_does_not_read_them_again(place):
    place.train("first", "training.steps=4")
    start = "training.from_pretrained=first"
    place.train("whole", "block_size=8", start)
    kill = {"place": "diffusion_lm.lightning_module:DiffusionModule.training_step", "call": 6, "signal": 9}
    place.train("cut", "block_size=8", start, status=-9, faults=[kill | {"when": "before"}])
    shutil.rmtree(place.folder / "first")
    place.train("cut", "block_size=8", start)
    assert place.curves("cut")["train/loss"] == place.curves("whole")["train/loss"]
    assert place.result("cut")["from_pretrained"] == place.result("whole")["from_pretrained"]
    assert place.train("cut", "block_size=8", start).out.startswith("cut is finished")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["training.from_pretrained=nowhere"],
            "training.from_pretrained: nowhere: no run here (no config.yaml); expec",
        ),
        (
            [START, "model.d_model=64"],
            "training.from_pretrained: the parameters of run are not this experiment's ('given' is [32] there "
            "and [64] here, and 13 more); expected the same model, denoiser and vocabulary",
        ),
        ([START, *MAMBA], "more); expected the same model, denoiser and vocabulary"),
        (
            [START, "denoiser.mixer.head_dim=32"],
            "training.from_pretrained: the weights of run are of another model, of the same shapes "
            "(denoiser.mixer.head_dim: 16 -> 32); expected the keys that they were trained with; set them as there",
        ),
        ([START, "denoiser.mixer.rope_base=500", "denoiser.norm=rms"], "(denoiser.mixer.rope_base: 10000.0 -> 500.0);"),
        ([START, "objective=score_entropy", "process=masked"], "(objective.readout: posterior -> score);"),
        (["training.pretrained_weights=live"], "without training.from_pretrained the weights are random"),
    ],
)
def test_weights_of_another_model_are_refused(shared, overrides, line):
    assert line in shared.refused("train", "tiny.yaml", "run=refused", *overrides)
    assert not (shared.folder / "refused").exists()
