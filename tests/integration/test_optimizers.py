"""Muon, multipliers, WSD and several averages in runs by the command line."""

from itertools import combinations

import pytest
import torch

MUON = (
    "training.optimizer={name: muon, lr: 0.004}",
    "training.lr_schedule={name: wsd, decay_share: 0.5, shape: linear}",
    "training.lr_multipliers={embed: 3.0, denoiser.stack: 0.5}",
    "training.ema_decays=[0.3]",
    "training.min_lr=0",
)


def test_rates_are_logged_by_part(shared):
    """Warm-up over 3 of 12 steps, flat to step 6, then down by sixths."""
    shared.train("rates", *MUON)
    curves = shared.curves("rates")
    share = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    peaks = {"": 2e-3, "_embed": 6e-3, "_denoiser.stack": 1e-3, "_muon": 4e-3, "_muon.denoiser.stack": 2e-3}
    for label, peak in peaks.items():
        rates = curves[f"train/lr{label}"]
        assert [rates[step] for step in range(1, 13)] == pytest.approx([peak * part for part in share], rel=1e-6)
    assert {tag for tag in curves if tag.startswith("train/lr")} == {f"train/lr{label}" for label in peaks}


def test_the_checkpoint_holds_every_average_and_muons_state(shared):
    shared.train("kept", *MUON)
    checkpoint = shared.checkpoint("kept")
    first, other = checkpoint["state_dict"], checkpoint["averages"]["0.3"]
    assert first.keys() == other.keys() == checkpoint["current_model_state"].keys()
    name = "model.denoiser.stack.blocks.0.mlp.inner.up.weight"
    kept = [state[name] for state in (first, other, checkpoint["current_model_state"])]
    assert not any(torch.equal(a, b) for a, b in combinations(kept, 2))
    states = checkpoint["optimizer_states"][0]["state"].values()
    assert {tuple(sorted(state)) for state in states} == {("exp_avg", "exp_avg_sq", "step"), ("momentum_buffer",)}


def test_what_a_zero_multiplies_stands_still(shared):
    shared.train("frozen", *MUON, "training.lr_multipliers={embed: 0, denoiser.stack: 1}")
    shared.train("frozen-short", *MUON, "training.lr_multipliers={embed: 0, denoiser.stack: 1}", "training.steps=6",
                 "training.warmup_steps=0")  # fmt: skip
    frozen, short = (shared.checkpoint(run)["current_model_state"] for run in ("frozen", "frozen-short"))
    moved = {name for name in frozen if not torch.equal(frozen[name], short[name])}
    assert "model.embed.weight" not in moved
    assert "model.head.weight" in moved


def close(shared, one, other) -> None:
    """bfloat16 in Newton-Schulz rounds what differs in the last bit: curves agree, not bits."""
    curves, again = shared.curves(one), shared.curves(other)
    for tag in ("train/loss", "train/lr_muon", "val/nll"):
        assert curves[tag] == pytest.approx(again[tag], rel=2e-3), tag


def test_muon_with_accumulation(shared):
    for name, micro in (("one", 0), ("four", 2)):
        shared.train(f"muon-{name}", *MUON, "prompt.fraction=0", f"training.micro_batch={micro}")
    close(shared, "muon-one", "muon-four")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon_on_two_devices(place, strategy):
    place.train("one", *MUON, "prompt.fraction=0")
    two = ("training.devices=2", f"training.strategy={strategy}", "prompt.fraction=0")
    done = place.cold("train", "tiny.yaml", "run=two", *two, *MUON, timeout=300)
    assert done.code == 0, done.err
    close(place, "one", "two")
    states = [place.checkpoint(run)["averages"]["0.3"] for run in ("one", "two")]
    for name, value in states[0].items():  # as a whole: AdamW makes a step of the last bit of a rare token's gradient
        assert (states[1][name] - value).norm() <= 0.02 * value.norm() + 1e-4, name
