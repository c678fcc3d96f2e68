"""mamba: a bidirectional Mamba-2 mixer in every block. DiffuMamba (arXiv 2511.15927).

The MLP is half as wide as the Transformer's by default (2 against 4), which evens out the second set of mixer weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_lm.config import part
from diffusion_lm.denoisers.base import DenoiserConfig
from diffusion_lm.layers.trunk import Trunk
from diffusion_lm.mixers.base import MixerConfig


@dataclass(kw_only=True, slots=True)
class MambaConfig(DenoiserConfig):
    mlp_expansion: float = 2.0
    """Width of the MLP over d_model; 0 leaves the MLPs out."""
    mixer: MixerConfig = part("mixers", "bidirectional")
    """The mixer of every block."""

    def __post_init__(self) -> None:
        DenoiserConfig.__post_init__(self)
        self.check_families(mixer="mamba")

    def mixers(self) -> Sequence[MixerConfig]:
        return [self.mixer] * self.n_layers


class Mamba(Trunk):
    """A pure bidirectional Mamba-2 trunk."""
