"""In float64 nothing is computed in float32 on the way, whatever the objective, the denoiser or the schedule."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_lm.evaluation.likelihood import score
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.evaluation.sequences import sequence_set

SCAN = "n_layers: 1, mixer: {inner: {head_dim: 16}}"
RUNS = {
    "masked": [],
    "uniform": ["objective=uniform"],
    "gidd": ["objective=gidd"],
    "score_entropy": ["objective=score_entropy"],
    "discrete_time": ["objective=discrete_time"],
    "gaussian": ["objective=gaussian", f"denoiser={{name: dimba, {SCAN}}}", "model.self_conditioning=0.5"],
    "learned": ["objective=gaussian", f"denoiser={{name: mamba, {SCAN}}}", "schedule=learned"],
    "autoregressive": ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true"],
}


class Narrow(TorchDispatchMode):
    """Collects operations whose result is a float tensor below float64 that holds more than zeros and ones."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            narrow = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
            if narrow and not ((value == 0) | (value == 1)).all():
                self.found.add(str(function))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_float64(world, monkeypatch, name):
    monkeypatch.chdir(world.folder)
    world.run(name, *RUNS[name])
    loaded = {precision: load_run(name, precision) for precision in ("float32", "float64")}
    data = sequence_set(loaded["float64"].config.data, None, None, 4)
    with Narrow() as narrow:
        exact = score(loaded["float64"], data, 3, 1).nll
    assert not narrow.found
    apart = (score(loaded["float32"], data, 3, 1).nll - exact).abs().max()
    assert 0 < apart < 1e-4


def test_the_number_of_threads_changes_nothing(world, monkeypatch):
    monkeypatch.chdir(world.folder)
    run = load_run(world.run("masked"), "float64")
    data = sequence_set(run.config.data, None, None, 4)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(score(run, data, 3, 1).nll)
    torch.set_num_threads(before)
    assert torch.allclose(*found, rtol=1e-12, atol=0)
