"""The chunked scan and its gradient, and the same as one operator for compiled graphs.

Inside a chunk of Q positions the scan is a masked matrix product, y = (L * C B^T) X with X = dt x; between chunks it
is a recurrence over states (Dao and Gu, arXiv 2405.21060, section 6, listing 1). Forward and backward are written out,
so that nothing of size [Q, Q] is kept, products and sums run in place, and heads of a group share one product with B
and C. On a CPU a few chunks are done at a time, so that what is [Q, Q] stays in the cache and is never allocated anew;
the state goes from one such slice to the next, and its gradient back. Rows much shorter than a chunk share one. 2^x
stands for e^x because PyTorch's exp is several times slower on CPUs that are not Intel's.
"""

from typing import Any

import torch
from torch.nn import functional as F

from diffusion_lm.layers.carry import carry
from diffusion_lm.layers.scan_layout import Decays, Parts, Plan, block_starts, decays_of, summed_back
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor

SLICE = 1 << 19
"""Numbers of size [Q, Q] that are made at once by each thread of a CPU."""
TOGETHER = 32
"""Positions of short rows that are scanned as one chunk."""


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None, runs: Tensor | None, plan: Plan
) -> tuple[Tensor, Tensor | None, Tensor]:
    """y, the state after the last position if wanted, and those before every chunk. States are [B, G, N, RP]."""
    shape, groups, plan = x.shape, B.shape[2], _together(x, initial, runs, plan)
    x, dt, B, C, runs = _laid(plan, x, dt, B, C, runs)
    y, parts = torch.empty_like(x), Parts(x, plan, SLICE)
    decays, passed = decays_of(parts.take(dt), A, runs, plan), parts.chunks > 1 or plan.want_state
    carried, finals = passed or initial is not None, []
    inner = x[0, 0].numel() // groups if carried else 0
    before = x.new_empty(parts.count * parts.chunks, groups, B.shape[3], inner)
    for rows in parts.rows():
        state = None if initial is None else initial[rows]
        for some in parts.some(plan.reverse):
            xs, dts, Bs, Cs = _taken(parts, rows, some, x, dt, B, C)
            own = decays.part(rows, some)
            ys = _within(xs, dts, Bs, Cs, own)
            if carried:
                states = parts.states(before, rows, some)
                if passed:
                    source = xs[:, :, plan.keys] * _as(x, dts[:, :, plan.keys] * own.leaving)
                    added = Bs[..., plan.keys, :].transpose(-1, -2) @ _grouped(source, groups)
                    state = carry(added, own.across, state, plan.reverse, states)
                else:
                    states.copy_(state.unsqueeze(1))
                ys.addcmul_(_ungrouped(Cs @ states, xs.shape), _as(x, own.entering))
            parts.put(y, ys, rows, some)
        finals.append(state)
    return _unlaid(y, shape), torch.cat(finals) if plan.want_state else None, before


