"""Two devices that share the work, by DDP or FSDP, compute what one computes, and leave the same checkpoint.

The devices are two processes joined by gloo. Noise is a function of a sequence's place in the training order, so that a
global batch is the same on any number of devices; in half of the sequences a prefix is given.
"""

import signal

import pytest
import torch

MAMBA = "{name: bidirectional, inner: {name: mamba2, head_dim: 16, d_state: 8}}"
ARMS = {
    "transformer": ["denoiser={name: transformer, n_layers: 2, mixer: {head_dim: 16}}", "training.ema_decays=[0.5]"],
    "mamba": [f"denoiser={{name: mamba, n_layers: 2, mixer: {MAMBA}}}"],
    "hybrid": [f"denoiser={{name: hybrid, n_layers: 2, pattern: MA, mamba: {MAMBA}, attention: {{head_dim: 16}}}}"],
    "dimba": [f"denoiser={{name: dimba, n_layers: 2, mixer: {MAMBA}}}", "objective=gaussian"],
}
SHORT = ["prompt.fraction=0.5", "training.steps=4", "training.val_every=2", "training.grad_clip=0.1"]
LONG = ["denoiser.n_layers=2", "denoiser.mixer.head_dim=16"]
TAGS = ("train/loss", "train/grad_norm", "train/lr", "val/nll", "val/nll_se")
STEP = "diffusion_lm.lightning_module:DiffusionModule.training_step"


def together(strategy):
    return ["training.devices=2", f"training.strategy={strategy}"]


