"""What the configs of Mamba-2 and Hydra share: sizes, steps and cost of layers around a state-space scan."""

import math
from dataclasses import dataclass

from diffusion_lm.kernels.base import kernel_choice
from diffusion_lm.layers.steps import check_steps
from diffusion_lm.mixers.base import MixerConfig, check_sizes


@dataclass(kw_only=True, slots=True)
class StateSpaceConfig(MixerConfig):
    d_state: int = 64
    """State size N."""
    expand: int = 2
    """Inner width over d_model."""
    head_dim: int = 64
    """Channels per head P; expand * d_model must be a multiple of it."""
    n_groups: int = 1
    """Groups of heads that share B and C."""
    d_conv: int = 4
    """Width of the convolution."""
    chunk_size: int = 64
    """Positions per chunk of the scan; changes speed, not results."""
    norm_before_gate: bool = False
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

    def family(self) -> str:
        return "mamba"

    def heads(self, d_model: int) -> int:
        """Number of heads."""
        return self.expand * d_model // self.head_dim

    def check_heads(self, d_model: int) -> None:
        """Raise `ValueError` where the sizes do not divide."""
        inner = self.expand * d_model
        if inner % self.head_dim or self.heads(d_model) % self.n_groups:
            raise ValueError(
                f"head_dim {self.head_dim} and n_groups {self.n_groups}: expected expand * d_model = {inner} "
                "to be a multiple of head_dim, and the number of heads of n_groups"
            )

    def scan_flops(self, d_model: int, length: int) -> int:
        """Of one scan, per position: products inside a chunk, and with the states between chunks."""
        inner, chunk = self.expand * d_model, min(self.chunk_size, length)
        within = 2 * chunk * (self.n_groups * self.d_state + inner)
        return within + (4 * self.d_state * inner if length > chunk else 0)
