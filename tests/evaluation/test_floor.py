"""The entropy rate beside every likelihood: in `evaluate`, for other shards, in result.json; nothing where unknown.

A model whose head is still zero gives every one of V ids the probability 1 / V, so that it is ln V - H above the floor.
"""

import json
import math

import pytest

from data_prep.sequences import HiddenMarkov
from data_prep.synth import synth
from diffusion_lm.evaluation.floor import above_floor


def entropy(skew):
    """Of four symbols with probabilities proportional to (k + 1)^-skew."""
    weights = [(k + 1) ** -skew for k in range(4)]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)


@pytest.fixture(scope="module")
def untrained(world):
    """A next-token run on a source of one state, whose weights have not moved."""
    for name, skew in (("one_state", 1.0), ("other_state", 2.0)):
        source = HiddenMarkov(states=1, symbols=4, skew=skew, length=32, seed=0)
        synth("hmm", source, world.folder / name, seed=0, sequences={"train": 64, "val": 6})
    return world.run("untrained", "data.path=one_state", "data.tokenizer=ids:5", "objective=autoregressive",
                     "sampler=left_to_right", "denoiser.mixer.causal=true", "training.lr=1e-12")  # fmt: skip


def test_a_uniform_model_is_ln_v_minus_h_above_the_floor(untrained, evaluate, command):
    found = evaluate(untrained)
    assert found["entropy_rate"] == pytest.approx(entropy(1.0))
    assert found["above_entropy_rate"] == pytest.approx(math.log(5) - entropy(1.0), abs=1e-5)
    assert found["manifest"]["runs"][0]["above_entropy_rate"] == found["above_entropy_rate"]
    said = command("evaluate", untrained).out
    assert (
        f"floor       {entropy(1.0):.4f} nats per token, the entropy rate of the source; exact "
        f"+{math.log(5) - entropy(1.0):.4f} ± 0.0000 from it" in said
    )
    assert "recall" not in said


def test_the_floor_is_that_of_the_data_that_are_scored(untrained, evaluate):
    found = evaluate(untrained, "--data", "other_state")
    assert found["entropy_rate"] == pytest.approx(entropy(2.0)) != entropy(1.0)
    assert found["above_entropy_rate"] == pytest.approx(math.log(5) - entropy(2.0), abs=1e-5)


def test_result_json(world, untrained):
    result = json.loads((world.folder / untrained / "result.json").read_text())
    assert result["corpus"]["entropy_rate"] == pytest.approx(entropy(1.0))
    assert result["above_entropy_rate"] == pytest.approx(math.log(5) - entropy(1.0), abs=1e-5)


def test_text_has_none(world, evaluate, command):
    run = world.run("masked")
    result = json.loads((world.folder / run / "result.json").read_text())
    assert result["corpus"]["entropy_rate"] is result["above_entropy_rate"] is None
    assert not {"entropy_rate", "above_entropy_rate"} & set(evaluate(run))
    assert "floor" not in command("evaluate", run).out


@pytest.mark.parametrize(
    ("nll", "facts", "above"),
    [(2.5, {"entropy_rate": 1.0}, 1.5), (0.75, {"entropy_rate": 1.0}, -0.25), (2.5, {"entropy_rate": 0.0}, 2.5),
     (None, {"entropy_rate": 1.0}, None), (2.5, {"entropy_rate": None}, None), (2.5, {}, None)],
)  # fmt: skip
def test_distance(nll, facts, above):
    """A floor of 0 is one; a run without a bound has no distance, nor has one on data of unknown entropy."""
    assert above_floor(nll, facts) == above
