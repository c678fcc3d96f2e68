"""Compiled blocks: no graph breaks, nothing is compiled anew when rows or lengths change, the numbers stay the same.

The functions of this process check their shapes (jaxtyping's import hook), which no graph can hold: compiled denoisers
run in a process of their own, `compiled.py`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_lm.config import variants
from diffusion_lm.errors import UserError
from diffusion_lm.layers.stack import Block
from diffusion_lm.training.blocks import check_compiler
from diffusion_lm.training.config import TrainingConfig

SCRIPT = Path(__file__).with_name("compiled.py")
ATTENTION = {"name": "attention", "head_dim": 16}
MAMBA2 = {"name": "mamba2", "head_dim": 16, "d_state": 8, "chunk_size": 8}
BOTH = {"name": "bidirectional", "inner": MAMBA2}
DENOISERS = {
    "transformer": {"mixer": ATTENTION},
    "dit": {"mixer": ATTENTION},
    "mamba": {"mixer": BOTH},
    "hybrid": {"pattern": "MA", "mamba": BOTH, "attention": ATTENTION},
    "dimba": {"mixer": BOTH},
}
MIXERS = {
    "attention, causal": {**ATTENTION, "causal": True},
    "attention, blocks": {**ATTENTION, "causal": True, "block_size": 4},
    "attention, grouped": {**ATTENTION, "n_kv_heads": 1, "qk_norm": True},
    "mamba2": MAMBA2,
    "mamba2, options": {**MAMBA2, "n_groups": 2, "rmsnorm": False, "D_has_hdim": True, "dt_limit": [0.001, 0.2]},
    "bidirectional, gated": {**BOTH, "sharing": "projections", "merge": "gated"},
    "bidirectional, everything": {**BOTH, "sharing": "everything"},
    "hydra": {"name": "hydra", "head_dim": 16, "d_state": 8, "chunk_size": 8},
}


def with_mixer(name):
    denoiser = "transformer" if name.startswith("attention") else "mamba"
    return {"name": denoiser, "n_layers": 1, "conditioning": "none", "mixer": MIXERS[name]}


def crossed():
    """Every denoiser with every conditioning that it takes, every mixer, and both kinds with documents in a row."""
    cases = {name: with_mixer(name) for name in MIXERS}
    cases |= {f"{name}, segments": [with_mixer(name), "segments"] for name in ("attention, causal", "mamba2", "hydra")}
    full = {"name": "transformer", "n_layers": 1, "mixer": ATTENTION}
    cases["attention, segments"] = [full, "segments"]
    cases["bidirectional, segments"] = [{"name": "mamba", "n_layers": 1, "mixer": BOTH}, "segments"]
    for denoiser, keys in DENOISERS.items():
        for conditioning in variants("conditioning"):
            if (denoiser, conditioning) == ("dimba", "none") or (denoiser == "dit" and "adaln" not in conditioning):
                continue
            case = {"name": denoiser, "n_layers": 2, "conditioning": conditioning, **keys}
            cases[f"{denoiser}, {conditioning}"] = case
    return cases


def run_script(cases, backend, **options):
    """What compiled.py found."""
    environment = {"PYTHONPATH": str(SCRIPT.parents[2]), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), backend], input=json.dumps(cases), env={**environment, **options},
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip
    return json.loads(done.stdout)


CROSSED = crossed()
FEW = [
    name for name in CROSSED
    if name.split(", ")[0] not in DENOISERS or name.startswith("transformer") or name.endswith("adaln")
    or name == "hybrid, token"
]  # fmt: skip


@pytest.fixture(scope="session")
def few():
    return run_script({name: CROSSED[name] for name in FEW}, "aot_eager")


@pytest.fixture(scope="session")
def others():
    return run_script({name: case for name, case in CROSSED.items() if name not in FEW}, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW)
def test_every_mixer_and_denoiser_and_every_conditioning(few, case):
    assert few[case]["error"] is None
    assert few[case]["difference"] < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("case", sorted(set(CROSSED) - set(FEW)))
def test_every_other_pair_of_denoiser_and_conditioning(others, case):
    assert others[case]["error"] is None
    assert others[case]["difference"] < 1e-5


@pytest.mark.long
def test_generated_code(tmp_path):
    """By inductor, with a C++ compiler."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    cases = {name: {"name": name, "n_layers": 2, **keys} for name, keys in DENOISERS.items()}
    found = run_script(cases, "inductor", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert {name: answer["error"] for name, answer in found.items()} == dict.fromkeys(cases)
    assert max(answer["difference"] for answer in found.values()) < 1e-4


def test_a_compiled_run_is_the_run(place):
    """Its curves and its checkpoint, whose names are plain; text is drawn, the last batch of validation is smaller."""
    overrides = ["training.steps=4", "training.val_every=2", "evaluation.batch_size=5"]
    place.train("run", *overrides)
    place.train("compiled", *overrides, "training.compile=true", "training.compile_backend=eager")
    one, two = place.curves("run"), place.curves("compiled")
    for tag in ("train/loss", "train/grad_norm", "val/nll"):
        assert two[tag] == pytest.approx(one[tag], rel=1e-5), tag
    a, b = place.checkpoint("run")["state_dict"], place.checkpoint("compiled")["state_dict"]
    assert list(a) == list(b)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5


def test_recomputed_activations_change_no_bit(place):
    overrides = ["training.steps=4", "training.val_every=2", "denoiser.n_layers=2"]
    place.train("run", *overrides)
    place.train("recomputed", *overrides, "training.checkpoint_activations=true")
    one, two = place.curves("run"), place.curves("recomputed")
    for tag in ("train/loss", "train/grad_norm", "val/nll"):
        assert two[tag] == one[tag], tag
    a, b = place.checkpoint("run"), place.checkpoint("recomputed")
    for name in a["current_model_state"]:
        assert torch.equal(a["current_model_state"][name], b["current_model_state"][name]), name


def test_refused_where_every_call_is_checked():
    with pytest.raises(UserError, match=r"jaxtyping checks the shapes of every call, .* without the import hook"):
        check_compiler(TrainingConfig(compile=True, accelerator="cpu"))


def test_refused_without_a_compiler(monkeypatch):
    """The other backends need none."""
    from torch._inductor import config

    monkeypatch.delattr(Block.forward, "__wrapped__")
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(UserError, match=r"there is no C\+\+ compiler .*; install it, or set training.compile=false"):
        check_compiler(TrainingConfig(compile=True, accelerator="cpu"))
    check_compiler(TrainingConfig(compile=True, compile_backend="eager", accelerator="cpu"))
    check_compiler(TrainingConfig(accelerator="cpu"))
