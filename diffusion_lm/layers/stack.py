"""Residual blocks: norm, modulation, mixer; norm, modulation, MLP. The residual stream stays in the input's dtype."""

from torch import nn

from diffusion_lm.conditioning.base import Conditioning, Signal
from diffusion_lm.config import build
from diffusion_lm.layers.mlp import MLP, mlp_width
from diffusion_lm.layers.norm import rms_norm
from diffusion_lm.mixers.base import Context, MixerConfig
from diffusion_lm.shapes import Hidden


class Residual(nn.Module):
    """x + modulated(inner(norm(x)))."""

    def __init__(self, inner: nn.Module, d_model: int, conditioning: Conditioning) -> None:
        super().__init__()
        self.norm = rms_norm(d_model)
        self.inner = inner
        self.branch = conditioning.branch()

    def forward(self, x: Hidden, signal: Signal | None, *context: Context) -> Hidden:
        return x + self.branch(lambda hidden: self.inner(hidden, *context), self.norm(x), signal)


class Block(nn.Module):
    """A mixer branch and, where the width is not 0, an MLP branch."""

    def __init__(self, mixer: MixerConfig, d_model: int, mlp_expansion: float, conditioning: Conditioning) -> None:
        super().__init__()
        width = mlp_width(d_model, mlp_expansion)
        self.mixer = Residual(build(mixer, d_model), d_model, conditioning)
        self.mlp = Residual(MLP(d_model, width), d_model, conditioning) if width else None

    def forward(self, x: Hidden, signal: Signal | None, context: Context) -> Hidden:
        x = self.mixer(x, signal, context)
        return x if self.mlp is None else self.mlp(x, signal)


class Stack(nn.Module):
    """Blocks one after the other, all driven by one signal."""

    def __init__(
        self, mixers: list[MixerConfig], d_model: int, mlp_expansion: float, conditioning: Conditioning
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixer, d_model, mlp_expansion, conditioning) for mixer in mixers)

    def forward(self, x: Hidden, signal: Signal | None, context: Context) -> Hidden:
        for block in self.blocks:
            x = block(x, signal, context)
        return x
