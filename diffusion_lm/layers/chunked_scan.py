"""The chunked scan and its gradient, and the same as one operator for compiled graphs.

Inside a chunk of Q positions the scan is a masked matrix product, y = (L * C B^T) X with X = dt x; between chunks it
is a recurrence over states (Dao and Gu, arXiv 2405.21060, section 6, listing 1). Forward and backward are written out,
so that nothing of size [Q, Q] is kept, products and sums run in place, and heads of a group share one product with B
and C. On a CPU a few chunks are done at a time, so that what is [Q, Q] stays in the cache and is never allocated anew;
the state goes from one such slice to the next, and its gradient back. 2^x stands for e^x because PyTorch's exp is
several times slower on CPUs that are not Intel's.
"""

import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from diffusion_lm.layers.carry import carry
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor

SLICE = 1 << 19
"""Numbers of size [Q, Q] that are made at once by each thread of a CPU."""


class Plan(NamedTuple):
    """What is no tensor."""

    chunk: int
    reverse: bool
    want_state: bool


class Decays(NamedTuple):
    """Decays within the chunks and over their edges, in scan order: a chunk's last position is its first in reverse.

    Masks of segments are in the last three: they are 0 where a boundary lies between.
    """

    log2: Float[Tensor, "B c Q H"]
    """log2 of the decay from before the chunk to each position."""
    allowed: Tensor
    """Which position sees which, within a chunk."""
    entering: Float[Tensor, "B c Q H"]
    """From the state before the chunk to each position."""
    leaving: Float[Tensor, "B c Q H"]
    """From each position to the state after the chunk."""
    across: Float[Tensor, "B c H"]
    """From the state before the chunk to the state after it."""

    def part(self, some: slice) -> "Decays":
        """Of some chunks."""
        return Decays(*(v if v.dim() == 2 else v[:, some] for v in self))


def _decays(dt: Tensor, A: Tensor, runs: Tensor | None, plan: Plan) -> Decays:
    log2 = _cumsum(dt * (A * math.log2(math.e)), plan.reverse)
    edge = 0 if plan.reverse else plan.chunk - 1
    entering, leaving = torch.exp2(log2), torch.exp2(log2[:, :, edge, None] - log2)
    across = entering[:, :, edge]
    order = torch.ones(plan.chunk, plan.chunk, dtype=torch.bool, device=dt.device)
    allowed = order.triu() if plan.reverse else order.tril()
    if runs is not None:
        runs = runs.unflatten(1, (-1, plan.chunk))  # [B, c, Q]
        after = runs[:, :, edge]
        outside = runs[:, -1:, -1] if plan.reverse else runs[:, :1, 0]  # where an initial state comes from
        before = torch.cat((after[:, 1:], outside) if plan.reverse else (outside, after[:, :-1]), 1)
        allowed = (allowed & (runs.unsqueeze(-1) == runs.unsqueeze(-2))).unsqueeze(2)
        entering = entering * (runs == before.unsqueeze(-1)).unsqueeze(-1)
        leaving = leaving * (runs == after.unsqueeze(-1)).unsqueeze(-1)
        across = across * (after == before).unsqueeze(-1)
    return Decays(log2, allowed, entering, leaving, across)


def _between(log2: Tensor) -> Float[Tensor, "B c H Q Q"]:
    """Decay from every position of a chunk to every other. Those that are not allowed are finite and nothing else."""
    log2 = log2.transpose(2, 3).contiguous()
    return (log2.unsqueeze(-1) - log2.unsqueeze(-2)).clamp_(max=0).exp2_()


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, runs: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, the state after the last position if wanted, and those before every chunk."""
    length, groups = x.shape[1], B.shape[2]
    x, dt, B, C, runs = _padded((x, dt, B, C, runs), -length % plan.chunk)
    y = torch.empty_like(x)
    parts = _Parts((x, dt, B, C, y), _decays(dt.unflatten(1, (-1, plan.chunk)), A, runs, plan), plan)
    state = _inward(initial, groups)
    carried = parts.chunks > 1 or initial is not None or plan.want_state
    before = x.new_empty(parts.chunks, len(x), groups, B.shape[3], x[0, 0].numel() // groups if carried else 0)
    for some in parts.slices(plan.reverse):
        xs, dts, Bs, Cs, ys = parts.take(some)
        decays = parts.decays.part(some)
        ys.copy_(_within(xs, dts, Bs, Cs, decays))
        if carried:
            added = Bs.transpose(-1, -2) @ _grouped(xs * _as(x, dts * decays.leaving), groups)
            states = _by_row(before[some])
            state = carry(added, decays.across, state, plan.reverse, states)
            ys.addcmul_(_ungrouped(Cs @ states, xs.shape), _as(x, decays.entering))
    return y[:, :length].contiguous(), _outward(state, x.shape) if plan.want_state else None, before


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    runs: Tensor | None,
    before: Tensor,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, dt, A, B, C and of the initial state; the last is None where there is one chunk and no state."""
    x, dt, A, B, C = inputs
    length, carried = x.shape[1], before.numel() > 0
    x, dt, B, C, runs, dy = _padded((x, dt, B, C, runs, dy), -length % plan.chunk)
    grads = [torch.empty_like(v) for v in (x, dt, B, C)]
    parts = _Parts((x, dt, B, C, dy, *grads), _decays(dt.unflatten(1, (-1, plan.chunk)), A, runs, plan), plan)
    dlog, dstate = torch.empty_like(parts.decays.log2), _inward(dfinal, B.shape[2])
    for some in parts.slices(not plan.reverse):
        xs, dts, *_, dxs, ddts, dBs, dCs = taken = parts.take(some)
        decays = parts.decays.part(some)
        own = _within_back(*taken[:5], decays)
        if carried:
            dstate = _between_back(*taken[:5], decays, _by_row(before[some]), dstate, own, plan.reverse)
        for value, full in zip(own, (dxs, dlog[:, some], dBs, dCs), strict=True):
            full.copy_(value)
        ddts.copy_((own[0] * xs).sum(-1))
        dxs.mul_(_as(x, dts))
    dx, ddt, dB, dC = grads
    da = _cumsum(dlog, not plan.reverse).flatten(1, 2)
    ddt.addcmul_(da, A)
    dx, ddt, dB, dC = (v[:, :length].contiguous() for v in (dx, ddt, dB, dC))
    return dx, ddt, (da * dt).sum((0, 1)), dB, dC, _outward(dstate, x.shape) if carried else None


