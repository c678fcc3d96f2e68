"""attention: multi-head attention with rotary positions, on PyTorch's scaled_dot_product_attention."""

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from diffusion_lm.layers.rotary import Rotary
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, MixerConfig, SequenceMixer, check_sizes
from diffusion_lm.shapes import Hidden


@dataclass(kw_only=True, slots=True)
class AttentionConfig(MixerConfig):
    head_dim: int = 64
    """Channels per head; d_model must be a multiple of it."""
    causal: bool = False
    """Attend to earlier positions only."""

    def __post_init__(self) -> None:
        check_sizes(self, "head_dim")

    def is_causal(self) -> bool:
        return self.causal

    def family(self) -> str:
        return "attention"

    def parameters(self, d_model: int) -> int:
        return 4 * d_model * d_model

    def flops_per_token(self, d_model: int, length: int) -> int:
        return 2 * self.parameters(d_model) + 4 * length * d_model


class Attention(SequenceMixer):
    """Fused query, key and value projection, rotary positions, softmax attention, output projection."""

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        if d_model % config.head_dim:
            raise ValueError(f"head_dim: got {config.head_dim}, expected a divisor of d_model {d_model}")
        self.rotary = Rotary(config.head_dim)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        qkv = self.qkv(x).unflatten(-1, (3, -1, self.config.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, L, P]
        y = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=self.config.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))
