"""bidirectional: a causal mixer from the start and one from the end, their outputs merged.

DiffuMamba adds two independent mixers (arXiv 2511.15927, section 3), the default. Caduceus (arXiv 2403.03234,
section 3) shares the projections, which hold most of the weights: then there is one product into both directions and,
where outputs are added, one out of them (its bias counts once).

In blocks the direction backwards stays in its block, so that what is cached depends on clean text alone and is exact;
`reverse_scan: full` is the papers' arm, whose cache is an approximation.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.config import build, choice, name_of, part
from diffusion_lm.mixers.base import ONE_DOCUMENT, BlockContext, Context, MixerCache, MixerConfig, SequenceMixer
from diffusion_lm.shapes import Hidden, Int, Tensor


class Add(nn.Module):
    """a + b"""

    sums = True
    matrices = 0

    def __init__(self, d_model: int) -> None:
        super().__init__()

    def forward(self, a: Hidden, b: Hidden, x: Hidden) -> Hidden:
        return a + b


class Gated(nn.Module):
    """2 (g a + (1 - g) b) with g = sigmoid(W x) per channel; W starts at 0, where it is a + b."""

    sums = False
    matrices = 1

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.gate.weight)

    def forward(self, a: Hidden, b: Hidden, x: Hidden) -> Hidden:
        return 2 * torch.lerp(b, a, torch.sigmoid(self.gate(x)).to(a.dtype))


class Concatenated(nn.Module):
    """W [a, b], the product in two parts, so that nothing is copied."""

    sums = False
    matrices = 2

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * d_model, d_model, bias=False)

    def forward(self, a: Hidden, b: Hidden, x: Hidden) -> Hidden:
        of_a, of_b = self.projection.weight.chunk(2, 1)
        return F.linear(a, of_a) + F.linear(b, of_b)


MERGES: dict[str, type[Add] | type[Gated] | type[Concatenated]] = {
    "add": Add,
    "gated": Gated,
    "concatenate": Concatenated,
}


@dataclass(kw_only=True, slots=True)
class BidirectionalConfig(MixerConfig):
    inner: MixerConfig = part("mixers", "mamba2")
    """The causal mixer that is run in both directions."""
    sharing: str = choice("independent", "projections", "everything")
    """What the directions have in common: nothing, in_proj and out_proj, or all weights."""
    merge: str = choice("add", *list(MERGES)[1:])
    """How the directions become one: the sum, a gate's mean of them, or a projection of both side by side."""
    reverse_scan: str = choice("block", "full")
    """In blocks. block: backwards inside the own block, and the cache is exact. full, for comparison (the papers'
    approximate cache): the model that is trained runs backwards over the earlier blocks too, which then change with the
    noise; no cache can hold them, and the one of generation is as if they did not."""

    def __post_init__(self) -> None:
        if not self.inner.is_causal():
            raise ValueError(
                f"inner: got {name_of(self.inner)}, which sees both directions already; expected a causal mixer"
            )
        if self.sharing == "projections" and self.inner.projections(1) is None:
            raise ValueError(
                f"sharing: got projections, but {name_of(self.inner)} cannot be run between its projections; "
                "expected independent or everything"
            )

    @property
    def exact_cache(self) -> bool:
        return self.reverse_scan == "block" and self.inner.exact_cache

    def approximation(self) -> str:
        return "reverse_scan: full" if self.reverse_scan == "full" else self.inner.approximation()

    def of_blocks(self) -> tuple[str, ...]:
        return ("reverse_scan",)

    def is_causal(self) -> bool:
        return False

    def family(self) -> str:
        return self.inner.family()

    def staged(self) -> bool:
        """Whether both directions have one product with the weights of the projections."""
        return self.sharing != "independent" and self.inner.projections(1) is not None

    def parameters(self, d_model: int) -> int:
        one, shared = self.inner.parameters(d_model), 0
        if self.sharing == "everything":
            shared = one
        elif self.sharing == "projections":
            shared = self.inner.projections(d_model)
        return 2 * one - shared + MERGES[self.merge].matrices * d_model * d_model

    def flops_per_token(self, d_model: int, length: int) -> int:
        merge, saved = MERGES[self.merge], 0
        if self.staged():
            into, out = self.inner.projection_flops(d_model)
            saved = into + merge.sums * out
        return 2 * self.inner.flops_per_token(d_model, length) - saved + 2 * merge.matrices * d_model * d_model


class Bidirectional(SequenceMixer):
    """merge(forward_mixer(x), reverse_mixer from the end to the start)."""

    def __init__(self, config: BidirectionalConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.forward_mixer = build(config.inner, d_model)
        if config.sharing != "everything":
            self.reverse_mixer = build(config.inner, d_model)
        if config.sharing == "projections":
            del self.reverse_mixer.in_proj, self.reverse_mixer.out_proj
        self.merge = MERGES[config.merge](d_model)

    def prepare(self, x: Hidden, context: Context) -> Context:
        return self.forward_mixer.prepare(x, context)

    def start(self, x: Hidden) -> MixerCache:
        return self.forward_mixer.start(x)

    def resume(self, x: Hidden, cache: MixerCache) -> tuple[Hidden, MixerCache]:
        """Forwards from the cache; backwards inside the block."""
        there = self.forward_mixer
        if not self.config.staged():
            y, after = there.resume(x, cache)
            return self.merge(y, self._back().backwards(x), x), after
        projected = there.in_proj(x)
        y, after = there.mix_on(projected, cache)
        return self._merged(y, projected, x), after

    def prefill(self, x: Hidden, count: int, keep: Int[Tensor, "T"]) -> tuple[Hidden, MixerCache]:
        there = self.forward_mixer
        if not self.config.staged():
            y, cache = there.prefill(x, count, keep)
            return self.merge(y, self._back().backwards(x), x), cache
        projected = there.in_proj(x)
        y, cache = there.mix_prefill(projected, count, keep)
        return self._merged(y, projected, x), cache

    def over_blocks(self, x: Hidden, count: int, context: Context = ONE_DOCUMENT) -> Hidden:
        there = self.forward_mixer
        if not self.config.staged():
            return self.merge(there.over_blocks(x, count, context), self._back().backwards(x), x)
        projected = there.in_proj(x)
        return self._merged(there.mix_blocks(projected, count), projected, x)

    def prepare_blocks(self, x: Hidden, context: BlockContext) -> Context:
        return self.forward_mixer.prepare_blocks(x, context)

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        there = self.forward_mixer
        if not self.config.staged():
            return self.merge(there(x, context), self._back().backwards(x, context), x)
        projected = there.in_proj(x)
        return self._merged(there.mix(projected, context), projected, x, context)

    def _back(self) -> SequenceMixer:
        return self.forward_mixer if self.config.sharing == "everything" else self.reverse_mixer

    def _merged(self, there: Tensor, projected: Tensor, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        """The output, from what lies between the projections in the direction there and from their common input."""
        back, out_proj = self._back().mix(projected, context, reverse=True), self.forward_mixer.out_proj
        if self.merge.sums:
            return out_proj(there + back)
        return self.merge(out_proj(there), out_proj(back), x)
