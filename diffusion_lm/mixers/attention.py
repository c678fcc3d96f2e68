"""attention: multi-head softmax attention with rotary positions, over everything, the past, or blocks.

The product of queries, keys and values is one; `n_kv_heads` shares keys and values among neighbouring heads (grouped
queries, Ainslie et al., arXiv 2305.13245); `qk_norm` divides every query and key by its root mean square before the
turn (Dehghani et al., arXiv 2302.05442, section 2, in RMSNorm's form). How it is computed: attention_kernels/.

In blocks, training runs the configured kernel over clean texts beside noisy ones; a block of generation goes on from
turned keys and values (layers/key_value_cache.py) by sdpa, whichever kernel trains. It needs no mask where all rows are
of one length and the block sees itself whole.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.attention_kernels.base import BlockPattern, Pattern
from diffusion_lm.backends import backend_choice, backend_class
from diffusion_lm.blocks import fold, unfold
from diffusion_lm.layers.block_attention import Chunks, attend, over_clean
from diffusion_lm.layers.key_value_cache import KeyValueCache, Room
from diffusion_lm.layers.rotary import Table, check_head_dim, rotary_at, rotate
from diffusion_lm.mixers.base import ONE_DOCUMENT, BlockContext, Context, MixerConfig, SequenceMixer, check_sizes
from diffusion_lm.shapes import Bool, Float, Hidden, Int, Tensor


@dataclass(kw_only=True, slots=True)
class AttentionConfig(MixerConfig):
    head_dim: int = 64
    """Channels per head; d_model must be a multiple of it."""
    n_kv_heads: int = 0
    """Heads of keys and values, a divisor of the number of heads; 0 is as many as there are heads."""
    qk_norm: bool = False
    """RMSNorm of every head's queries and keys, with a scale per channel."""
    rope_base: float = 10_000.0
    """Base of the rotary angles: larger ones turn slower, for longer texts."""
    causal: bool = False
    """Attend to earlier positions only."""
    block_size: int = 0
    """With `causal`: positions come in blocks of that many that see their own block whole, and the earlier ones."""
    kernel: str = backend_choice("attention_kernels")
    """Implementation: a file of attention_kernels/, or auto by device."""

    def __post_init__(self) -> None:
        check_sizes(self, "head_dim")
        check_head_dim(self.head_dim)
        for name in ("n_kv_heads", "block_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if not self.rope_base > 1:
            raise ValueError(f"rope_base: got {self.rope_base}, expected more than 1")
        if self.block_size and not self.causal:
            raise ValueError(f"block_size: got {self.block_size} without causal; set causal=true, or block_size=0")
        refusal = None
        if self.kernel != "auto":
            refusal = backend_class("attention_kernels", self.kernel).refusal(self.causal, self.block_size)
        if refusal:
            raise ValueError(f"kernel '{self.kernel}': {refusal}")

    def is_causal(self) -> bool:
        return self.causal and self.block_size < 2

    def family(self) -> str:
        return "attention"

    def block_refusal(self) -> str | None:
        if self.block_size:
            return "has a block_size of its own; leave that 0"
        refusal = None if self.kernel == "auto" else backend_class("attention_kernels", self.kernel).block_refusal()
        return f"has kernel '{self.kernel}': {refusal}" if refusal else None

    def kv_heads(self, d_model: int) -> int:
        """Number of heads of keys and values."""
        return self.n_kv_heads or d_model // self.head_dim

    def parameters(self, d_model: int) -> int:
        projections = 2 * d_model * (d_model + self.kv_heads(d_model) * self.head_dim)
        return projections + (2 * self.head_dim if self.qk_norm else 0)

    def flops_per_token(self, d_model: int, length: int) -> int:
        projections = 4 * d_model * (d_model + self.kv_heads(d_model) * self.head_dim)
        return projections + 4 * length * d_model

    def block_flops_per_token(self, d_model: int, length: int, block_size: int) -> int:
        # a clean block and a noisy one each see (L + S) / 2 keys on average; kernels that pad their masks do more
        projections = self.flops_per_token(d_model, 0)
        return 2 * projections + 4 * (length + block_size) * d_model


class Attention(SequenceMixer):
    """Fused query, key and value projection, rotary positions, softmax attention, output projection."""

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        if d_model % config.head_dim:
            raise ValueError(f"head_dim: got {config.head_dim}, expected a divisor of d_model {d_model}")
        self.heads, self.kv_heads = d_model // config.head_dim, config.kv_heads(d_model)
        if self.heads % self.kv_heads:
            raise ValueError(f"n_kv_heads: got {self.kv_heads}, expected a divisor of the {self.heads} heads")
        self.kernel = backend_class("attention_kernels", "sdpa" if config.kernel == "auto" else config.kernel)()
        self.sharing = ("attention", config.kernel, config.head_dim, config.rope_base, config.causal, config.block_size)
        self.qkv = nn.Linear(d_model, d_model + 2 * self.kv_heads * config.head_dim, bias=False)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(config.head_dim)) if config.qk_norm else None
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def prepare(self, x: Hidden, context: Context) -> Context:
        if self.sharing in context.shared:
            return context
        table = self._table(torch.arange(x.shape[1], device=x.device), x)
        pattern = Pattern.of(self.config.causal, self.config.block_size, context.segment)
        prepared = self.kernel.prepare(pattern, x.shape[1], x.device, product_dtype(x))
        return replace(context, shared={**context.shared, self.sharing: (table, prepared)})

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        table, prepared = self.prepare(x, context).shared[self.sharing]
        q, k, v = self._heads(x, table)
        return self.out_proj(self.kernel.attend(q, k, v, prepared).flatten(2))

    def prepare_blocks(self, x: Hidden, context: BlockContext) -> Context:
        key = (*self.sharing, context.count)
        if key in context.shared:
            return context
        pattern = BlockPattern(context.count, x.shape[1], self.config.causal)
        table = self._table(torch.arange(pattern.length, device=x.device), x)
        prepared = self.kernel.prepare_blocks(pattern, x.device, product_dtype(x))
        return replace(context, shared={**context.shared, key: (table, prepared)})

    def over_blocks(self, x: Hidden, count: int, context: Context = ONE_DOCUMENT) -> Hidden:
        context = context if isinstance(context, BlockContext) else BlockContext(count=count)
        table, prepared = self.prepare_blocks(x, context).shared[*self.sharing, count]
        y = self.kernel.attend_blocks(*self._heads(unfold(x, count), table), prepared)
        return fold(self.out_proj(y.flatten(2)), x.shape[1])

    def start(self, x: Hidden) -> KeyValueCache:
        none = x.new_zeros(len(x), self.kv_heads, 0, self.config.head_dim)
        length = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return KeyValueCache(Room(none, none), length, longest=0, even=True)

    def denoise(self, x: Hidden, cache: KeyValueCache) -> Hidden:
        return self._beside(x, cache)[0]

    def resume(self, x: Hidden, cache: KeyValueCache) -> tuple[Hidden, KeyValueCache]:
        return self.commit(x, cache)

    def commit(
        self, x: Hidden, cache: KeyValueCache, rows: Bool[Tensor, "B"] | None = None
    ) -> tuple[Hidden, KeyValueCache]:
        y, room = self._beside(x, cache)
        return y, cache.after(room, x.shape[1], rows)

    def prefill(self, x: Hidden, count: int, keep: Int[Tensor, "N"]) -> tuple[Hidden, KeyValueCache]:
        size, x = x.shape[1], unfold(x, count)
        q, k, v = self._heads(x, self._table(torch.arange(x.shape[1], device=x.device), x))
        y = over_clean(q, k, v, Chunks.of(BlockPattern(count, size, self.config.causal), x.device, q.dtype))
        room = Room(k.transpose(1, 2), v.transpose(1, 2)).moved(x.shape[1], x.shape[1] + size)
        return fold(self.out_proj(y.flatten(2)), size), KeyValueCache.of(room, keep * size)

    def _beside(self, x: Hidden, cache: KeyValueCache) -> tuple[Hidden, Room]:
        """Outputs for a block that follows what is cached, and the room in which it does."""
        end, key = cache.longest + x.shape[1], (x.shape[1], x.dtype, torch.is_inference_mode_enabled())
        if key not in cache.made:
            cache.made[key] = self._next(x, cache)
        table, mask = cache.made[key]
        q, k, v = self._heads(x, table)
        room = cache.beside(k, v)
        return self.out_proj(attend(q, *room.until(end), mask).flatten(2)), room

    def _next(self, x: Hidden, cache: KeyValueCache) -> tuple[Table, Bool[Tensor, "#B 1 S T"] | None]:
        """Angles of the block that comes next, and what it sees, None where that is everything."""
        size, place = x.shape[1], cache.place(x.shape[1])
        if cache.even and (size == 1 or not self.config.causal):
            return self._table(place, x), None
        last = place if self.config.causal else place[..., -1:].expand_as(place)
        seen = torch.arange(cache.longest + size, device=x.device) <= last.unsqueeze(-1)
        return self._table(place, x), seen.view(-1, 1, size, cache.longest + size)

    def _heads(
        self, x: Hidden, table: Table
    ) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B L K P"], Float[Tensor, "B L K P"]]:
        """Turned queries and keys, and values."""
        parts = self.qkv(x).unflatten(-1, (-1, self.config.head_dim))
        q_and_k, v = parts.split((self.heads + self.kv_heads, self.kv_heads), 2)
        q, k = rotate(self._normed(q_and_k), table).split((self.heads, self.kv_heads), 2)
        return q, k, v

    def _table(self, position: Int[Tensor, "*B L"], x: Tensor) -> Table:
        """Rotary angles at those positions, made in float32 or better."""
        precision = torch.promote_types(x.dtype, torch.float32)
        return rotary_at(position, self.config.head_dim, self.config.rope_base, precision)

    def _normed(self, x: Float[Tensor, "B L H P"]) -> Float[Tensor, "B L H P"]:
        """Queries and keys over their root mean squares."""
        if self.q_norm is None:
            return x
        scale = torch.cat((self.q_norm.expand(self.heads, -1), self.k_norm.expand(self.kv_heads, -1)))
        return F.rms_norm(x, x.shape[-1:], eps=1e-5) * scale.to(x.dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Precision of products with x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
