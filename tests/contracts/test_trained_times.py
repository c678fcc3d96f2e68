"""Times at which an objective has nothing to learn are refused when the config is read."""

import math

import pytest

from diffusion_lm.errors import UserError
from diffusion_lm.experiment import load
from diffusion_lm.objectives.gaussian import GaussianBoundConfig

SCORES = ["objective=score_entropy", "process=uniform", "schedule=sigma_linear"]
LEARNED = ["objective=gaussian", "schedule=learned"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            [*SCORES, "schedule.sigma_max=80", "objective.t_min=0.9"],
            "t_min: got 0.9, expected less than 0.0863, the time at which this schedule reaches alpha = 0.001",
        ),
        (
            [*LEARNED, "times.low=0.5"],
            "times: got low 0.5 and high 1.0 with a learned schedule, which would draw the range to the noise levels "
            "that cost least; expected the whole range, 0 to 1, or a fixed schedule",
        ),
        ([*LEARNED, "times.high=0.6"], "times: got low 0.0 and high 0.6 with a learned schedule"),
        (
            ["schedule=half_cosine", "objective.t_min=1e-9", "times.high=1e-8"],
            "times: got noise levels of at most 1.11e-16 in the range that is trained on, expected at least 0.001: "
            "with so little noise there is nothing to learn; raise times.high, or objective.t_min",
        ),
        (["process=uniform", "objective=uniform", "objective.t_min=1e-9", "times.high=1e-5"], "at most 9.99e-06 in"),
    ],
)
def test_is_refused(keys, text):
    with pytest.raises(UserError) as refused:
        load("quickstart", keys)
    assert text in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "keys",
    [
        [*SCORES, "schedule.sigma_max=80", "objective.t_min=0.08"],
        [*LEARNED],
        ["objective=gaussian", "times.low=0.5", "times.high=0.6"],
        ["times.high=0.01"],
        ["objective=discrete_time", "objective.num_steps=1"],
    ],
)
def test_is_accepted(keys):
    assert load("quickstart", keys)


def test_a_run_that_exists_is_read_all_the_same():
    assert load("quickstart", [*LEARNED, "times.low=0.5"], trained=True).times.low == 0.5


@pytest.mark.parametrize("weights", [(math.nan, 1.0), (0.0, math.inf), (1.0, math.nan), (0.0, 0.0), (-1.0, 2.0)])
def test_weights_that_are_no_numbers_are_refused(weights):
    text = f"got cross_entropy {weights[0]} and bound {weights[1]}, expected two finite numbers, none below 0 and one"
    with pytest.raises(ValueError, match=text):
        GaussianBoundConfig(cross_entropy=weights[0], bound=weights[1])
