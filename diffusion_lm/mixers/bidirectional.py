"""bidirectional: two independent causal mixers, one on the reversed sequence, outputs added.

DiffuMamba's combination (arXiv 2511.15927, section 3): no weights are shared between the directions.
"""

from dataclasses import dataclass

from diffusion_lm.config import build, name_of, part
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, MixerConfig, SequenceMixer
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class BidirectionalConfig(MixerConfig):
    inner: MixerConfig = part("mixers", "mamba2")
    """The causal mixer that is run in both directions."""

    def __post_init__(self) -> None:
        if not self.inner.is_causal():
            raise ValueError(
                f"inner: got {name_of(self.inner)}, which sees both directions already; expected a causal mixer"
            )

    def is_causal(self) -> bool:
        return False

    def family(self) -> str:
        return self.inner.family()

    def parameters(self, d_model: int) -> int:
        return 2 * self.inner.parameters(d_model)

    def flops_per_token(self, d_model: int, length: int) -> int:
        return 2 * self.inner.flops_per_token(d_model, length)


class Bidirectional(SequenceMixer):
    """forward_mixer(x) + flip(reverse_mixer(flip(x)))."""

    def __init__(self, config: BidirectionalConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.forward_mixer = build(config.inner, d_model)
        self.reverse_mixer = build(config.inner, d_model)

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        back = context if context.segment is None else Context(context.segment.flip(1))
        return self.forward_mixer(x, context) + self.reverse_mixer(x.flip(1), back).flip(1)
