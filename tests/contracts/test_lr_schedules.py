"""Learning-rate schedules against numbers worked out by hand, and what all of them promise."""

import math
from itertools import pairwise

import pytest

from diffusion_lm.config import config_class, from_tree, variants
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.training.config import TrainingConfig
from diffusion_lm.training.optimizer import lr_factor


def factors(steps: int, warmup: int, floor: float, schedule: str, **keys) -> list[float]:
    config = TrainingConfig(
        steps=steps, warmup_steps=warmup, min_lr=floor, lr_schedule=config_class("lr_schedules", schedule)(**keys)
    )
    return [lr_factor(step, config) for step in range(steps)]


@pytest.mark.parametrize("schedule", variants("lr_schedules"))
def test_a_linear_warm_up_that_reaches_the_peak_and_never_rises_again(schedule):
    found = factors(100, 8, 0.1, schedule)
    assert found[:8] == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0])
    assert found[8] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(found[8:]))
    assert min(found[8:]) >= 0.1
    assert factors(6, 0, 0.0, schedule)[0] == 1.0


@pytest.mark.parametrize("schedule", variants("lr_schedules"))
def test_after_the_last_step_it_stays(schedule):
    """Lightning asks once more than there are steps."""
    config = TrainingConfig(steps=20, warmup_steps=2, lr_schedule=config_class("lr_schedules", schedule)())
    assert lr_factor(20, config) == lr_factor(200, config)


def test_cosine():
    """12 steps, 4 of warm-up: at 4, 6, 8 and 10 the cosine is at 0, 45, 90 and 135 degrees."""
    found = factors(12, 4, 0.2, "cosine")
    half = math.sqrt(0.5)
    assert found[4::2] == pytest.approx([1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)])


def test_constant():
    assert factors(7, 2, 0.0, "constant") == [0.5, 1, 1, 1, 1, 1, 1]


def test_wsd_falls_in_the_last_share():
    """20 steps, the last 8 (0.4) of them falling: at 12, 14, 16, 18 a share of 0, 1/4, 1/2, 3/4 of the fall is done."""
    linear = factors(20, 4, 0.0, "wsd", decay_share=0.4, shape="linear")
    assert linear[4:13] == [1.0] * 9
    assert linear[12::2] == pytest.approx([1, 0.75, 0.5, 0.25])
    root = factors(20, 4, 0.0, "wsd", decay_share=0.4, shape="sqrt")
    assert root[12::2] == pytest.approx([1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)])
    cosine = factors(20, 4, 0.0, "wsd", decay_share=0.4, shape="cosine")
    assert cosine[12::2] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert factors(20, 4, 0.5, "wsd", decay_share=0.4, shape="linear")[12::2] == pytest.approx([1, 0.875, 0.75, 0.625])


def test_wsd_without_a_fall_is_constant():
    assert factors(10, 3, 0.0, "wsd", decay_share=0.0) == factors(10, 3, 0.0, "constant")


def refused(tree: dict) -> str:
    with pytest.raises(UserError) as error:
        from_tree(ExperimentConfig, {"training": tree})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals():
    line = refused({"steps": 100, "warmup_steps": 85, "lr_schedule": "wsd"})
    assert line == (
        "training: lr_schedule wsd: got 85 steps of warm-up and 20 of decay in 100 steps; expected room for both, with "
        "a lower warmup_steps or decay_share"
    )
    assert refused({"lr_schedule": {"name": "wsd", "decay_share": 1.5}}) == (
        "training.lr_schedule: decay_share: got 1.5, expected 0 to 1"
    )
    assert "no choice 'steep'; expected one of cosine, linear, sqrt" in refused(
        {"lr_schedule": {"name": "wsd", "shape": "steep"}}
    )
    assert refused({"lr_schedule": "cosin"}).endswith("expected one of constant, cosine, wsd; did you mean 'cosine'?")
