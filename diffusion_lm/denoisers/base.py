"""Denoisers: noise-conditioned trunks, hidden in, hidden out.

Every denoiser is a stack of residual blocks; what differs is which mixer stands in which block, and what the blocks are
told. Configs predict parameters and floating-point operations without building anything.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import nn

from diffusion_lm.conditioning.base import ConditioningConfig
from diffusion_lm.config import choice, config_class, name_of, part, variants
from diffusion_lm.kind import EXACT, approximate
from diffusion_lm.layers.mlp import MLPS, MULTIPLE, mlp_width
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.noisy import Noisy
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class DenoiserConfig:
    """Fields that every denoiser has. Variants say which mixers their blocks hold."""

    n_layers: int = 4
    """Number of blocks."""
    mlp: str = choice("gelu", "swiglu")
    """Kind of the MLPs: two matrices around a GELU, or three with a gate."""
    mlp_expansion: float = 4.0
    """Width of the MLP over d_model; 0 leaves the MLPs out."""
    mlp_width: int = 0
    """Width of the MLP in channels, instead of mlp_expansion, which is then left out; 0 goes by that."""
    mlp_bias: bool = False
    """Biases in the MLPs."""
    norm: str = choice("rms", "layer")
    """Norm before every branch and before the head: RMSNorm, or LayerNorm without a shift."""
    conditioning: ConditioningConfig = part("conditioning", "adaln")
    """How the noise level reaches the blocks."""

    def __post_init__(self) -> None:
        if self.n_layers < 1:
            raise ValueError(f"n_layers: got {self.n_layers}, expected at least 1")
        if not 0 <= self.mlp_expansion < math.inf:
            raise ValueError(f"mlp_expansion: got {self.mlp_expansion}, expected 0 or more")
        if self.mlp_width < 0:
            raise ValueError(f"mlp_width: got {self.mlp_width}, expected channels, or 0 to go by mlp_expansion")

    def unused(self, experiment: Any) -> dict[str, str]:
        """The expansion beside a width, what the MLPs are like where there are none, what blocks are like without."""
        of_blocks = {} if experiment.block_size else self._of_blocks()
        if self.mlp_width:
            why = f"the MLPs are as wide as denoiser.mlp_width={self.mlp_width} says"
            return of_blocks | {"denoiser.mlp_expansion": why}
        if self.width(experiment.model.d_model):
            return of_blocks
        why = "there are no MLPs (denoiser.mlp_expansion is 0)"
        return of_blocks | {"denoiser.mlp": why, "denoiser.mlp_bias": why}

    def _of_blocks(self) -> dict[str, str]:
        """Keys of the mixers that only block mode reads."""
        mixers = [f.name for f in fields(self) if f.metadata.get("folder") == "mixers"]
        keys = [f"denoiser.{name}.{key}" for name in mixers for key in getattr(self, name).of_blocks()]
        return dict.fromkeys(keys, "block_size is 0, and it is a key of block mode")

    def check_mlp(self, d_model: int) -> None:
        """Raise `ValueError` for an expansion above 0 that is too small for any channels."""
        if self.mlp_expansion and not self.width(d_model):
            least = math.ceil(MULTIPLE / d_model * 10**4) / 10**4
            raise ValueError(
                f"mlp_expansion: got {self.mlp_expansion:g}, which at d_model {d_model} is less than {MULTIPLE} "
                f"channels and makes no MLP; expected at least {least:g}, or 0 to leave the MLPs out"
            )

    def mixers(self) -> Sequence[MixerConfig]:
        """The mixer of each block, from the first to the last."""
        raise NotImplementedError

    def period(self) -> int:
        """Blocks after which the kinds of mixer repeat."""
        return 1

    def is_causal(self) -> bool:
        """Whether an output depends on earlier positions only."""
        return all(mixer.is_causal() for mixer in self.mixers())

    def cache(self) -> str:
        """What the cache of block generation is: exact, or an approximation and why."""
        why = dict.fromkeys(mixer.approximation() for mixer in self.mixers() if not mixer.exact_cache)
        return approximate(", ".join(why)) if why else EXACT

    def check_families(self, **wanted: str) -> None:
        """Refuse a mixer, by its field's name, that is not of the family that the denoiser's name promises."""
        for name, family in wanted.items():
            mixer = getattr(self, name)
            if mixer.family() != family:
                raise ValueError(
                    f"{name}: got '{name_of(mixer)}', a mixer of {mixer.family()}; expected {family}, or another "
                    f"denoiser than {name_of(self)}"
                )

    def width(self, d_model: int) -> int:
        """Channels inside the MLPs; 0 where there are none."""
        return self.mlp_width or mlp_width(d_model, self.mlp_expansion)

    def branches(self, d_model: int) -> int:
        """Residual branches of the trunk: a mixer and, unless its width is 0, an MLP per block."""
        return len(self.mixers()) * (2 if self.width(d_model) else 1)

    def parameters(self, d_model: int) -> int:
        """Parameters of the trunk."""
        branches, width = self.branches(d_model), self.width(d_model)
        mixers = sum(mixer.parameters(d_model) for mixer in self.mixers())
        mlps = len(self.mixers()) * MLPS[self.mlp].parameters_of(d_model, width, self.mlp_bias)
        return mixers + mlps + branches * d_model + self.conditioning.parameters(d_model, branches)

    def flops_per_token(self, d_model: int, length: int, block_size: int = 0) -> float:
        """Floating-point operations of a forward pass per position, in matrix products (a multiply-add is two).
        With blocks a pass goes over a text's clean blocks and over its noisy ones, or, where the cache is not exact,
        over a whole text for every block, which ends with it; a position is one of the text.

        The conditioning is left out: it works once per row, not per position. Positions that it adds to the sequence
        are work of the blocks, shared out over the `length` others.
        """
        if block_size and self.cache() != EXACT:
            ends = range(block_size, length + 1, block_size)
            return sum(end * self.flops_per_token(d_model, end) for end in ends) / length
        if block_size:
            mlp = MLPS[self.mlp].parameters_of(d_model, self.width(d_model))
            sizes = (d_model, length, block_size)
            return float(sum(mixer.block_flops_per_token(*sizes) + 4 * mlp for mixer in self.mixers()))
        mlp, extended = MLPS[self.mlp].parameters_of(d_model, self.width(d_model)), length + self.conditioning.positions
        each = sum(mixer.flops_per_token(d_model, extended) + 2 * mlp for mixer in self.mixers())
        return each * extended / length


def how_to_be_causal(denoiser: DenoiserConfig) -> str:
    """The end of a refusal of a denoiser that sees later positions: the keys that make it causal, or that none do."""
    changes, keys = {}, []
    for f in fields(denoiser):
        mixer = getattr(denoiser, f.name)
        if f.metadata.get("folder") == "mixers" and not mixer.is_causal():
            changes[f.name], more = _causal_like(mixer)
            keys += [f"denoiser.{f.name}{key}" for key in more]
    if replace(denoiser, **changes).is_causal():
        return f"set {' '.join(keys)}"
    return "no key makes it causal; take another, like denoiser=mamba denoiser.mixer=mamba2"


def _causal_like(mixer: MixerConfig) -> tuple[MixerConfig, list[str]]:
    """A causal mixer of the same family, and what to set below the mixer's key to get it."""
    if hasattr(mixer, "causal"):
        values = {"causal": True, "block_size": 0}
        changes = {name: value for name, value in values.items() if getattr(mixer, name) != value}
        return replace(mixer, **changes), [f".{name}={str(value).lower()}" for name, value in changes.items()]
    others = {name: config_class("mixers", name)() for name in variants("mixers")}
    name = next(n for n, other in others.items() if other.is_causal() and other.family() == mixer.family())
    return others[name], [f"={name}"]


class Denoiser(nn.Module, ABC):
    """hidden [B, L, D], noisy -> hidden [B, L, D]."""

    encodes_prompts: ClassVar[bool] = False
    """Whether it has a prompt encoder."""
    normalises: ClassVar[bool] = False
    """Whether its output is normalised already, so that the model's readout has no norm."""

    def __init__(self, config: Any, d_model: int) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, hidden: Hidden, noisy: Noisy) -> Hidden:
        """The trunk; the readout's norm comes after it."""
