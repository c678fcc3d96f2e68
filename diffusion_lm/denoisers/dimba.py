"""dimba: Mamba-2 blocks that see the noise level and an encoded prompt. DIMBA (Allafi, April 2025), section 3.2.

The paper encodes the answer itself during training and a prompt of another length at inference. Here a prompt is a set
of given positions: they stay clean in the sequence, and the prompt encoder (section 3.2.2) sees these positions alone,
pooled to one vector that modulates every block together with the noise level: by FiLM or additively.

The paper's encoder is "a lightweight MLP or frozen encoder". `mlp` is trained. `frozen` is a random layer that never
changes: random features of the prompt (Rahimi and Recht, NIPS 2007), read by the modulations, which are trained. It
shows what a learned encoder is worth. Its weights are in checkpoints, and do not count as parameters.
The output projection that the paper ties to the embedding is the model's (`model.tie_head`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from diffusion_lm.conditioning.base import ConditioningConfig
from diffusion_lm.config import choice, name_of, part
from diffusion_lm.denoisers.base import DenoiserConfig
from diffusion_lm.layers.documents import documents
from diffusion_lm.layers.trunk import Trunk
from diffusion_lm.mixers.base import MixerConfig
from diffusion_lm.noisy import Noisy
from diffusion_lm.shapes import Float, Given, Hidden, Segment, Tensor


@dataclass(kw_only=True, slots=True)
class DimbaConfig(DenoiserConfig):
    mlp_expansion: float = 2.0
    """Width of the MLP over d_model; 0 leaves the MLPs out."""
    conditioning: ConditioningConfig = part("conditioning", "film")
    """How noise level and prompt reach the blocks: film or additive in the paper; adaln and token work too."""
    mixer: MixerConfig = part("mixers", "bidirectional")
    """The mixer of every block; the paper's own is mamba2, which is causal."""
    prompt_encoder: str = choice("mlp", "frozen")
    """What makes the prompt's vector: a trained MLP, or a random layer that is never trained."""

    def __post_init__(self) -> None:
        DenoiserConfig.__post_init__(self)
        self.check_families(mixer="mamba")
        if not self.conditioning.channels:
            raise ValueError(
                f"conditioning: got '{name_of(self.conditioning)}', which leaves the prompt encoder no way in; "
                "expected film, additive, adaln or token"
            )

    def mixers(self) -> Sequence[MixerConfig]:
        return [self.mixer] * self.n_layers

    def is_causal(self) -> bool:
        """Never: the prompt encoder shows every position the whole prompt."""
        return False

    def parameters(self, d_model: int) -> int:
        encoder = ENCODERS[self.prompt_encoder].parameters_of(d_model, self.conditioning.channels)
        return DenoiserConfig.parameters(self, d_model) + encoder

    def flops_per_token(self, d_model: int, length: int, block_size: int = 0) -> float:
        encoder = 2 * d_model * self.conditioning.channels
        return DenoiserConfig.flops_per_token(self, d_model, length, block_size) + encoder


class PromptEncoder(nn.Module):
    """Features of the given positions, averaged, and a map of the average; a learned vector where nothing is given.

    `each`: a vector for every position, not averaged. It is what the paper computes from the answer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(channels))

    @staticmethod
    def parameters_of(d_model: int, channels: int) -> int:
        """Trained parameters."""
        raise NotImplementedError

    def features(self, hidden: Hidden) -> Float[Tensor, "B L C"]:
        """Of every position."""
        raise NotImplementedError

    def mapped(self, features: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        """What becomes of features, or of their average."""
        raise NotImplementedError

    def forward(self, hidden: Hidden, given: Given) -> Float[Tensor, "B C"]:
        share = given.to(hidden.dtype).unsqueeze(-1)
        pooled = (self.features(hidden) * share).sum(1) / share.sum(1).clamp(min=1)
        return torch.where(given.any(1, keepdim=True), self.mapped(pooled), self.nothing)

    def by_document(self, hidden: Hidden, given: Given, segment: Segment) -> Float[Tensor, "B L C"]:
        """For every position what `forward` makes of its document alone."""
        share = given.to(hidden.dtype).unsqueeze(-1)
        document = documents(segment).unsqueeze(-1)

        def total(value: Float[Tensor, "B L c"]) -> Float[Tensor, "B L c"]:
            """Over each document; the place along the row is the document's number."""
            return torch.zeros_like(value).scatter_add(1, document.expand_as(value), value)

        features, count = self.features(hidden) * share, total(share)
        said = torch.where(count > 0, self.mapped(total(features) / count.clamp(min=1)), self.nothing)
        return said.gather(1, document.expand_as(said))

    def each(self, hidden: Hidden) -> Float[Tensor, "B L C"]:
        """A vector per position."""
        return self.mapped(self.features(hidden))


class TrainedEncoder(PromptEncoder):
    """out(mean of silu(hidden(x)))."""

    def __init__(self, d_model: int, channels: int) -> None:
        super().__init__(channels)
        self.hidden = nn.Linear(d_model, channels)
        self.out = nn.Linear(channels, channels)

    @staticmethod
    def parameters_of(d_model: int, channels: int) -> int:
        return d_model * channels + channels + channels * channels + channels + channels

    def features(self, hidden: Hidden) -> Float[Tensor, "B L C"]:
        return nn.functional.silu(self.hidden(hidden))

    def mapped(self, features: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        return self.out(features)


class FrozenEncoder(PromptEncoder):
    """mean of silu(W x / rms(x) + b), with W x / rms(x) and b of variance 1.

    The scale of the embeddings, which training changes, does not matter.
    """

    def __init__(self, d_model: int, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("weight", torch.randn(channels, d_model) / d_model**0.5)
        self.register_buffer("bias", torch.randn(channels))

    @staticmethod
    def parameters_of(d_model: int, channels: int) -> int:
        return channels

    def features(self, hidden: Hidden) -> Float[Tensor, "B L C"]:
        normed = nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-12)
        return nn.functional.silu(nn.functional.linear(normed, self.weight, self.bias))

    def mapped(self, features: Float[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
        return features


ENCODERS: dict[str, type[PromptEncoder]] = {"mlp": TrainedEncoder, "frozen": FrozenEncoder}


class Dimba(Trunk):
    """A Mamba-2 trunk with a prompt encoder."""

    encodes_prompts = True

    def __init__(self, config: DimbaConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        self.prompt_encoder = ENCODERS[config.prompt_encoder](d_model, config.conditioning.channels)

    def prompt(self, hidden: Hidden, noisy: Noisy) -> Float[Tensor, "B C"] | Float[Tensor, "B L C"]:
        if noisy.answer is not None:
            return self.prompt_encoder.each(noisy.answer)
        if noisy.given is not None and noisy.segment is not None:
            return self.prompt_encoder.by_document(hidden, noisy.given, noisy.segment)
        given = torch.zeros_like(hidden[..., 0], dtype=torch.bool) if noisy.given is None else noisy.given
        return self.prompt_encoder(hidden, given)
