"""Residual blocks: norm, modulation, mixer; norm, modulation, MLP.

The residual stream stays in the input's dtype, float32 under autocast: branches are added to it, and only the
normalised copy that a branch starts from is in the precision of its products.
"""

from typing import Any

from torch import nn

from diffusion_lm.conditioning.base import Conditioning, Signal
from diffusion_lm.config import build
from diffusion_lm.layers.execution import Execution
from diffusion_lm.layers.mlp import MLPS
from diffusion_lm.layers.norm import NORMS
from diffusion_lm.mixers.base import Context, MixerConfig
from diffusion_lm.precision import narrow
from diffusion_lm.shapes import Hidden, Tensor


class Residual(nn.Module):
    """x + modulated(inner(norm(x)))."""

    def __init__(self, inner: nn.Module, norm: nn.Module, conditioning: Conditioning) -> None:
        super().__init__()
        self.norm = norm
        self.inner = inner
        self.branch = conditioning.branch()

    def forward(self, x: Hidden, signal: Signal | None, context: Context | None = None) -> Hidden:
        def inner(hidden: Tensor) -> Tensor:
            return self.inner(hidden) if context is None else context.mix(self.inner, hidden)

        return x + self.branch(inner, narrow(self.norm(x)), signal)


class Block(nn.Module):
    """A mixer branch and, where the width is not 0, an MLP branch. `config` is the denoiser's."""

    def __init__(self, mixer: MixerConfig, config: Any, d_model: int, conditioning: Conditioning) -> None:
        super().__init__()
        norm, width = NORMS[config.norm], config.width(d_model)
        self.mixer = Residual(build(mixer, d_model), norm(d_model), conditioning)
        self.mlp = None
        if width:
            mlp = MLPS[config.mlp](d_model, width, config.mlp_bias)
            self.mlp = Residual(mlp, norm(d_model), conditioning)

    def forward(self, x: Hidden, signal: Signal | None, context: Context) -> Hidden:
        x = self.mixer(x, signal, context)
        return x if self.mlp is None else self.mlp(x, signal)


class Stack(nn.Module):
    """Blocks one after the other, all driven by one signal."""

    execution = Execution()
    """How they are run; training sets it (`training/blocks.py`)."""

    def __init__(self, config: Any, d_model: int, conditioning: Conditioning) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixer, config, d_model, conditioning) for mixer in config.mixers())

    def forward(self, x: Hidden, signal: Signal | None, context: Context) -> Hidden:
        for block in self.blocks:
            context = context.prepared(block.mixer.inner, x)
        for layer, block in enumerate(self.blocks):
            x = self.execution(block, x, signal, context.of_layer(layer))
        return x