def leaves(tree, where=""):
    """{path: leaf} of a tree of mappings and sequences."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in leaves(value, f"{where}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, value in enumerate(tree) for k, v in leaves(value, f"{where}/{i}").items()}
    return {where: tree}


def assert_same(place, run, other, rel=2e-5, weights=1e-5, states=1e-4):
    """Curves, weights, averages and optimiser states of two runs; not how they were computed."""
    ours, theirs = place.curves(run), place.curves(other)
    for tag in TAGS:
        assert ours[tag] == pytest.approx(theirs[tag], rel=rel, abs=1e-6), tag
    a, b = (leaves({k: v for k, v in place.checkpoint(name).items() if k != "experiment"}) for name in (run, other))
    assert set(a) == set(b)
    for name, value in a.items():
        assert type(value) is type(b[name]), name
        if isinstance(value, torch.Tensor):
            limit = states if name.startswith("/optimizer_states") else weights
            torch.testing.assert_close(value, b[name], rtol=states, atol=limit, msg=lambda text, name=name: name + text)


def compare(place, arm, strategy, *overrides, **tolerances):
    """A run by one device and one by two."""
    place.train("one", *ARMS[arm], *SHORT, *overrides)
    place.train("two", *ARMS[arm], *SHORT, *overrides, *together(strategy), world=2)
    assert_same(place, "two", "one", **tolerances)


@pytest.mark.parametrize(("arm", "strategy"), [("transformer", "ddp"), ("hybrid", "fsdp")])
def test_two_devices_compute_what_one_does(place, arm, strategy):
    compare(place, arm, strategy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "strategy"),
    [
        ("transformer", "fsdp"),
        ("mamba", "ddp"),
        ("mamba", "fsdp"),
        ("hybrid", "ddp"),
        ("dimba", "ddp"),
        ("dimba", "fsdp"),
    ],
)
def test_the_other_pairs_of_denoiser_and_strategy(place, arm, strategy):
    compare(place, arm, strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.micro_batch=2"],
        ["training.compile=true", "training.compile_backend=aot_eager"],
        ["training.checkpoint_activations=true"],
        pytest.param(["training.ema_decay=0", "training.ema_decays=[]"], marks=pytest.mark.long),
    ],
    ids=["accumulation", "compiled", "recomputed", "live weights"],
)
def test_together_with_other_settings(place, strategy, overrides):
    compare(place, "transformer", strategy, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_muon(place, strategy):
    """Its iteration is in bfloat16: products over shares are summed in another order, and that is what is left."""
    place.train("one", *ARMS["transformer"], *SHORT, "training.optimizer=muon")
    place.train("two", *ARMS["transformer"], *SHORT, "training.optimizer=muon", *together(strategy), world=2)
    one, two = place.curves("one"), place.curves("two")
    for tag in ("train/loss", "train/grad_norm", "val/nll"):
        assert two[tag] == pytest.approx(one[tag], rel=2e-3), tag
    assert set(leaves(place.checkpoint("one"))) == set(leaves(place.checkpoint("two")))


TIED = ["denoiser={name: transformer, n_layers: 1, mixer: {head_dim: 16}}", "model.tie_head=true"]
FROZEN = [f"denoiser={{name: dimba, n_layers: 1, mixer: {MAMBA}, prompt_encoder: frozen}}", "objective=gaussian"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("arm", [TIED, FROZEN], ids=["tied head", "frozen encoder"])
def test_a_weight_with_two_names_and_buffers(place, arm, strategy):
    """One device, then two with the checkpoint of one, then two with their own: as if one had trained throughout."""
    arm = [*arm, "prompt.fraction=0.5", "training.ema_decays=[0.5]"]
    place.train("whole", *arm)
    for number, world in enumerate((1, 2, 2)):
        last = number == 2
        faults = [] if last else [{"place": STEP, "call": 4, "signal": int(signal.SIGTERM), "when": "before"}]
        overrides = together(strategy) if world > 1 else []
        done = place.train("run", *arm, *overrides, world=world, faults=faults, status=0 if last else 75)
        assert (f"resuming at step {4 * number}\n" in done.out) == (number > 0)
    assert_same(place, "run", "whole", rel=1e-4, weights=1e-4, states=1e-3)


@pytest.mark.slow
def test_self_conditioning(place):
    """Its first pass gathers the blocks once more."""
    compare(place, "dimba", "fsdp", "denoiser.n_layers=1", "model.self_conditioning=0.5", rel=1e-4)


@pytest.mark.slow
def test_a_learned_schedule(place):
    """Its gradient is clipped by itself. Its parameters are single numbers, which cannot be shared out."""
    compare(place, "dimba", "ddp", "schedule=learned", rel=1e-4)


def test_what_cannot_be_shared_out_is_refused(place):
    line = place.refused("train", "tiny.yaml", "run=run", "objective=gaussian", "schedule=learned", *together("fsdp"))
    assert "training.strategy: got fsdp, but model.process.schedule." in line
    assert "is a single number, which cannot be shared out; set training.strategy=ddp" in line


@pytest.mark.slow
def test_bfloat16_means_what_it_means_on_one_device(place):
    """Weights, averages and optimiser states are float32; the rounding of products shows in the fourth digit."""
    overrides = ["training.precision=bfloat16", "training.lr=0.0001"]
    place.train("one", *ARMS["transformer"], *SHORT, *overrides)
    place.train("two", *ARMS["transformer"], *SHORT, *overrides, *together("fsdp"), world=2)
    one, two = place.curves("one"), place.curves("two")
    for tag in ("train/loss", "val/nll"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-3), tag
    tensors = [value for value in leaves(place.checkpoint("two")).values() if isinstance(value, torch.Tensor)]
    assert {value.dtype for value in tensors if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_strategies(place):
    """One device, then two with shares of everything, then one with compiled blocks."""
    place.train("whole", *LONG)
    lives = [([], 1), (together("fsdp"), 2), (["training.compile=true", "training.compile_backend=eager"], 1)]
    for number, (overrides, world) in enumerate(lives):
        last = number == len(lives) - 1
        faults = [] if last else [{"place": STEP, "call": 4, "signal": int(signal.SIGTERM), "when": "before"}]
        done = place.train("run", *LONG, *overrides, world=world, faults=faults, status=0 if last else 75)
        assert (f"resuming at step {4 * number}\n" in done.out) == (number > 0)
    assert_same(place, "run", "whole", rel=1e-4, weights=1e-4, states=1e-3)
    scores = [place.json("evaluate", run)["val/nll"] for run in ("run", "whole")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_strategy_of_one_device_is_refused(place):
    line = place.refused("train", "tiny.yaml", "run=run", "training.strategy=fsdp")
    assert "strategy: got fsdp for one device; expected auto, or devices=2 or more to share the work" in line
