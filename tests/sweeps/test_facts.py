"""What `plan` says of a study."""

import pytest

from sweeps.definition import facts

ARMS = {"a": {}, "b": {"width": 32}}
SIZES = ["a: 19,200 parameters without embeddings, 5,000 tokens",
         "b: 9,600 parameters without embeddings, 5,000 tokens"]


@pytest.mark.parametrize(("keys", "lines"), [
    ({"arms": ARMS, "space": {"lr": [0.1, 0.2, 0.3]}, "seeds": [4, 5]},
     ["complete design: 6 cells (2 arm x 3 lr) x 2 seeds (4, 5)", *SIZES]),
    ({"arms": ARMS, "space": {"lr": {"choices": [0.1, 0.2], "when": {"arm": "b"}}}},
     ["complete design: 3 cells (2 arm x 2 lr, those left out whose condition does not hold)", *SIZES]),
    ({"arms": ARMS, "space": {"lr": [0.1, 0.2], "pause": [0.0, 0.1]}, "seeds": [7],
      "design": {"name": "fractional", "runs": 4}},
     ["4 cells x 1 seeds (7)", "fractional design: 4 of 8 cells, orthogonal, resolution III",
      "the main effect of arm is mixed with lr x pause", "the main effect of lr is mixed with arm x pause",
      "the main effect of pause is mixed with arm x lr", *SIZES]),
    ({"arms": ARMS, "space": {"lr": {"low": 0.1, "high": 0.2}}, "trials": 9, "points": [{"lr": 0.1}], "seeds": [0, 1],
      "budget": {"tokens": 10**6, "gpu_hours": 2.5}, "constraints": {"parameters": {"min": 10, "max": 30000}}},
     ["sampled by TPESampler: 9 trials over lr; arms and seeds take turns; 1 known point first",
      "budget: 1,000,000 tokens, 2.5 gpu_hours", "constraint: parameters min 10 and max 30,000", *SIZES]),
    ({}, ["complete design: 1 cells", "fake: 19,200 parameters without embeddings, 5,000 tokens"]),
])
def test_design_limits_and_sizes(write_study, folder_of, experiments, keys, lines):
    assert facts.lines(folder_of(write_study(**keys)), experiments) == lines


def test_sizes_wait_for_a_tokenizer_that_is_not_there_yet(write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study(arms=ARMS))
    plain = experiments.to_dict
    monkeypatch.setattr(experiments, "to_dict", lambda config: {**plain(config), "data": {"tokenizer": "no/such.json"}})
    assert facts.lines(folder, experiments)[1:] == ["sizes are not known: the tokenizer's file is not there yet"]
