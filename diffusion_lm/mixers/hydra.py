"""hydra: the quasi-separable mixer (Hwang et al., "Hydra", arXiv 2407.09941, equation 5 and section 4), bidirectional.

y = shift(SS_f(x)) + flip(shift(SS_r(flip(x)))) + (D + fc_D x) x: one state-space scan per direction over the same x
with the same A, each with B, C and dt of its own, both told of the positions before (after) one's own only, and a
learned diagonal for one's own. One in_proj, a centred convolution, a gated RMSNorm, out_proj. Names and starting values
are those of the authors' code.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.kernels.base import kernel_choice, kernel_class
from diffusion_lm.layers.convolution import convolve
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.layers.steps import check_steps, start_steps, steps
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, MixerConfig, SequenceMixer, check_sizes
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Hidden, Segment, Tensor


@dataclass(kw_only=True, slots=True)
class HydraConfig(MixerConfig):
    d_state: int = 64
    """State size N."""
    expand: int = 2
    """Inner width over d_model."""
    head_dim: int = 64
    """Channels per head P; expand * d_model must be a multiple of it."""
    n_groups: int = 1
    """Groups of heads that share B and C."""
    d_conv: int = 7
    """Width of the centred convolution, odd."""
    chunk_size: int = 64
    """Positions per chunk of the scan; changes speed, not results."""
    norm_before_gate: bool = True
    """Norm, then gate, instead of the norm of what is gated."""
    bias: bool = False
    """Biases in in_proj and out_proj."""
    conv_bias: bool = True
    """Biases in the convolution."""
    dt_min: float = 0.001
    """Steps start log-uniformly between this one..."""
    dt_max: float = 0.1
    """...and this one."""
    dt_init_floor: float = 1e-4
    """No step starts below it."""
    dt_limit: tuple[float, float] = (0.0, math.inf)
    """Steps are kept within these bounds."""
    kernel: str = kernel_choice()
    """Scan implementation: a file of kernels/, or auto by device."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_state", "expand", "head_dim", "n_groups", "d_conv", "chunk_size")
        check_steps(self)
        if self.d_conv % 2 == 0:
            raise ValueError(f"d_conv: got {self.d_conv}, expected an odd number, since the convolution is centred")

    def is_causal(self) -> bool:
        return False

    def family(self) -> str:
        return "mamba"

    def widths(self, d_model: int) -> tuple[int, int, int]:
        """Widths of z, of what is convolved, of dt."""
        inner = self.expand * d_model
        return inner, inner + 4 * self.n_groups * self.d_state, 2 * (inner // self.head_dim)

    def parameters(self, d_model: int) -> int:
        inner, convolved, dt = self.widths(d_model)
        projections = d_model * (sum(self.widths(d_model)) + inner) + self.bias * (inner + convolved + dt + d_model)
        heads = dt // 2
        return projections + convolved * (self.d_conv + self.conv_bias) + inner * heads + 3 * heads + inner

    def flops_per_token(self, d_model: int, length: int) -> int:
        (inner, _, dt), chunk = self.widths(d_model), min(self.chunk_size, length)
        projections = 2 * d_model * (sum(self.widths(d_model)) + inner) + inner * dt
        within = 2 * chunk * (self.n_groups * self.d_state + inner)
        between = 4 * self.d_state * inner if length > chunk else 0
        return projections + 2 * (within + between)


class Hydra(SequenceMixer):
    """Bidirectional layer of one projection and two shifted scans."""

    def __init__(self, config: HydraConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.widths = inner, convolved, dt = config.widths(d_model)
        self.heads, self.state = dt // 2, config.n_groups * config.d_state
        if self.heads * config.head_dim != inner or self.heads % config.n_groups:
            raise ValueError(
                f"head_dim {config.head_dim} and n_groups {config.n_groups}: expected expand * d_model = {inner} "
                "to be a multiple of head_dim, and the number of heads of n_groups"
            )
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
