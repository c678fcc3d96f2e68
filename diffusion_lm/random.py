"""Counter-based noise: a pure function of (seed, position, stream), the same on any device and for any batch size.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) written in tensor operations on
int64. The 64-bit key is the seed; the 128-bit counter is (index within the row, position, stream and draw).
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from math import prod

import torch

from diffusion_lm.shapes import Float, Int, Positions, Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


class Stream(IntEnum):
    """What a draw is for. Two streams never share a number."""

    TIME = 0
    TIME_ORDER = 1
    CORRUPT = 2
    PROMPT = 3
    PROMPT_LENGTH = 4
    PRIOR = 5
    CHANGE = 6
    TOKEN = 7
    LEVEL = 8
    RECONSTRUCT = 9
    REPLACE = 10
    SOURCE = 11
    FORCE = 12
    STEP = 13
    SELF_CONDITION = 14


def philox(counter: Int[Tensor, "*n 4"], seed: int) -> Int[Tensor, "*n 4"]:
    """Philox4x32-10. Four 32-bit words of counter give four random 32-bit words, all held in int64."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps, which leaves the low 64 bits right
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack((c0, c1, c2, c3), -1)


@dataclass(frozen=True)
class Noise:
    """The noise of a batch of rows: `position` [B] names each row, `draw` tells repeated uses apart."""

    seed: int
    position: Positions
    draw: int | Int[Tensor, "B"] = 0

    def at(self, draw: int | Int[Tensor, "B"]) -> "Noise":
        """The same rows, for their `draw`-th use (a sampler's step, an evaluation's level)."""
        return replace(self, draw=draw)

    def uniform(self, stream: Stream, *shape: int) -> Float[Tensor, "B *n"]:
        """Uniform float64 in the open interval (0, 1): multiples of 2^-53 moved by half a step, rounded. [B, *shape]"""
        return self.stretch(stream, 0, prod(shape)).reshape(-1, *shape)

    def stretch(self, stream: Stream, first: int | Int[Tensor, "B"], count: int) -> Float[Tensor, "B n"]:
        """Numbers `first` to `first` + `count` of every row's `uniform`, without those before. [B, count]"""
        pair, skipped = first // 2, first % 2
        most = skipped if isinstance(first, int) else 1
        pairs = self._words(stream, (most + count + 1) // 2, pair).unflatten(-1, (2, 2))
        bits = (pairs[..., 0] >> 5) * 2**26 + (pairs[..., 1] >> 6)
        values = ((bits.to(torch.float64) + 0.5) * 2.0**-53).clamp(max=1 - 2.0**-53)  # the last one rounds to 1
        values = values.flatten(1)
        if isinstance(first, int):
            return values[:, skipped : skipped + count]
        return values.gather(1, skipped.unsqueeze(1) + torch.arange(count, device=values.device))

    def normal(self, stream: Stream, *shape: int) -> Float[Tensor, "B *n"]:
        """Standard normal float64 by Box and Muller's transform. [B, *shape]"""
        count = (prod(shape) + 1) // 2
        u = self.uniform(stream, 2, count)
        radius, angle = torch.sqrt(-2 * torch.log(u[:, 0])), 2 * torch.pi * u[:, 1]
        values = torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), 1)
        return values[:, : prod(shape)].reshape(-1, *shape)

    def _words(self, stream: Stream, count: int, first: int | Int[Tensor, "B"] = 0) -> Int[Tensor, "B n 4"]:
        position = self.position.to(torch.int64)
        index = torch.arange(count, device=position.device)
        index = index + (first if isinstance(first, int) else first.unsqueeze(1))
        shape = (len(position), count)
        use = torch.as_tensor(self.draw, device=position.device).reshape(-1, 1) + (int(stream) << 24)
        words = (index, (position & _LOW)[:, None], (position >> 32)[:, None], use)
        return philox(torch.stack([w.expand(shape) for w in words], -1), self.seed)


def stratified_times(position: Positions, global_batch: int, seed: int) -> Float[Tensor, "B"]:
    """Times that cover [0, 1) evenly over every global batch, one per row, float64.

    t = (u + pi(slot) / global_batch) mod 1, with the offset u and the permutation pi of `shuffled_places`.
    """
    offset, place = shuffled_places(position, global_batch, seed)
    return (offset + place / global_batch) % 1.0


def shuffled_places(
    position: Positions, global_batch: int, seed: int
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """The offset in (0, 1) of every row's step, and the row's place 0 .. global_batch - 1 in it, float64.

    Row `position` has slot ``position % global_batch`` of step ``position // global_batch``; all rows of a step share
    one offset and one permutation of the slots. No device holds a fixed band of places.
    """
    step, slot = position // global_batch, position % global_batch
    steps, row = torch.unique(step, return_inverse=True)
    noise = Noise(seed, steps)
    offset = noise.uniform(Stream.TIME, 1)[row, 0]
    place = noise.uniform(Stream.TIME_ORDER, global_batch).argsort(1)[row, slot]
    return offset, place.to(torch.float64)


def stratified_levels(noise: Noise, draws: int) -> Float[Tensor, "B K"]:
    """K levels in (0, 1) per row, one in each of K equal strata, float64."""
    jitter = noise.uniform(Stream.LEVEL, draws)
    return (torch.arange(draws, device=jitter.device) + jitter) / draws


def categorical(probabilities: Float[Tensor, "*n V"], uniform: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Draws by inversion in float64: float32 cumulative sums are biased at large vocabularies (Zheng et al. 2024)."""
    cumulative = probabilities.to(torch.float64).cumsum(-1)
    target = (uniform * cumulative[..., -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=probabilities.shape[-1] - 1)