class ChunkedScan(torch.autograd.Function):
    """(x, dt, A, B, C, initial state, runs, plan) -> (y, final state), for eager mode."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *inputs, initial, runs, plan = arguments
        y, state, before = forward(*inputs, initial, runs, plan)
        ctx.save_for_backward(*inputs, runs, before)
        ctx.plan, ctx.has_initial = plan, initial is not None
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    def backward(ctx: Any, dy: Any, dfinal: Any) -> Any:
        *inputs, runs, before = ctx.saved_tensors
        dy = torch.zeros_like(inputs[0]) if dy is None else dy
        *grads, dinitial = backward(dy, dfinal, tuple(inputs), runs, before, ctx.plan)
        return *grads, dinitial if ctx.has_initial else None, None, None


@torch.library.custom_op("diffusion_lm::chunked_scan", mutates_args=())
def opaque_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    runs: Tensor | None,
    chunk: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for compiled graphs, which need not look inside: y, the final state, the states before every chunk."""
    return forward(x, dt, A, B, C, initial, runs, Plan(chunk, reverse, True))


@opaque_scan.register_fake
def _(x, dt, A, B, C, initial, runs, chunk, reverse):
    chunks, groups, inner = (x.shape[1] + chunk - 1) // chunk, B.shape[2], x.shape[2] * x.shape[3]
    before = x.new_empty(chunks, x.shape[0], groups, B.shape[3], inner // groups)
    return torch.empty_like(x, memory_format=torch.contiguous_format), initial.new_empty(initial.shape), before


@torch.library.custom_op("diffusion_lm::chunked_scan_backward", mutates_args=())
def opaque_backward(
    dy: Tensor,
    dfinal: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    runs: Tensor | None,
    before: Tensor,
    chunk: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the first six inputs."""
    return backward(dy, dfinal, (x, dt, A, B, C), runs, before, Plan(chunk, reverse, True))


@opaque_backward.register_fake
def _(dy, dfinal, x, dt, A, B, C, runs, before, chunk, reverse):
    return tuple(torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, dt, A, B, C, dfinal))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    *tensors, _, runs, ctx.chunk, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, runs, output[2])


def _differentiate(ctx: Any, dy: Tensor, dfinal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, runs, before = ctx.saved_tensors
    return *opaque_backward(dy, dfinal, *inputs, runs, before, ctx.chunk, ctx.reverse), None, None, None


opaque_scan.register_autograd(_differentiate, setup_context=_setup)


class _Parts:
    """The inputs chunk by chunk, and which chunks go together."""

    def __init__(self, tensors: tuple[Tensor, ...], decays: Decays, plan: Plan) -> None:
        self.tensors = [v.unflatten(1, (-1, plan.chunk)) for v in tensors]  # [B, c, Q, ...]
        self.decays, self.chunks = decays, self.tensors[0].shape[1]

    def slices(self, backwards: bool) -> list[slice]:
        """In the order of the recurrence."""
        rows, _, chunk, heads, _ = self.tensors[0].shape
        if self.tensors[0].device.type != "cpu":
            return [slice(None)]
        size = max(1, SLICE * torch.get_num_threads() // (rows * heads * chunk**2))
        found = [slice(k, k + size) for k in range(0, self.chunks, size)]
        return found[::-1] if backwards else found

    def take(self, some: slice) -> list[Tensor]:
        """Of some chunks; what belongs to groups has them before the positions."""
        groups = (2, 3, 7, 8) if len(self.tensors) > 5 else (2, 3)
        return [v[:, some].transpose(2, 3) if k in groups else v[:, some] for k, v in enumerate(self.tensors)]


def _within(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, decays: Decays) -> Float[Tensor, "B c Q H P"]:
    """(L * C B^T) X"""
    scores = (C @ B.transpose(-1, -2)).mul_(decays.allowed).unsqueeze(3)
    weights = _between(decays.log2).to(x.dtype)
    weights.unflatten(2, (scores.shape[2], -1)).mul_(scores)
    return (weights @ _by_head(x, dt)).transpose(2, 3)


def _within_back(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, dy: Tensor, decays: Decays) -> tuple[Tensor, ...]:
    """Gradients of the products within chunks: to X, to the logarithm of the decays, to B and to C."""
    groups = B.shape[2]
    scores = (C @ B.transpose(-1, -2)).mul_(decays.allowed).unsqueeze(3)
    decay, dy = _between(decays.log2), dy.transpose(2, 3).contiguous()
    dweights = wide(dy @ _by_head(x, dt).transpose(-1, -2)).mul_(decay)
    grouped = dweights.unflatten(2, (groups, -1))
    dscores = grouped.sum(3).mul_(decays.allowed).to(x.dtype)
    grouped.mul_(scores)
    dlog = dweights.sum(-1).sub_(dweights.sum(-2)).transpose(2, 3)
    decay.unflatten(2, (groups, -1)).mul_(scores)
    dX = (decay.to(x.dtype).transpose(-1, -2) @ dy).transpose(2, 3)
    return dX, dlog, dscores.transpose(-1, -2) @ C, dscores @ B


def _between_back(x, dt, B, C, dy, decays: Decays, before, dstate, grads: tuple[Tensor, ...], reverse: bool) -> Tensor:
    """Adds the gradients of what goes through the states to `grads`, and returns that of the state before."""
    dX, dlog, dB, dC = grads
    groups, leaving = B.shape[2], dt * decays.leaving
    dread = _grouped(dy * _as(x, decays.entering), groups)
    dC += dread @ before.transpose(-1, -2)
    dlocal = C.transpose(-1, -2) @ dread
    dafter = torch.empty_like(dlocal)
    dstate = carry(dlocal, decays.across, dstate, not reverse, dafter)
    dB += _grouped(x * _as(x, leaving), groups) @ dafter.transpose(-1, -2)
    dleaving = _ungrouped(B @ dafter, x.shape)
    dX.addcmul_(dleaving, _as(x, decays.leaving))
    lost = dleaving.mul_(x).sum(-1) * leaving
    dlog += _ungrouped(C @ before, x.shape).mul_(dy).sum(-1) * decays.entering - lost
    kept = (dafter * before).unflatten(-1, (-1, x.shape[-1])).sum((3, 5)).flatten(2)
    dlog[:, :, 0 if reverse else -1] += lost.sum(2) + kept * decays.across
    return dstate


def _as(x: Tensor, factor: Tensor) -> Float[Tensor, "B c Q H 1"]:
    """A factor of every channel of a head, in the dtype of x."""
    return factor.to(x.dtype).unsqueeze(-1)


def _by_head(x: Tensor, dt: Tensor) -> Float[Tensor, "B c H Q P"]:
    """X = dt x"""
    return x.transpose(2, 3).clone(memory_format=torch.contiguous_format).mul_(_as(x, dt.transpose(2, 3)))


def _by_row(states: Tensor) -> Float[Tensor, "B c G N RP"]:
    """Some chunks of [c, B, ...] as [B, c, ...] of the same memory: what is kept of them need only be found again, and
    products of it as it lies need no copy."""
    return states.view(states.shape[1], states.shape[0], *states.shape[2:])


def _grouped(value: Tensor, groups: int) -> Float[Tensor, "B c G Q RP"]:
    """Heads of a group side by side. [B, c, Q, H, P]"""
    return value.unflatten(3, (groups, -1)).flatten(4).transpose(2, 3)


def _ungrouped(value: Tensor, shape: torch.Size) -> Float[Tensor, "B c Q H P"]:
    return value.transpose(2, 3).reshape(shape)


def _inward(state: Tensor | None, groups: int) -> Float[Tensor, "B G N RP"] | None:
    """A state as the products have it. [B, H, P, N]"""
    return None if state is None else state.unflatten(1, (groups, -1)).flatten(2, 3).transpose(2, 3)


def _outward(state: Tensor, shape: torch.Size) -> Float[Tensor, "B H P N"]:
    return state.transpose(2, 3).reshape(shape[0], shape[2], shape[3], -1)


def _cumsum(value: Tensor, reverse: bool) -> Float[Tensor, "B c Q H"]:
    return value.flip(2).cumsum(2).flip(2) if reverse else value.cumsum(2)


def _padded(values: tuple[Tensor | None, ...], amount: int) -> list[Tensor | None]:
    """Positions after the last that add nothing: dt is 0 there, and the document is the last one's."""
    if amount == 0:
        return list(values)
    return [None if v is None else _pad(v, amount) for v in values]


def _pad(value: Tensor, amount: int) -> Tensor:
    if value.is_floating_point():
        return F.pad(value, (0, 0) * (value.dim() - 2) + (0, amount))
    return torch.cat((value, value[:, -1:].expand(-1, amount)), 1)
