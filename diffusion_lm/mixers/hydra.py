"""hydra: the quasi-separable mixer (Hwang et al., "Hydra", arXiv 2407.09941, equation 5 and section 4), bidirectional.

y = shift(SS_f(x)) + flip(shift(SS_r(flip(x)))) + (D + fc_D x) x: one state-space scan per direction over the same x
with the same A, each with B, C and dt of its own, both told of the positions before (after) one's own only, and a
learned diagonal for one's own. One in_proj, a centred convolution, a gated RMSNorm, out_proj. Names and starting values
are those of the authors' code.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.kernels.base import kernel_class
from diffusion_lm.layers.convolution import convolve
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.layers.state_space import StateSpaceConfig
from diffusion_lm.layers.steps import start_steps, steps
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, SequenceMixer, StateCache
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Hidden, Segment, Tensor


@dataclass(kw_only=True, slots=True)
class HydraConfig(StateSpaceConfig):
    d_conv: int = 7
    """Width of the centred convolution, odd."""
    norm_before_gate: bool = True
    """Norm, then gate, instead of the norm of what is gated."""

    def __post_init__(self) -> None:
        StateSpaceConfig.__post_init__(self)
        if self.d_conv % 2 == 0:
            raise ValueError(f"d_conv: got {self.d_conv}, expected an odd number, since the convolution is centred")

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
        config, segment = self.config, context.segment
        z, mixed, dt = self.in_proj(x).split(self.widths, -1)
        mixed = convolve(mixed, self.conv1d.weight, self.conv1d.bias, config.d_conv // 2, segment)
        own, *keys = F.silu(mixed).split((self.widths[0], *[self.state] * 4), -1)
        heads = own.unflatten(-1, (self.heads, -1))
        B, C, B_back, C_back = (v.unflatten(-1, (config.n_groups, -1)) for v in keys)
        there, back = dt.split(self.heads, -1)
        y = heads * (self.fc_D(own) + self.D.to(own.dtype)).unsqueeze(-1)
        y = y + _shifted(self._scan(heads, there, B, C, segment, False), segment, 1)
        y = y + _shifted(self._scan(heads, back, B_back, C_back, segment, True), segment, -1)
        return self.out_proj(self.norm(y.flatten(2), z))

    def start(self, x: Hidden) -> StateCache:
        raise NotImplementedError

    def resume(self, x: Hidden, cache: StateCache) -> tuple[Hidden, StateCache]:
        raise NotImplementedError

    def _scan(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, segment: Segment | None, reverse: bool) -> Tensor:
        config, A = self.config, -torch.exp(wide(self.A_log))
        dt = steps(dt, self.dt_bias, config.dt_limit)
        return self.kernel.scan(x, dt, A, B, C, chunk_size=config.chunk_size, segment=segment, reverse=reverse)[0]


def _shifted(y: Float[Tensor, "B L H P"], segment: Segment | None, by: int) -> Float[Tensor, "B L H P"]:
    """Each position has what the one before (`by` 1) or after (-1) had, 0 at the edge of a document."""
    kept = y[:, :-1] if by > 0 else y[:, 1:]
    if segment is not None:
        kept = kept * (segment[:, 1:] == segment[:, :-1])[:, :, None, None]
    return F.pad(kept, (0, 0, 0, 0, 1, 0) if by > 0 else (0, 0, 0, 0, 0, 1))
