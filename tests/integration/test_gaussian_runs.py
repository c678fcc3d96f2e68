"""Gaussian runs by the command line: a learned schedule goes on exactly and is not averaged; a run without a bound."""

import json
import signal

import pytest
import torch

LEARNED = ("objective=gaussian", "schedule=learned", "model.embedding_dim=4")
LITERAL = (
    "objective=dimba_literal",
    "objective.timesteps=20",
    "denoiser={name: dimba, n_layers: 1, mixer: {inner: {head_dim: 16, d_state: 8, chunk_size: 8}}}",
    "prompt.leak=true",
    "model.normalise_embeddings=false",
    "model.embedding_dim=4",
)
STEP = "diffusion_lm.lightning_module:DiffusionModule.training_step"


def whole(place, run):
    """All numbers of a run but its speed."""
    curves = {tag: points for tag, points in place.curves(run).items() if not tag.startswith("throughput")}
    checkpoint = place.checkpoint(run)
    return curves, checkpoint["state_dict"], checkpoint["current_model_state"], checkpoint["optimizer_states"]


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def schedule_of(state: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("model.process.schedule.")}


def test_a_learned_schedule_goes_on_exactly_and_is_never_averaged(place):
    place.train("straight", *LEARNED)
    kill = {"place": STEP, "call": 8, "signal": int(signal.SIGTERM), "when": "before"}
    place.train("broken", *LEARNED, status=75, faults=[kill])
    first = schedule_of(place.checkpoint("broken")["state_dict"])
    place.train("broken", *LEARNED)
    assert same(whole(place, "straight"), whole(place, "broken"))

    checkpoint = place.checkpoint("straight")
    averaged, live = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert len(schedule_of(live)) == 6
    assert same(schedule_of(averaged), schedule_of(live))
    assert not torch.equal(averaged["model.head.weight"], live["model.head.weight"])
    assert not any(torch.equal(first[name], value) for name, value in schedule_of(live).items()), "none stood still"
    found = place.json("evaluate", "straight")
    assert found["val/nll"] == pytest.approx(place.result("straight")["metrics"]["val/nll"], rel=1e-6)
    curves = place.curves("straight")
    for tag in ("train/nll_variance", "train/recoverable_share"):
        assert len(curves[tag]) == 12
    predicted = place.json("describe", "straight/config.yaml")["parameters"]
    assert place.result("straight")["parameters"]["total"] == predicted


def test_a_run_without_a_bound_says_so_and_reports_what_there_is(place):
    done = place.train("literal", *LITERAL)
    assert "no bound  val/mse " in done.out
    assert "val/nll" not in done.out
    names = ("val/mse", "val/rounding_accuracy", "val/embedding_spread")
    for line in place.lines("literal"):
        assert all(0 <= line[name] < 10 for name in names)
        assert "val/nll" not in line
    result = json.loads((place.folder / "literal" / "result.json").read_text())
    assert result["status"] == "finished"
    assert set(names) <= set(result["metrics"])
    assert len(result["sample"]) > 1
    again = place.train("literal", *LITERAL)
    assert again.out.startswith("literal is finished: step 12, no bound  val/mse ")
    assert set(names) <= set(place.curves("literal"))


def test_the_anchored_loss_reports_the_gaussian_bound(place):
    place.train("anchored", "objective=dimba", "model.embedding_dim=4", "training.steps=4")
    metrics = place.result("anchored")["metrics"]
    terms = [metrics[f"val_terms/{name}"] for name in ("reconstruction", "prior", "diffusion")]
    assert metrics["val/nll"] == pytest.approx(sum(terms), rel=1e-5)
    assert 0 < place.curves("anchored")["train/mse"][4] < 10
