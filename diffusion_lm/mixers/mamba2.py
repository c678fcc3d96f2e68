"""mamba2: the Mamba-2 mixer (Dao and Gu, arXiv 2405.21060, section 7), causal.

in_proj gives gate z, input x, B, C and step dt; a short causal convolution and a SiLU over (x, B, C); the state-space
scan; the skip D x; a gated RMSNorm; out_proj. Parameters carry mamba-ssm's names and shapes.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.kernels.base import kernel_choice, kernel_class
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, MixerConfig, SequenceMixer, check_sizes
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class Mamba2Config(MixerConfig):
    d_state: int = 64
    """State size N."""
    expand: int = 2
    """Inner width over d_model."""
    head_dim: int = 64
    """Channels per head P; expand * d_model must be a multiple of it."""
    n_groups: int = 1
    """Groups of heads that share B and C."""
    d_conv: int = 4
    """Width of the causal convolution."""
    chunk_size: int = 64
    """Positions per chunk of the scan; changes speed, not results."""
    kernel: str = kernel_choice()
    """Scan implementation: a file of kernels/, or auto by device."""

    def __post_init__(self) -> None:
        check_sizes(self, "d_state", "expand", "head_dim", "n_groups", "d_conv", "chunk_size")

    def is_causal(self) -> bool:
        return True

    def family(self) -> str:
        return "mamba"

    def heads(self, d_model: int) -> int:
        """Number of heads."""
        return self.expand * d_model // self.head_dim

    def parameters(self, d_model: int) -> int:
        inner, heads = self.expand * d_model, self.heads(d_model)
        convolved = inner + 2 * self.n_groups * self.d_state
        projections = d_model * (inner + convolved + heads) + inner * d_model
        return projections + convolved * (self.d_conv + 1) + 3 * heads + inner

    def flops_per_token(self, d_model: int, length: int) -> int:
        inner, chunk = self.expand * d_model, min(self.chunk_size, length)
        convolved = inner + 2 * self.n_groups * self.d_state
        projections = 2 * (d_model * (inner + convolved + self.heads(d_model)) + inner * d_model)
        within = 2 * chunk * (self.n_groups * self.d_state + inner)
        between = 4 * self.d_state * inner if length > chunk else 0
        return projections + within + between


class Mamba2(SequenceMixer):
    """Causal Mamba-2 layer."""

    def __init__(self, config: Mamba2Config, d_model: int) -> None:
        super().__init__(config, d_model)
        inner, heads = config.expand * d_model, config.heads(d_model)
        if heads * config.head_dim != inner or heads % config.n_groups:
            raise ValueError(
                f"head_dim {config.head_dim} and n_groups {config.n_groups}: expected expand * d_model = {inner} "
                "to be a multiple of head_dim, and the number of heads of n_groups"
            )
        self.inner, self.heads = inner, heads
        self.state = config.n_groups * config.d_state
        convolved = inner + 2 * self.state
        self.kernel = kernel_class("torch" if config.kernel == "auto" else config.kernel)()
        self.in_proj = nn.Linear(d_model, inner + convolved + heads, bias=False)
        self.conv1d = nn.Conv1d(convolved, convolved, config.d_conv, groups=convolved, padding=config.d_conv - 1)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedRMSNorm(inner, config.n_groups)
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """mamba-ssm's starting values: A in [1, 16], softplus(dt_bias) log-uniform in [1e-3, 1e-1]."""
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
            step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        z, mixed, dt = self.in_proj(x).split((self.inner, self.inner + 2 * self.state, self.heads), -1)
        mixed = F.silu(self._convolve(mixed))
        x, B, C = mixed.split((self.inner, self.state, self.state), -1)
        x = x.unflatten(-1, (self.heads, -1))  # [B, L, H, P]
        B, C = (v.unflatten(-1, (self.config.n_groups, -1)) for v in (B, C))  # [B, L, G, N]
        dt = F.softplus(wide(dt) + wide(self.dt_bias))
        y = self.kernel.scan(x, dt, -torch.exp(wide(self.A_log)), B, C, self.config.chunk_size)
        y = y + x * self.D.to(x.dtype).unsqueeze(-1)
        return self.out_proj(self.norm(y.flatten(2), z))

    def _convolve(self, x: Hidden) -> Hidden:
        """The causal depthwise convolution, as d_conv shifted products: faster than Conv1d on CPU, and exact."""
        taps = self.conv1d.weight.squeeze(1)  # [channels, d_conv]
        padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
        y = self.conv1d.bias + padded[:, : x.shape[1]] * taps[:, 0]
        for tap in range(1, taps.shape[1]):
            y = y + padded[:, tap : tap + x.shape[1]] * taps[:, tap]
        return y.to(x.dtype)
