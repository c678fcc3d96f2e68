"""evaluate, generate, describe and --help, as a person or a program calls them."""

import json
import subprocess
import sys

import pytest

GAUSSIAN = ["objective=gaussian", "training.steps=4"]


@pytest.fixture(scope="module")
def gaussian(shared):
    """A short Gaussian run."""
    shared.train("gaussian", *GAUSSIAN)
    return "gaussian"


@pytest.mark.parametrize("process", ["masked", "gaussian"])
def test_evaluate_repeats_the_last_validation(shared, gaussian, process):
    run = {"masked": "run", "gaussian": gaussian}[process]
    found, last = shared.json("evaluate", run), shared.result(run)["metrics"]
    for name in ("val/nll", "val/nll_se", "val/bpb", "val/ppl_bound"):
        assert found[name] == pytest.approx(last[name], rel=1e-5), name
    for level, value in found["cross_entropy_by_noise_level"].items():
        assert value == pytest.approx(last[f"val_cross_entropy_by_noise_level/{level}"], rel=1e-5)
    assert sum(found["terms"].values()) == pytest.approx(found["val/nll"], rel=1e-5)
    assert (found["sequences"], found["draws"], found["tokens"]) == (12, 3, 12 * 32)
    assert found["process"] == process and found["corpus"] == shared.result(run)["corpus"]["hash"]
    if process == "gaussian":
        for name, value in found["terms"].items():
            assert value == pytest.approx(last[f"val_terms/{name}"], rel=1e-5)


def test_the_standard_error_falls_with_more_sequences_and_draws(shared):
    few = shared.json("evaluate", "run", "--sequences", 6)
    many = shared.json("evaluate", "run", "--sequences", 24)
    assert (few["sequences"], many["sequences"]) == (6, 24)
    assert many["val/nll_se"] < 0.8 * few["val/nll_se"]
    assert (
        shared.json("evaluate", "run", "--draws", 24)["val/nll_se"]
        < shared.json("evaluate", "run", "--draws", 1)["val/nll_se"]
    )


def test_more_sequences_than_there_are(shared):
    found = shared.json("evaluate", "run", "--sequences", 10**6)
    assert 12 < found["sequences"] < 100


def test_two_runs_share_their_noise(shared):
    """The same levels and masks for the same sequence, whatever the run's own seed: differences are paired."""
    import torch

    from diffusion_lm.evaluation.likelihood import score
    from diffusion_lm.evaluation.load import load_run
    from diffusion_lm.evaluation.sequences import sequence_set

    shared.train("other", "seed=5", "training.steps=2", "denoiser.n_layers=2")

    def seen(name):
        run = load_run(shared.folder / name)
        run.config.data.path = str(shared.folder / "shards")
        states = []
        run.model.embed.register_forward_pre_hook(lambda _, arguments: states.append(arguments[0].x))
        score(run, sequence_set(run.config.data, None, None, 0), 3, run.config.evaluation.seed)
        return torch.cat(states)

    import os

    here = os.getcwd()
    os.chdir(shared.folder)
    try:
        assert torch.equal(seen("run"), seen("other"))
    finally:
        os.chdir(here)


@pytest.mark.parametrize("process", ["masked", "gaussian"])
def test_generate(shared, gaussian, process):
    run = {"masked": "run", "gaussian": gaussian}[process]

    def texts(*arguments):
        return shared.json("generate", run, *arguments)["texts"]

    two = texts("--count", 2, "--seed", 4)
    assert two == texts("--count", 2, "--seed", 4)
    assert two == texts("--count", 5, "--seed", 4)[:2]
    assert texts("--seed", 4) == two[:1]
    assert two[0] != two[1] and texts("--seed", 5) != two[:1]
    for text in texts("--count", 3, "--prompt", "The cat ", "--length", 20):
        assert text.startswith("The cat ") and len(text) > len("The cat ")
    assert texts("num_steps=1") != texts("num_steps=8")
    if process == "gaussian":
        assert texts("name=ddim", "num_steps=4") != texts("num_steps=4")


