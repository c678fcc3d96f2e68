"""dit: the transformer of SEDD, MDLM, BD3-LM and Duo, for weights that others trained and for comparisons with them.

It is `transformer` but for: LayerNorm with a scale and no shift instead of RMSNorm, biases in the MLP, noise told as
sigma, and a last norm that the noise level shifts and scales too (AdaLN-Zero as in DiT, arXiv 2212.09748; rotary
positions, no biases in the attention; Lou et al., arXiv 2310.16834, and Sahoo et al., arXiv 2406.07524, appendix).
Theirs drops out a tenth of each branch in training; this one has no dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_lm.conditioning.base import ConditioningConfig, Modulation, modulated
from diffusion_lm.config import choice, name_of, part
from diffusion_lm.denoisers.base import DenoiserConfig
from diffusion_lm.layers.norm import NORMS
from diffusion_lm.layers.trunk import Trunk
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.noisy import Noisy, context_of
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Hidden

SHIFT_SCALE_GATE = 3


@dataclass(kw_only=True, slots=True)
class DitConfig(DenoiserConfig):
    conditioning: ConditioningConfig = part("conditioning", "adaln_sigma")
    """How the noise level reaches the blocks: adaln_sigma in the papers; adaln works too."""
    mlp_bias: bool = True
    """Biases in the MLPs."""
    norm: str = choice("layer", "rms")
    """Norm before every branch and before the head: LayerNorm without a shift, or RMSNorm."""
    mixer: MixerConfig = part("mixers", "attention")
    """The mixer of every block."""

    def __post_init__(self) -> None:
        DenoiserConfig.__post_init__(self)
        self.check_families(mixer="attention")
        if self.conditioning.parts != SHIFT_SCALE_GATE:
            raise ValueError(
                f"conditioning: got '{name_of(self.conditioning)}'; dit shifts, scales and gates: expected "
                "adaln_sigma or adaln, or denoiser transformer"
            )

    def mixers(self) -> Sequence[MixerConfig]:
        return [self.mixer] * self.n_layers

    def parameters(self, d_model: int) -> int:
        last = d_model + 2 * d_model * (self.conditioning.channels + 1)
        return DenoiserConfig.parameters(self, d_model) + last


class Dit(Trunk):
    """The shared trunk with a last norm of its own."""

    normalises = True

    def __init__(self, config: DitConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.norm = NORMS[config.norm](d_model)
        self.modulation = Modulation(config.conditioning.channels, d_model, 2)

    def forward(self, hidden: Hidden, noisy: Noisy) -> Hidden:
        signal = self.conditioning.signal(noisy)
        hidden = self.stack(wide(hidden), signal, context_of(noisy))
        values = self.modulation.values(signal, hidden.shape[1])
        return modulated(lambda x, shift, scale: x * (1 + scale) + shift, self.norm(hidden), values)
