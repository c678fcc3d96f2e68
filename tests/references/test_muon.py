"""Muon's steps against a polynomial of singular values in float64; two optimisers as one against two by themselves."""

import copy

import pytest
import torch
from torch import nn

from diffusion_lm.lr_schedules.constant import ConstantConfig
from diffusion_lm.optimizers.base import Together
from diffusion_lm.optimizers.muon import MuonConfig
from diffusion_lm.training.config import TrainingConfig
from diffusion_lm.training.optimizer import make_optimizer

LR, DECAY, MOMENTUM = 0.02, 0.3, 0.9


def flattened(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """U p(p(...(S))) V^T with p(s) = a s + b s^3 + c s^5 and S of Frobenius norm 1: Jordan's coefficients."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def naive(weight, gradients, *, scale: float, nesterov: bool, iterations: int) -> torch.Tensor:
    """The weight after a step per gradient, float64."""
    weight, average = weight.double(), torch.zeros_like(weight).double()
    for gradient in gradients:
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient.double()
        step = (1 - MOMENTUM) * gradient.double() + MOMENTUM * average if nesterov else average
        weight = weight - LR * DECAY * weight - LR * scale * flattened(step, iterations)
    return weight


def net_of(rows: int, columns: int) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Module()
    net.denoiser = nn.Linear(columns, rows)
    net.head = nn.Linear(rows, 3)
    return net


def config_of(**keys) -> TrainingConfig:
    muon = MuonConfig(momentum=MOMENTUM, **keys)
    return TrainingConfig(optimizer=muon, lr=LR, weight_decay=DECAY, warmup_steps=0, lr_schedule=ConstantConfig())


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (4, 12), (24, 5)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("iterations", [5, 2])
def test_steps_of_a_matrix(rows, columns, nesterov, iterations):
    for scale, factor in (
        ("match_rms_adamw", 0.2 * max(rows, columns) ** 0.5),
        ("original", max(1.0, rows / columns) ** 0.5),
    ):
        net = net_of(rows, columns)
        config = config_of(nesterov=nesterov, ns_steps=iterations, scale=scale)
        optimizer = make_optimizer(net, config)["optimizer"]
        start = net.denoiser.weight.detach().clone()
        gradients = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
        for gradient in gradients:
            net.denoiser.weight.grad = gradient.clone()
            optimizer.step()
        wanted = naive(start, gradients, scale=factor, nesterov=nesterov, iterations=iterations)
        moved = (wanted - start).norm()
        error = (net.denoiser.weight.detach().double() - wanted).norm()
        assert error < 0.02 * moved, (scale, float(error / moved))  # bfloat16 has eight bits


def test_a_step_has_the_size_of_adamws():
    """An orthogonal matrix times 0.2 sqrt(max(rows, columns)) has elements of root mean square 0.2, nearly."""
    net = net_of(64, 16)
    optimizer = make_optimizer(net, config_of())["optimizer"]
    start = net.denoiser.weight.detach() * (1 - LR * DECAY)
    net.denoiser.weight.grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    size = (net.denoiser.weight.detach() - start).square().mean().sqrt() / LR
    assert 0.2 * 0.7 < float(size) < 0.2 * 1.2


def test_one_step_of_both_is_a_step_of_each():
    """AdamW's part is PyTorch's own, not fused, on the others; the matrix's rate is its own."""
    net = net_of(4, 12)
    alone = copy.deepcopy(net)
    optimizer = make_optimizer(net, config_of(lr=0.5))["optimizer"]
    assert type(optimizer) is Together
    decayed = {"params": [alone.head.weight], "weight_decay": DECAY}
    kept = {"params": [alone.denoiser.bias, alone.head.bias], "weight_decay": 0.0}
    adamw = torch.optim.AdamW([decayed, kept], lr=LR, betas=(0.9, 0.95))
    muon = torch.optim.Muon([alone.denoiser.weight], lr=0.5, weight_decay=DECAY, momentum=MOMENTUM,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    for step in range(3):
        for part in (net, alone):
            part.zero_grad()
            x = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
            part.head(part.denoiser(x)).square().mean().backward()
        optimizer.step()
        adamw.step()
        muon.step()
    for (name, mine), theirs in zip(net.named_parameters(), alone.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, msg=name)


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(step))
    return net.head(net.denoiser(x)).square().mean()


def train(net, optimizer, schedule, steps) -> None:
    for step in steps:
        optimizer.zero_grad()

        def closure(step=step):
            loss = loss_of(net, step)
            loss.backward()
            return loss

        before = float(loss_of(net, step).detach())
        assert float(optimizer.step(closure).detach()) == pytest.approx(before)
        schedule.step()


def parts(net):
    made = make_optimizer(net, TrainingConfig(optimizer=MuonConfig(), lr=LR, steps=8, warmup_steps=2))
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def test_it_goes_on_bit_for_bit_from_its_state(tmp_path):
    """The rates that a scheduler sets after loading reach both parts, and so does the loaded state."""
    whole, broken = net_of(4, 12), net_of(4, 12)
    train(whole, *parts(whole), range(8))
    optimizer, schedule = parts(broken)
    train(broken, optimizer, schedule, range(3))
    state = {"net": broken.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = net_of(4, 12)
    optimizer, schedule = parts(again)
    again.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    assert [len(optimizer.state[p]) for p in again.parameters()] == [1, 3, 3, 3]  # momentum; two moments and a count
    train(again, optimizer, schedule, range(3, 8))
    for mine, theirs in zip(again.parameters(), whole.parameters()):
        assert torch.equal(mine, theirs)
    rates = {group["lr"] for inner in optimizer.optimizers for group in inner.param_groups}
    assert rates == {group["lr"] for group in optimizer.param_groups}
    assert len(rates) == 1 and rates != {LR}


def test_a_parameter_without_a_gradient_stays():
    net = net_of(4, 12)
    optimizer = make_optimizer(net, config_of())["optimizer"]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.denoiser.bias.grad = torch.ones(4)
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"denoiser.bias"}
