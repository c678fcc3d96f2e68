"""torch: the chunked scan in plain PyTorch, for any device.

Inside a chunk of Q positions the scan is a masked matrix product; between chunks it is a recurrence over states
(Dao and Gu, arXiv 2405.21060, section 6). Heads of a group share one C B^T product. Decays are float32 or better.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from diffusion_lm.kernels.base import ScanKernel, check_groups
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class TorchConfig:
    """Nothing to set."""


class Torch(ScanKernel):
    """Matrix products per chunk, a loop over chunks."""

    def __init__(self, config: TorchConfig | None = None) -> None:
        self.config = config

    def scan(
        self,
        x: Float[Tensor, "B L H P"],
        dt: Float[Tensor, "B L H"],
        A: Float[Tensor, "H"],
        B: Float[Tensor, "B L G N"],
        C: Float[Tensor, "B L G N"],
        chunk_size: int,
    ) -> Float[Tensor, "B L H P"]:
        length, per_group = x.shape[1], check_groups(x, B)
        chunk = min(chunk_size, length)
        x, dt, B, C = (_pad(v, -length % chunk) for v in (x, dt, B, C))
        x, dt, B, C = (v.unflatten(1, (-1, chunk)) for v in (x, dt, B, C))  # [B, c, Q, ...]

        log_decay = (wide(dt) * wide(A)).transpose(2, 3).cumsum(-1)  # [B, c, H, Q], from the chunk's start
        x = (x * dt.to(x.dtype).unsqueeze(-1)).transpose(2, 3)  # [B, c, H, Q, P]
        B, C = B.transpose(2, 3), C.transpose(2, 3)  # [B, c, G, Q, N]

        y = _within_chunks(x, B, C, log_decay, per_group)
        if x.shape[1] > 1:
            y = y + _between_chunks(x, B, C, log_decay, per_group)
        return y.transpose(2, 3).flatten(1, 2)[:, :length]


def _within_chunks(x: Tensor, B: Tensor, C: Tensor, log_decay: Tensor, per_group: int) -> Float[Tensor, "B c H Q P"]:
    scores = C @ B.transpose(-1, -2)  # [B, c, G, Q, Q]
    between = log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)  # [B, c, H, Q, Q]
    size = between.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    decay = torch.exp(between.masked_fill(future, -torch.inf)).to(x.dtype)
    weights = scores.unsqueeze(3) * decay.unflatten(2, (-1, per_group))  # [B, c, G, H/G, Q, Q]
    return weights.flatten(2, 3) @ x


def _between_chunks(x: Tensor, B: Tensor, C: Tensor, log_decay: Tensor, per_group: int) -> Float[Tensor, "B c H Q P"]:
    to_end = torch.exp(log_decay[..., -1:] - log_decay).to(x.dtype)
    grouped = (x * to_end.unsqueeze(-1)).unflatten(2, (-1, per_group))  # [B, c, G, H/G, Q, P]
    added = B.transpose(-1, -2).unsqueeze(3) @ grouped  # [B, c, G, H/G, N, P]
    whole = torch.exp(log_decay[..., -1]).to(x.dtype).unflatten(2, (-1, per_group))[..., None, None]
    state, before = torch.zeros_like(added[:, 0]), []
    for index in range(added.shape[1]):
        before.append(state)
        state = whole[:, index] * state + added[:, index]
    read = (C.unsqueeze(3) @ torch.stack(before, 1)).flatten(2, 3)  # [B, c, H, Q, P]
    return read * torch.exp(log_decay).to(x.dtype).unsqueeze(-1)


def _pad(value: Tensor, amount: int) -> Tensor:
    return F.pad(value, (0, 0) * (value.dim() - 2) + (0, amount)) if amount else value
