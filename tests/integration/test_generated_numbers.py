"""The numbers of texts drawn at the end of a run: when they are reported, and what is refused."""

import pytest

FROZEN = "training.lr_multipliers={denoiser: 0.0, embed: 0.0, given: 0.0, head: 0.0, norm: 0.0}"
GAUSSIAN = ["objective=gaussian", "training.samples=0", "evaluation.samples=3"]


@pytest.fixture(scope="module")
def weights(shared):
    """A run that others start from, with a prompt in some of its texts."""
    shared.train("drawn-weights", "objective=gaussian", "training.steps=4", "prompt.fraction=0.5")
    return "drawn-weights"


def drawn(shared, weights, name, *overrides):
    run = f"drawn-{name}"
    shared.train(run, *GAUSSIAN, "sampler=ddim", f"training.from_pretrained={weights}", FROZEN, "training.steps=1",
                 "training.warmup_steps=0", "training.ema_decay=0", "training.val_every=0", "prompt.fraction=0.5",
                 *overrides)
    return shared.result(run)["metrics"]


def test_only_the_last_validation_draws(shared):
    shared.train("drawn-twice", *GAUSSIAN, "sampler.num_steps=5")
    reports = shared.reports("drawn-twice")
    assert [step for step, line in reports.items() if "gen/entropy" in line] == [max(reports)]
    last = reports[max(reports)]
    assert last["gen/calls"] == 6  # five steps, and one that says the tokens
    assert 0 <= last["gen/common_3grams"] <= 1 and 0 < last["gen/entropy"] < 5.55
    assert "gen/reference_3grams" not in last
    assert shared.curves("drawn-twice")["gen/entropy"] == {max(reports): pytest.approx(last["gen/entropy"])}


def test_frozen_weights_draw_by_another_sampler_with_the_same_bound(shared, weights):
    few = drawn(shared, weights, "few", "sampler.num_steps=2")
    again = drawn(shared, weights, "again", "sampler.num_steps=2")
    many = drawn(shared, weights, "many", "sampler.num_steps=6", "sampler.eta=1.0")
    other = drawn(shared, weights, "other", "sampler.num_steps=2", "seed=1")
    assert few["val/nll"] == many["val/nll"] == shared.result(weights)["metrics"]["val/nll"]
    assert few["gen/entropy"] == again["gen/entropy"] != many["gen/entropy"]
    assert few["gen/entropy"] != other["gen/entropy"]


def test_guidance_doubles_the_calls_and_a_prompt_has_a_reference(shared, weights):
    plain = drawn(shared, weights, "plain", "sampler.num_steps=4", "evaluation.prompt=0.5")
    guided = drawn(shared, weights, "guided", "sampler.num_steps=4", "evaluation.prompt=0.5", "sampler.guidance=2.0")
    assert guided["gen/calls"] == 2 * plain["gen/calls"]
    assert 0 <= plain["gen/reference_3grams"] <= 1
    assert plain["gen/entropy"] <= 2.7726 + 1e-6  # ln 16: the drawn half of 32 tokens


def test_what_has_no_meaning_is_refused(place):
    command = ["train", "tiny.yaml", "run=x"]
    assert ("sampler.guidance: got 1.0, but the 3 texts of evaluation.samples have no prompt"
            in place.refused(*command, *GAUSSIAN, "sampler.guidance=1.0"))
    assert "evaluation.prompt: got 0.5, which has no effect here" in place.refused(*command, "evaluation.prompt=0.5")
    assert "prompt: got 1.0, expected 0 or more" in place.refused(*command, *GAUSSIAN, "evaluation.prompt=1.0")
    assert "samples: got -1" in place.refused(*command, "evaluation.samples=-1")