def test_generate_as_text(shared):
    done = shared.command("generate", "run", "--count", 2, "--prompt", "Hello ")
    assert done.code == 0 and done.err.startswith("no cache: 2 texts; ") and done.err.count("\n") == 1
    first, second = done.out.split("\n---\n")
    assert first.startswith("Hello ") and second.startswith("Hello ")


@pytest.mark.parametrize("argument", ["tiny.yaml", "run/config.yaml"])
def test_describe(shared, argument):
    found = shared.json("describe", argument)
    counted = shared.result("run")["parameters"]
    weights = shared.checkpoint("run")["state_dict"]
    trained = sum(value.numel() for name, value in weights.items() if name.startswith("model."))
    assert found["parameters"] == counted["total"] == trained
    assert found["parameters, embedding"] == counted["embedding"]
    assert found["parameters, non-embedding"] == counted["non_embedding"]
    assert found["tokens planned"] == 12 * 8 * 32 == shared.result("run")["tokens"]
    assert found["FLOPs planned"] == found["FLOPs per token, training"] * found["tokens planned"]
    assert (found["denoiser"], found["process"], found["schedule"]) == ("transformer", "masked", "log_linear")


def test_describe_counts_every_denoiser_as_it_is_built(shared):
    for name in ("mamba", "hybrid", "dimba"):
        mixer = {"hybrid": "mamba: {inner: {head_dim: 16}}, attention: {head_dim: 16}"}.get(
            name, "mixer: {inner: {head_dim: 16}}"
        )
        over = [f"denoiser={{name: {name}, n_layers: 6, {mixer}}}", "objective=gaussian", "training.steps=1"]
        shared.train(f"described-{name}", *over)
        found = shared.json("describe", "tiny.yaml", *over)
        assert found["parameters"] == shared.result(f"described-{name}")["parameters"]["total"]
    assert not (shared.folder / "runs").exists()


def test_json_of_train(place):
    found = place.json("train", "tiny.yaml", "run=run", "training.steps=2")
    assert found == {"run": "run", **place.result("run")}
    assert place.json("train", "tiny.yaml", "run=run", "training.steps=2") == found
    # an override may follow an option
    done = place.command("train", "tiny.yaml", "--json", "run=run", "training.steps=2")
    assert done.code == 0 and json.loads(done.out.splitlines()[-1]) == found


def test_the_default_folder(place):
    done = place.command("train", "tiny.yaml", "training.steps=1", "name=mine")
    assert done.code == 0 and (place.folder / "runs" / "mine" / "result.json").is_file()


def test_evaluate_as_text(shared):
    out = shared.command("evaluate", "run").out
    assert out.startswith("run at step 12, masked process, 12 sequences of 32 tokens, 3 noise levels each, float32\n")
    assert "nats per token (perplexity at most " in out and " bits per byte)" in out


@pytest.mark.slow
def test_bad_input_from_a_shell(place):
    """In a Python process of its own."""
    code, out, err = place.cold("train", "tiny.yaml", "run=run", "training.step=2")
    assert (code, out) == (2, "") and err.startswith("error: training.step: unknown key") and err.count("\n") == 1


def test_help_is_quick_and_imports_no_torch(place):
    code, out, _ = place.cold("--help")
    assert code == 0
    for command in ("train", "evaluate", "generate", "describe"):
        assert f"\n    {command} " in out
        assert place.cold(command, "--help").out.startswith(f"usage: python -m diffusion_lm {command} ")
    script = """
import os, sys
from diffusion_lm.__main__ import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "lightning", "numpy", "omegaconf", "tensorboard", "optuna"} & set(sys.modules)
assert not heavy, heavy
used = os.times()
assert used.user + used.system < 1.5, used
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=place.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
