"""transformer: attention in every block. DiffuTran, the baseline of the DiffuMamba paper (arXiv 2511.15927)."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_lm.config import part
from diffusion_lm.denoisers.base import DenoiserConfig
from diffusion_lm.layers.trunk import Trunk
from diffusion_lm.mixers.base import MixerConfig


@dataclass(kw_only=True, slots=True)
class TransformerConfig(DenoiserConfig):
    mixer: MixerConfig = part("mixers", "attention")
    """The mixer of every block."""

    def __post_init__(self) -> None:
        DenoiserConfig.__post_init__(self)
        self.check_families(mixer="attention")

    def mixers(self) -> Sequence[MixerConfig]:
        return [self.mixer] * self.n_layers


class Transformer(Trunk):
    """A diffusion Transformer."""
