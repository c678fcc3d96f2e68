"""evaluate --ema: which averaged weights of a run are scored; training does not depend on them."""

import pytest

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.load import load_run

STEPS = ("training.steps=6", "training.warmup_steps=0", "training.lr=0.05")


@pytest.fixture
def several(world):
    return world.run("several", *STEPS, "training.ema_decays=[0.05, 0.3]")


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["0.9", "0.05", "0.3", "0"])
def test_it_scores_what_a_run_of_that_decay_would_have_kept(world, several, evaluate, decay):
    alone = world.run(f"decay{decay}", *STEPS, f"training.ema_decay={decay}")
    found = evaluate(several, "--ema", decay)
    assert found["val/nll"] == evaluate(alone)["val/nll"]
    assert found["manifest"]["runs"][0]["weights"] == {"averaged": decay != "0", "ema_decay": float(decay)}
    assert found["out"].endswith(f"several/evaluation/validation-ema-{decay}")


def test_the_decays_give_different_numbers_and_the_first_is_the_default(several, evaluate):
    found = [evaluate(several, *more)["val/nll"] for more in ((), ("--ema", 0.05), ("--ema", 0.3), ("--ema", 0))]
    assert len(set(found)) == 4
    assert evaluate(several, "--ema", 0.9)["val/nll"] == found[0]


def test_two_runs_are_compared_at_one_decay(world, several, evaluate):
    found = evaluate(several, world.run("decay0.05", *STEPS, "training.ema_decay=0.05"), "--ema", 0.05)
    assert found["manifest"]["difference"]["nll"] == 0


def test_refusals(world, several, refused, monkeypatch):
    assert refused(several, "--ema", "0.5") == (
        "ema: got 0.5, expected 0.9, 0.05, 0.3, or 0 for the live weights: the run kept no other"
    )
    assert "argument --ema: invalid float value: 'slow'" in refused(several, "--ema", "slow")
    monkeypatch.chdir(world.folder)
    with pytest.raises(UserError, match=r"ema: got 0\.7, expected 0\.9"):
        load_run(several, ema=0.7)


def test_generate_takes_it_too(several, command):
    texts = [command("generate", several, "num_steps=2", "--ema", decay).out for decay in ("0", "0.05", "0.9")]
    assert all(texts)
    assert command("generate", several, "--ema", "0.5").code == 2