def backward(
    dy: Tensor,
    dfinal: Tensor | None,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    runs: Tensor | None,
    before: Tensor,
    plan: Plan,
    initial: bool = True,
    dstarts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, dt, A, B, C and of the initial state; the last is None where there is one chunk and no state.

    initial: whether there was an initial state. dstarts: a gradient of what `starts` reads from `before`.
    """
    x, dt, A, B, C = inputs
    shapes, plan = [v.shape for v in (x, dt, B, C)], _together(x, True if initial else None, runs, plan)
    x, dt, B, C, runs, dy = _laid(plan, x, dt, B, C, runs, dy)
    grads, parts = [torch.empty_like(v) for v in (x, dt, B, C)], Parts(x, plan, SLICE)
    steps = parts.take(dt)
    decays, passed = decays_of(steps, A, runs, plan), parts.chunks > 1 or plan.want_state
    dlog, dsteps, dinitial = torch.empty_like(decays.log2), torch.empty_like(steps), []
    for rows in parts.rows():
        dstate = None if dfinal is None else dfinal[rows]
        for some in parts.some(not plan.reverse):
            taken, own = _taken(parts, rows, some, x, dt, B, C, dy), decays.part(rows, some)
            found = _within_back(*taken, own)
            if before.numel():
                states = parts.states(before, rows, some)
                dlocal = _read_back(*taken, own, states, found)
                if dstarts is not None:
                    here, blocks = block_starts(some, parts.chunks // dstarts.shape[1])
                    dlocal[:, here] += dstarts[rows, blocks]
                dstate = _passed_back(*taken, own, states, dlocal, dstate, found, plan) if passed else dlocal[:, 0]
            dlog[rows, some], dsteps[rows, some] = found[1], (found[0] * taken[0]).sum(-1)
            _put_back(parts, grads, found, _as(taken[0], taken[1]), rows, some)
        dinitial.append(dstate)
    da = summed_back(dlog, plan)
    parts.put(grads[1], dsteps.addcmul_(da, A), slice(None), slice(None))
    dx, ddt, dB, dC = (_unlaid(v, shape) for v, shape in zip(grads, shapes, strict=True))
    return dx, ddt, (da * steps).sum((0, 1, 2)), dB, dC, torch.cat(dinitial) if initial else None


def _put_back(
    parts: Parts, grads: list[Tensor], found: tuple[Tensor, ...], step: Tensor, rows: slice, some: slice
) -> None:
    """Gradients of x, B and C of those chunks where they belong; that of dt x, times dt, is that of x."""
    parts.put(grads[0], found[0].mul_(step), rows, some)
    for number in (2, 3):
        parts.put(grads[number], found[number].transpose(2, 3), rows, some)


def starts(before: Tensor, x: Tensor, plan: Plan, every: int) -> Float[Tensor, "B n G N RP"]:
    """The states before every block of `every` chunks, among those that `forward` of x left."""
    parts = Parts(x, plan, SLICE)
    found = before.new_empty(parts.count, parts.chunks // every, *before.shape[1:])
    for rows in parts.rows():
        for some in parts.some(False):
            here, blocks = block_starts(some, every)
            found[rows, blocks] = parts.states(before, rows, some)[:, here]
    return found


def _together(x: Tensor, initial: Any, runs: Tensor | None, plan: Plan) -> Plan:
    """The plan for short rows that share chunks, where there is nothing but the rows."""
    rows, length = x.shape[:2]
    if plan.block or plan.want_state or initial is not None or runs is not None or 2 * length > TOGETHER:
        return plan
    many = max(k for k in range(1, TOGETHER // length + 1) if rows % k == 0)
    return plan if many == 1 or length > plan.chunk else plan._replace(chunk=many * length, block=length)


def _laid(plan: Plan, *values: Tensor | None) -> list[Tensor | None]:
    """Whole chunks in every row. Where it is padded dt is 0, which adds nothing, and the document is the last one's."""
    length = values[0].shape[1]
    if plan.block and not plan.beside:
        return [None if v is None else v.unflatten(0, (-1, plan.chunk // length)).flatten(1, 2) for v in values]
    amount = -length % plan.chunk
    return [v if v is None or not amount else _pad(v, amount) for v in values]


def _unlaid(value: Tensor, shape: torch.Size) -> Tensor:
    """The rows as they were."""
    if value.shape[0] != shape[0]:
        return value.view(shape)
    return value[:, : shape[1]].contiguous()


def _taken(parts: Parts, rows: slice, some: slice, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> list:
    """Their chunks; B and C have groups before the positions."""
    x, dt, B, C, *rest = (parts.take(v, rows, some) for v in (x, dt, B, C, *rest))
    return [x, dt, B.transpose(2, 3), C.transpose(2, 3), *rest]


def inward(state: Tensor | None, groups: int) -> Float[Tensor, "B G N RP"] | None:
    """A state as the products have it. [B, H, P, N]"""
    return None if state is None else state.unflatten(1, (groups, -1)).flatten(2, 3).transpose(2, 3)


def outward(state: Tensor | None, shape: torch.Size) -> Float[Tensor, "B H P N"] | None:
    """Back again, for x of this shape."""
    return None if state is None else state.transpose(2, 3).reshape(shape[0], shape[2], shape[3], -1)


class ChunkedScan(torch.autograd.Function):
    """(x, dt, A, B, C, initial state, runs, plan) -> (y, final state), for eager mode."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        x, dt, A, B, C, initial, runs, plan = arguments
        y, state, before = forward(x, dt, A, B, C, inward(initial, B.shape[2]), runs, plan)
        ctx.save_for_backward(x, dt, A, B, C, runs, before)
        ctx.plan, ctx.has_initial = plan, initial is not None
        ctx.set_materialize_grads(False)
        return y, outward(state, x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Any, dfinal: Any) -> Any:
        *inputs, runs, before = ctx.saved_tensors
        x, groups = inputs[0], inputs[3].shape[2]
        dy, dfinal = torch.zeros_like(x) if dy is None else dy, inward(dfinal, groups)
        *grads, dinitial = backward(dy, dfinal, tuple(inputs), runs, before, ctx.plan, ctx.has_initial)
        return *grads, outward(dinitial, x.shape), None, None


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
    y, state, before = forward(x, dt, A, B, C, inward(initial, B.shape[2]), runs, Plan(chunk, reverse, True))
    return y, outward(state, x.shape), before


@opaque_scan.register_fake
def _(x, dt, A, B, C, initial, runs, chunk, reverse):
    chunks, groups, inner = (x.shape[1] + chunk - 1) // chunk, B.shape[2], x.shape[2] * x.shape[3]
    before = x.new_empty(chunks * x.shape[0], groups, B.shape[3], inner // groups)
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
    plan, dfinal = Plan(chunk, reverse, True), inward(dfinal, B.shape[2])
    *grads, dinitial = backward(dy, dfinal, (x, dt, A, B, C), runs, before, plan)
    return *grads, outward(dinitial, x.shape)


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


def _between(log2: Tensor) -> Float[Tensor, "B c H Q Q"]:
    """Decay from every position of a chunk to every other. Those that are not allowed are finite and nothing else."""
    log2 = log2.transpose(2, 3).contiguous()
    return (log2.unsqueeze(-1) - log2.unsqueeze(-2)).clamp_(max=0).exp2_()


def _within(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, decays: Decays) -> Float[Tensor, "B c Q H P"]:
    """(L * C B^T) X"""
    scores = wide((C @ B.transpose(-1, -2)).mul_(decays.allowed)).unsqueeze(3)
    weights = _between(decays.log2).mul_(_of_keys(dt))
    weights.unflatten(2, (scores.shape[2], -1)).mul_(scores)
    return (weights.to(x.dtype) @ x.transpose(2, 3)).transpose(2, 3)


def _within_back(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, dy: Tensor, decays: Decays) -> tuple[Tensor, ...]:
    """Gradients of the products within chunks: to X, to the logarithm of the decays, to B and to C."""
    groups = B.shape[2]
    scores = wide((C @ B.transpose(-1, -2)).mul_(decays.allowed)).unsqueeze(3)
    decay, dy = _between(decays.log2), dy.transpose(2, 3).contiguous()
    dweights = wide(dy @ x.transpose(2, 3).transpose(-1, -2)).mul_(decay).mul_(_of_keys(dt))
    grouped = dweights.unflatten(2, (groups, -1))
    dscores = grouped.sum(3).mul_(decays.allowed).to(x.dtype)
    grouped.mul_(scores)
    dlog = dweights.sum(-1).sub_(dweights.sum(-2)).transpose(2, 3)
    decay.unflatten(2, (groups, -1)).mul_(scores)
    dX = (decay.to(x.dtype).transpose(-1, -2) @ dy).transpose(2, 3)
    return dX, dlog, dscores.transpose(-1, -2) @ C, dscores @ B


def _read_back(x, dt, B, C, dy, decays: Decays, before: Tensor, grads: tuple[Tensor, ...]) -> Tensor:
    """Adds the gradients of what is read from the states to `grads`, and returns that of the states."""
    _, dlog, _, dC = grads
    dread = _grouped(dy * _as(x, decays.entering), B.shape[2])
    dC += dread @ before.transpose(-1, -2)
    dlog += _ungrouped(C @ before, x.shape).mul_(dy).sum(-1) * decays.entering
    return C.transpose(-1, -2) @ dread


def _passed_back(
    x, dt, B, C, dy, decays: Decays, before, dlocal, dstate, grads: tuple[Tensor, ...], plan: Plan
) -> Tensor:
    """Adds the gradients of what goes into the states to `grads`, and returns that of the state before."""
    keys = plan.keys
    dX, dlog, dB, _ = (v[..., keys, :] if k == 2 else v[:, :, keys] for k, v in enumerate(grads))
    x, groups, leaving, dafter = x[:, :, keys], B.shape[2], dt[:, :, keys] * decays.leaving, torch.empty_like(dlocal)
    dstate = carry(dlocal, decays.across, dstate, not plan.reverse, dafter)
    dB += _grouped(x * _as(x, leaving), groups) @ dafter.transpose(-1, -2)
    dleaving = _ungrouped(B[..., keys, :] @ dafter, x.shape)
    dX.addcmul_(dleaving, _as(x, decays.leaving))
    lost = dleaving.mul_(x).sum(-1) * leaving
    kept = (dafter * before).unflatten(-1, (-1, x.shape[-1])).sum((3, 5)).flatten(2)
    dlog -= lost
    dlog[:, :, plan.edge] += lost.sum(2) + kept * decays.across
    return dstate


def _as(x: Tensor, factor: Tensor) -> Float[Tensor, "B c Q H 1"]:
    """A factor of every channel of a head, in the dtype of x."""
    return factor.to(x.dtype).unsqueeze(-1)


def _of_keys(dt: Tensor) -> Float[Tensor, "B c H 1 Q"]:
    """The dt of X = dt x, for the weights of x. Those are float32, in which CPUs multiply faster than in bfloat16."""
    return dt.transpose(2, 3).contiguous().unsqueeze(-2)


def _grouped(value: Tensor, groups: int) -> Float[Tensor, "B c G Q RP"]:
    """Heads of a group side by side. [B, c, Q, H, P]"""
    return value.unflatten(3, (groups, -1)).flatten(4).transpose(2, 3)


def _ungrouped(value: Tensor, shape: torch.Size) -> Float[Tensor, "B c Q H P"]:
    return value.transpose(2, 3).reshape(shape)


def _pad(value: Tensor, amount: int) -> Tensor:
    if value.is_floating_point():
        return F.pad(value, (0, 0) * (value.dim() - 2) + (0, amount))
    return torch.cat((value, value[:, -1:].expand(-1, amount)), 1)
