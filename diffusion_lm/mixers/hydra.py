"""hydra: the quasi-separable mixer (Hwang et al., "Hydra", arXiv 2407.09941, equation 5 and section 4), bidirectional.

y = shift(SS_f(x)) + flip(shift(SS_r(flip(x)))) + (D + fc_D x) x: one state-space scan per direction over the same x
with the same A, each with B, C and dt of its own, both told of the positions before (after) one's own only, and a
learned diagonal for one's own. One in_proj, a centred convolution, a gated RMSNorm, out_proj. Names and starting values
are those of the authors' code. In blocks the scan forwards and the convolution go on from the clean blocks before; the
scan backwards, and what the convolution sees to the right, are the own block's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.config import choice
from diffusion_lm.kernels.base import kernel_class
from diffusion_lm.layers.convolution import before, convolve, convolve_blocks, tails
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.layers.state_space import StateSpaceConfig
from diffusion_lm.layers.steps import start_steps, steps
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, SequenceMixer, StateCache
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Bool, Float, Hidden, Int, Segment, Tensor


@dataclass(kw_only=True, slots=True)
class HydraConfig(StateSpaceConfig):
    d_conv: int = 7
    """Width of the centred convolution, odd."""
    norm_before_gate: bool = True
    """Norm, then gate, instead of the norm of what is gated."""
    reverse_scan: str = choice("block", "full")
    """In blocks: the scan backwards inside the own block, or, for comparison and with a cache that is an approximation,
    over the earlier blocks too (see `bidirectional`)."""

    def __post_init__(self) -> None:
        StateSpaceConfig.__post_init__(self)
        if self.d_conv % 2 == 0:
            raise ValueError(f"d_conv: got {self.d_conv}, expected an odd number, since the convolution is centred")

    @property
    def exact_cache(self) -> bool:
        return self.reverse_scan == "block"

    def approximation(self) -> str:
        return f"reverse_scan: {self.reverse_scan}"

    def of_blocks(self) -> tuple[str, ...]:
        return ("reverse_scan",)

    def is_causal(self) -> bool:
        return False

    def widths(self, d_model: int) -> tuple[int, int, int]:
        """Widths of z, of what is convolved, of dt."""
        inner = self.expand * d_model
        return inner, inner + 4 * self.n_groups * self.d_state, 2 * self.heads(d_model)

    def parameters(self, d_model: int) -> int:
        inner, convolved, dt = self.widths(d_model)
        projections = d_model * (sum(self.widths(d_model)) + inner) + self.bias * (inner + convolved + dt + d_model)
        heads = dt // 2
        return projections + convolved * (self.d_conv + self.conv_bias) + inner * heads + 3 * heads + inner

    def flops_per_token(self, d_model: int, length: int) -> int:
        inner, _, dt = self.widths(d_model)
        projections = 2 * d_model * (sum(self.widths(d_model)) + inner) + inner * dt
        return projections + 2 * self.scan_flops(d_model, length)


class Convolved(NamedTuple):
    """What the convolution gives, by heads and groups."""

    x: Float[Tensor, "B L H P"]
    B: Float[Tensor, "B L G N"]
    C: Float[Tensor, "B L G N"]
    B_back: Float[Tensor, "B L G N"]
    C_back: Float[Tensor, "B L G N"]


class Hydra(SequenceMixer):
    """Bidirectional layer of one projection and two shifted scans."""

    def __init__(self, config: HydraConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        config.check_heads(d_model)
        self.widths = inner, convolved, dt = config.widths(d_model)
        self.heads, self.state = dt // 2, config.n_groups * config.d_state
        self.kernel = kernel_class("torch" if config.kernel == "auto" else config.kernel)()
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=config.bias)
        self.conv1d = nn.Conv1d(
            convolved, convolved, config.d_conv, groups=convolved, padding=config.d_conv // 2, bias=config.conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.fc_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = GatedRMSNorm(inner, before_gate=config.norm_before_gate)
        self.out_proj = nn.Linear(inner, d_model, bias=config.bias)
        start_steps(self.dt_bias, config)

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        z, new, dt = self._split(x)
        convolved = self._convolved(new, segment=context.segment)
        y = self._scan(convolved, dt, segment=context.segment)[0]
        return self._merged(z, convolved, dt, _shifted(y, context.segment, 1), context.segment)

    def start(self, x: Hidden) -> StateCache:
        """The last inputs of the convolution, the state of the scan, its last output."""
        config, width = self.config, self.config.head_dim
        none = x.new_zeros(len(x), config.d_conv // 2, self.widths[1])
        state = wide(x.new_zeros(len(x), self.heads, width, config.d_state))
        return StateCache((none, state, x.new_zeros(len(x), self.heads, width)))

    def resume(self, x: Hidden, cache: StateCache) -> tuple[Hidden, StateCache]:
        (left, state, last), (z, new, dt) = cache.state, self._split(x)
        convolved = self._convolved(new, left)
        y, state = self._scan(convolved, dt, initial_state=state, want_state=True)
        past = torch.cat((left, new), 1)[:, new.shape[1] :]
        return self._merged(z, convolved, dt, _behind(y, last)), StateCache((past, wide(state), y[:, -1]))

    def prefill(self, x: Hidden, count: int, keep: Int[Tensor, "T"]) -> tuple[Hidden, StateCache]:
        """The forward scan goes over whole texts; nothing moves its state after the blocks that are kept."""
        (z, new, dt), size, past = self._split(x), x.shape[1], self.config.d_conv // 2
        convolved, length = self._convolved(new, tails(new, count, past)), keep * size
        texts = [unfold(v, count) for v in (*convolved, dt)]
        kept = torch.arange(count * size, device=x.device) < length.unsqueeze(1)
        y, state = self._scan(Convolved(*texts[:-1]), texts[-1], kept=kept.unsqueeze(-1), want_state=True)
        last = before(y.flatten(2), length, 1).view(len(y), *y.shape[2:])
        cache = StateCache((before(unfold(new, count), length, past), wide(state), last))
        return self._merged(z, convolved, dt, fold(_shifted(y, None, 1), size)), cache

    def over_blocks(self, x: Hidden, count: int, context: Context = ONE_DOCUMENT) -> Hidden:
        z, new, dt = self._split(x)
        mixed = convolve_blocks(new, self.conv1d.weight, self.conv1d.bias, self.config.d_conv // 2, count)
        convolved = self._parted(mixed)
        y = self._scan(convolved, dt, count=count)[0]
        last = tails(y.chunk(2)[0][:, -1:].flatten(2), count, 1).view(-1, *y.shape[2:])
        return self._merged(z, convolved, dt, _behind(y, torch.cat((last, last))))

    def _split(self, x: Hidden) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, what is convolved, the steps of both directions."""
        return self.in_proj(x).split(self.widths, -1)

    def _convolved(
        self, new: Float[Tensor, "B L K"], left: Tensor | None = None, segment: Segment | None = None
    ) -> Convolved:
        weight, bias = self.conv1d.weight, self.conv1d.bias
        return self._parted(convolve(new, weight, bias, self.config.d_conv // 2, segment, left))

    def _parted(self, mixed: Float[Tensor, "B L K"]) -> Convolved:
        own, *keys = F.silu(mixed).split((self.widths[0], *[self.state] * 4), -1)
        groups = (self.config.n_groups, -1)
        return Convolved(own.unflatten(-1, (self.heads, -1)), *(v.unflatten(-1, groups) for v in keys))

    def _scan(
        self,
        convolved: Convolved,
        dt: Float[Tensor, "B L HH"],
        reverse: bool = False,
        kept: Bool[Tensor, "B L 1"] | None = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "B L H P"], Tensor | None]:
        """One direction, not shifted; over blocks where they are counted. kept: positions that the state takes in."""
        x, B, C, B_back, C_back = convolved
        own = steps(dt.split(self.heads, -1)[reverse], self.dt_bias, self.config.dt_limit)
        keys = (B_back, C_back) if reverse else (B, C)
        inputs = (x, own if kept is None else own * kept, -torch.exp(wide(self.A_log)), *keys)
        if "count" in options:
            return self.kernel.over_blocks(*inputs, chunk_size=self.config.chunk_size, **options), None
        return self.kernel.scan(*inputs, chunk_size=self.config.chunk_size, reverse=reverse, **options)

    def _merged(
        self,
        z: Float[Tensor, "B L I"],
        convolved: Convolved,
        dt: Float[Tensor, "B L HH"],
        there: Float[Tensor, "B L H P"],
        segment: Segment | None = None,
    ) -> Hidden:
        """The output: `there` is the forward scan, shifted; one's own position and the scan backwards are added."""
        x = convolved.x
        y = x * (self.fc_D(x.flatten(2)) + self.D.to(x.dtype)).unsqueeze(-1) + there
        if x.shape[1] > 1:
            y = y + _shifted(self._scan(convolved, dt, True, segment=segment)[0], segment, -1)
        return self.out_proj(self.norm(y.flatten(2), z))


def _behind(y: Float[Tensor, "B L H P"], last: Float[Tensor, "B H P"]) -> Float[Tensor, "B L H P"]:
    """Each position has what the one before had, the first one `last`."""
    return torch.cat((last.unsqueeze(1).to(y.dtype), y[:, :-1]), 1)


def _shifted(y: Float[Tensor, "B L H P"], segment: Segment | None, by: int) -> Float[Tensor, "B L H P"]:
    """Each position has what the one before (`by` 1) or after (-1) had, 0 at the edge of a document."""
    kept = y[:, :-1] if by > 0 else y[:, 1:]
    if segment is not None:
        kept = kept * (segment[:, 1:] == segment[:, :-1])[:, :, None, None]
    return F.pad(kept, (0, 0, 0, 0, 1, 0) if by > 0 else (0, 0, 0, 0, 0, 1))
