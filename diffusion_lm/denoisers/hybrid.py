"""hybrid: attention among Mamba-2 blocks. DiffuMamba-H (arXiv 2511.15927), by default one attention after every five.

The pattern is a string of M (the Mamba mixer) and A (attention), repeated to the number of blocks; by default it is
made of `attention_every` and `attention_position`. A hybrid without at least one of each is refused: it would be
another denoiser under this one's name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from diffusion_lm.config import choice, part
from diffusion_lm.denoisers.base import DenoiserConfig
from diffusion_lm.layers.trunk import Trunk
from diffusion_lm.mixers.base import MixerConfig

EVERY, LAST = 5, "last"
POSITIONS: dict[str, Callable[[int], str]] = {
    LAST: lambda every: "M" * every + "A",
    "first": lambda every: "A" + "M" * every,
}


@dataclass(kw_only=True, slots=True)
class HybridConfig(DenoiserConfig):
    n_layers: int = 6
    """Number of blocks."""
    mlp_expansion: float = 2.0
    """Width of the MLP over d_model; 0 leaves the MLPs out."""
    attention_every: int = EVERY
    """Mamba blocks to one attention block."""
    attention_position: str = choice(*POSITIONS)
    """Place of the attention block in such a group."""
    pattern: str = "auto"
    """Period of mixers, if it is another one: M is `mamba`, A is `attention`."""
    mamba: MixerConfig = part("mixers", "bidirectional")
    attention: MixerConfig = part("mixers", "attention")

    def __post_init__(self) -> None:
        DenoiserConfig.__post_init__(self)
        self.check_families(mamba="mamba", attention="attention")
        if self.attention_every < 1:
            raise ValueError(f"attention_every: got {self.attention_every}, expected at least 1 Mamba block")
        self._settle_pattern()
        if set(self.pattern) - {"M", "A"}:
            raise ValueError(f"pattern: got '{self.pattern}', expected a string of M and A")
        if set(self.layers()) != {"M", "A"}:
            raise ValueError(
                f"pattern: '{self.pattern}' over {self.n_layers} layers gives '{self.layers()}', "
                "expected at least one Mamba (M) and one attention (A) layer"
            )

    def _settle_pattern(self) -> None:
        group = POSITIONS[self.attention_position](self.attention_every)
        if self.pattern == "auto":
            self.pattern = group
        elif self.pattern != group and (self.attention_every, self.attention_position) != (EVERY, LAST):
            raise ValueError(
                f"pattern: got '{self.pattern}' beside attention_every={self.attention_every} and "
                f"attention_position={self.attention_position}, which make '{group}'; set pattern=auto, or leave "
                "those two out"
            )

    def layers(self) -> str:
        """One letter per block."""
        return "".join(islice(cycle(self.pattern), self.n_layers))

    def period(self) -> int:
        return len(self.pattern)

    def mixers(self) -> Sequence[MixerConfig]:
        letters = {"M": self.mamba, "A": self.attention}
        return [letters[letter] for letter in self.layers()]


class Hybrid(Trunk):
    """A trunk of both kinds of mixer."""
