"""How a scan's positions lie in chunks: which of them see which, what decays between them, and what is done at once.

Three orders. Rows of a text, from the start or from the end. Short rows, several to a chunk, each seeing itself alone
(`block` positions each). Clean texts beside noisy ones (`beside`): a chunk is some blocks of the clean text and then
the same blocks of the noisy one, whose positions see the clean blocks before their own and, of the noisy text, their
own block so far; states are of the clean text alone.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from diffusion_lm.shapes import Float, Tensor


class Plan(NamedTuple):
    """What is no tensor."""

    chunk: int
    reverse: bool = False
    want_state: bool = False
    block: int = 0
    """Short rows: their length. Beside: the length of a block."""
    beside: bool = False
    """The first half of the rows is clean, the second noisy."""

    @property
    def keys(self) -> slice:
        """Which positions of a chunk a state is made of."""
        return slice(0, self.chunk)

    @property
    def edge(self) -> int:
        """The position of a chunk that the state after it includes last."""
        return 0 if self.reverse else self.chunk - 1


class Decays(NamedTuple):
    """Decays within the chunks and over their edges, in scan order: a chunk's last position is its first in reverse.

    Masks of segments are in the last three: they are 0 where a boundary lies between.
    """

    log2: Float[Tensor, "B c W H"]
    """log2 of the decay from before the chunk (short rows: the row) to each position."""
    allowed: Tensor
    """Which position sees which, within a chunk."""
    entering: Float[Tensor, "B c W H"]
    """From the state before the chunk to each position."""
    leaving: Float[Tensor, "B c Q H"]
    """From each position that states are made of to the state after the chunk."""
    across: Float[Tensor, "B c H"]
    """From the state before the chunk to the state after it."""

    def part(self, rows: slice, some: slice) -> "Decays":
        """Of some chunks of some rows."""
        return Decays(*(v if v.dim() == 2 else v[rows, some] for v in self))


def decays_of(dt: Float[Tensor, "B c W H"], A: Float[Tensor, "H"], runs: Tensor | None, plan: Plan) -> Decays:
    """All of them, from the steps in chunks. runs: numbers of the documents [B, L], or None."""
    log2 = summed(dt * (A * math.log2(math.e)), plan)
    entering, leaving = torch.exp2(log2), torch.exp2(log2[:, :, plan.edge, None] - log2[:, :, plan.keys])
    across = entering[:, :, plan.edge]
    allowed = _order(plan, dt.device)
    if runs is not None:
        runs = runs.unflatten(1, (-1, plan.chunk))  # [B, c, Q]
        after = runs[:, :, plan.edge]
        outside = runs[:, -1:, -1] if plan.reverse else runs[:, :1, 0]  # where an initial state comes from
        before = torch.cat((after[:, 1:], outside) if plan.reverse else (outside, after[:, :-1]), 1)
        allowed = (allowed & (runs.unsqueeze(-1) == runs.unsqueeze(-2))).unsqueeze(2)
        entering = entering * (runs == before.unsqueeze(-1)).unsqueeze(-1)
        leaving = leaving * (runs == after.unsqueeze(-1)).unsqueeze(-1)
        across = across * (after == before).unsqueeze(-1)
    return Decays(log2, allowed, entering, leaving, across)


def _order(plan: Plan, device: torch.device) -> Tensor:
    """Which position of a chunk sees which."""
    order = torch.ones(plan.chunk, plan.chunk, dtype=torch.bool, device=device)
    order = order.triu() if plan.reverse else order.tril()
    if not plan.block:
        return order
    number = torch.arange(plan.chunk, device=device) // plan.block
    own = order & (number.unsqueeze(1) == number)
    if not plan.beside:
        return own
    earlier = number.unsqueeze(1) > number
    return torch.cat((torch.cat((order, torch.zeros_like(own)), 1), torch.cat((earlier, own), 1)))


def summed(value: Float[Tensor, "B c W H"], plan: Plan) -> Float[Tensor, "B c W H"]:
    """For every position the sum over those that it sees."""
    if plan.beside:
        clean, noisy = value.split(plan.chunk, 2)
        clean = clean.cumsum(2)
        before = F.pad(clean[:, :, plan.block - 1 : -1 : plan.block], (0, 0, 1, 0))
        noisy = noisy.unflatten(2, (-1, plan.block)).cumsum(3) + before.unsqueeze(3)
        return torch.cat((clean, noisy.flatten(2, 3)), 2)
    if plan.block:
        return _cumsum(value.unflatten(2, (-1, plan.block)), 3, plan.reverse).flatten(2, 3)
    return _cumsum(value, 2, plan.reverse)


def summed_back(value: Float[Tensor, "B c W H"], plan: Plan) -> Float[Tensor, "B c W H"]:
    """For every position the sum over those that see it: the gradient of `summed`."""
    if not plan.beside:
        return summed(value, plan._replace(reverse=not plan.reverse))
    clean, noisy = value.split(plan.chunk, 2)
    noisy = _cumsum(noisy.unflatten(2, (-1, plan.block)), 3, True)
    whole = noisy[:, :, :, 0]  # of each block
    later = (_cumsum(whole, 2, True) - whole).repeat_interleave(plan.block, 2)
    return torch.cat((_cumsum(clean, 2, True) + later, noisy.flatten(2, 3)), 2)


def _cumsum(value: Tensor, dim: int, reverse: bool) -> Tensor:
    return value.flip(dim).cumsum(dim).flip(dim) if reverse else value.cumsum(dim)


class Parts:
    """Chunks of some rows, which are worked on together: where they are in tensors [B, L, ...].

    On a CPU as many at once as make at most `limit` numbers of size [W, W] for each thread, so that they stay in its
    cache.
    """

    def __init__(self, x: Float[Tensor, "B L H P"], plan: Plan, limit: int) -> None:
        self.plan = plan
        self.count, self.chunks = x.shape[0] // (1 + plan.beside), x.shape[1] // plan.chunk
        width = plan.chunk * (1 + plan.beside)
        whole = self.count * self.chunks
        if x.device.type == "cpu":
            whole = max(1, limit * torch.get_num_threads() // (x.shape[2] * width**2))
        self.rows_at_once = max(1, min(self.count, whole))
        self.chunks_at_once = max(1, whole // self.rows_at_once)

    def rows(self) -> list[slice]:
        """Rows, one piece after the other."""
        return [
            slice(k, min(k + self.rows_at_once, self.count)) for k in range(0, self.count, self.rows_at_once)
        ]

    def some(self, backwards: bool) -> list[slice]:
        """Chunks, in the order of the recurrence."""
        step = self.chunks_at_once
        found = [slice(k, min(k + step, self.chunks)) for k in range(0, self.chunks, step)]
        return found[::-1] if backwards else found

    def take(self, full: Tensor, rows: slice = slice(None), some: slice = slice(None)) -> Float[Tensor, "r c W *n"]:
        """Chunks of some rows, clean and noisy positions side by side."""
        halves = full.unflatten(1, (-1, self.plan.chunk)).chunk(1 + self.plan.beside)
        return halves[0][rows, some] if len(halves) == 1 else torch.cat([half[rows, some] for half in halves], 2)

    def put(self, full: Tensor, value: Float[Tensor, "r c W *n"], rows: slice, some: slice) -> None:
        """Write what `take` would read."""
        halves = full.unflatten(1, (-1, self.plan.chunk)).chunk(1 + self.plan.beside)
        for half, own in zip(halves, value.split(self.plan.chunk, 2), strict=True):
            half[rows, some].copy_(own)

    def states(self, kept: Float[Tensor, "K *n"], rows: slice, some: slice) -> Float[Tensor, "r c *n"]:
        """The states of some chunks among those of all: each part has a stretch of its own, which products take as it
        lies. [B c, ...]"""
        count, chunks = rows.stop - rows.start, some.stop - some.start
        first = rows.start * self.chunks + count * some.start
        return kept[first : first + count * chunks].unflatten(0, (count, chunks))


def block_starts(some: slice, every: int) -> tuple[slice, slice]:
    """Of some chunks those that begin a block of `every` chunks: where among these chunks, and which blocks."""
    first = -(-some.start // every)
    return slice(first * every - some.start, None, every), slice(first, -(-some.stop // every))
