"""Every pairing of denoiser and objective that has a meaning trains a few steps and is validated."""

import json
import math

import pytest
import torch
import yaml

from diffusion_lm.experiment import load
from diffusion_lm.training.run import Run
from diffusion_lm.training.train import train

MAMBA = {"inner": {"head_dim": 16, "d_state": 8, "chunk_size": 8}}
ATTENTION = {"head_dim": 16}
DENOISERS = {
    "transformer": {"n_layers": 1, "mixer": ATTENTION},
    "mamba": {"n_layers": 1, "mixer": MAMBA},
    "hybrid": {"n_layers": 3, "pattern": "MMA", "mamba": MAMBA, "attention": ATTENTION},
    "dimba": {"n_layers": 1, "mixer": MAMBA},
}
OBJECTIVES = {
    "masked": {"name": "masked"},
    "gaussian": {"name": "gaussian"},
    "gaussian, bound": {"name": "gaussian", "cross_entropy": 0.0, "bound": 1.0},
    "gaussian, both": {"name": "gaussian", "cross_entropy": 0.5, "bound": 0.5},
}
PAIRINGS = [(d, o) for d in DENOISERS for o in ("masked", "gaussian")]
PAIRINGS += [("transformer", "gaussian, bound"), ("dimba", "gaussian, both")]


@pytest.mark.parametrize(("denoiser", "objective"), PAIRINGS)
def test_trains_and_validates(tmp_path, shards, denoiser, objective):
    tree = {
        "data": {"path": str(shards()), "length": 32, "val_sequences": 8},
        "model": {"d_model": 32, **({"embedding_dim": 8} if "gaussian" in objective else {})},
        "denoiser": {"name": denoiser, **DENOISERS[denoiser]},
        "objective": OBJECTIVES[objective],
        "prompt": {"fraction": 0.5},
        "training": {"steps": 8, "batch_size": 8, "warmup_steps": 1, "lr": 3e-3, "val_every": 4, "ema_decay": 0,
                     "samples": 1, "precision": "float32", "accelerator": "cpu"},
        "evaluation": {"draws": 2},
        "sampler": {"num_steps": 2},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    run = Run(tmp_path / "run")
    assert train(load(tmp_path / "tiny.yaml"), run) == 0

    lines = [json.loads(line) for line in run.report_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[1]["val/nll"] < lines[0]["val/nll"]
    assert len(run.result()["sample"]) > 1
    state = torch.load(run.checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    assert len(state) == len(torch.load(run.checkpoint, weights_only=True)["state_dict"])
    assert all(bool(moments["exp_avg"].any()) for moments in state.values()), "a parameter never had a gradient"
