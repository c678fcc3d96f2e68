"""Prompts in training and guidance when sampling, through the commands: what trains, what is drawn, what is refused."""

import pytest

EVERYTHING = [
    "objective=gaussian",
    "model.self_conditioning=0.5",
    "denoiser.conditioning=token",
    "prompt.fraction=0.8",
    "prompt.kind=spans",
    "prompt.dropout=0.3",
    "training.steps=6",
]


@pytest.fixture(scope="module")
def everything(shared):
    """A Gaussian run with a time token, self-conditioning, spans and hidden prompts."""
    shared.train("everything", *EVERYTHING)
    return "everything"


def test_every_parameter_is_trained(shared, everything):
    checkpoint = shared.checkpoint(everything)
    states = checkpoint["optimizer_states"][0]["state"]
    assert len(states) == len([name for name in checkpoint["state_dict"] if name.startswith("model.")])
    assert all(bool(state["exp_avg"].any()) for state in states.values())


def test_its_description_counts_what_it_has(shared, everything):
    found = shared.json("describe", "tiny.yaml", *EVERYTHING)
    assert found["conditioning"] == "token"
    assert found["parameters"] == shared.result(everything)["parameters"]["total"]
    ratio = found["FLOPs per token, training"] / found["FLOPs per token, forward"]
    assert ratio == pytest.approx(3.5, rel=1e-6)


def test_evaluation_repeats_the_last_validation(shared, everything):
    found, last = shared.json("evaluate", everything), shared.result(everything)["metrics"]
    assert found["val/nll"] == pytest.approx(last["val/nll"], rel=1e-5)


@pytest.mark.parametrize(("run", "weight"), [("run", 20.0), ("everything", 5000.0)])
def test_guidance_needs_a_prompt_and_changes_what_is_drawn(shared, everything, run, weight):
    """After so few steps the prompt says little, so that it takes a large weight to see it."""
    prompted = ["--count", 4, "--prompt", "The cat "]

    def texts(*arguments):
        return shared.json("generate", run, *prompted, *arguments)["texts"]

    assert texts("guidance=0") == texts()
    guided = texts(f"guidance={weight}")
    assert all(text.startswith("The cat ") for text in guided)
    assert guided != texts()
    line = shared.refused("generate", run, f"guidance={weight}")
    assert line == f"error: guidance: got {weight} and no prompt to be guided by; give one, or leave it 0\n"


def test_a_negative_weight_is_refused(shared):
    line = shared.refused("generate", "run", "--prompt", "a", "guidance=-1")
    assert "sampler: guidance: got -1.0, expected 0 or more" in line


def test_guidance_of_the_texts_of_training_is_refused(shared):
    line = shared.refused("train", "tiny.yaml", "run=guided", "sampler.guidance=2")
    assert "sampler.guidance: got 2.0, but training draws its texts without a prompt; leave it 0, and guide " in line
    assert "generate guided --prompt TEXT guidance=2.0" in line


def test_a_model_that_never_went_without_a_prompt_has_no_guidance(place):
    place.train("run", "prompt.fraction=1", "training.steps=2")
    line = place.refused("generate", "run", "--prompt", "a", "guidance=1")
    assert "guidance: got 1.0 for a model that was trained with a prompt in every sequence; it has nothing to " in line
    assert place.json("generate", "run", "--prompt", "a")["texts"]


def test_an_estimate_is_not_shown_to_a_discrete_process(shared):
    line = shared.refused("train", "tiny.yaml", "run=new", "model.self_conditioning=0.25")
    assert "model.self_conditioning: got 0.25 with process 'masked', whose states are ids; expected 0, or" in line
