"""A depthwise convolution over positions that stays within a document, as shifted products.

y_i = bias + sum_k weight_k x_{i + k - before}: faster than Conv1d on a CPU, and able to look only where it may.
"""

import torch
from torch.nn import functional as F

from diffusion_lm.shapes import Float, Segment, Tensor


def convolve(
    x: Float[Tensor, "B L K"],
    weight: Float[Tensor, "K 1 W"],
    bias: Float[Tensor, "K"] | None,
    before: int,
    segment: Segment | None = None,
    left: Float[Tensor, "B past K"] | None = None,
    mirrored: bool = False,
) -> Float[Tensor, "B L K"]:
    """The first tap reads `before` positions earlier, the last W - 1 - before later; `left` is what came before x.
    Mirrored, the taps are read from the last to the first."""
    length, width = x.shape[1], weight.shape[2]
    padded = F.pad(x, (0, 0, before, width - 1 - before)) if left is None else torch.cat((left, x), 1)
    taps = weight.squeeze(1).T.flip(0) if mirrored else weight.squeeze(1).T  # [W, channels]
    ids = None if segment is None else F.pad(segment + 1, (before, width - 1 - before))  # 0 is nobody's
    if ids is not None and left is not None:
        ids[:, :before] = ids[:, before : before + 1]
    y = None if bias is None else bias.to(torch.promote_types(x.dtype, bias.dtype))
    for k, tap in enumerate(taps):
        seen = padded[:, k : k + length]
        if ids is not None and k != before:
            seen = seen * (_same_run(ids, segment + 1, k, before)).unsqueeze(-1)
        y = seen * tap if y is None else torch.addcmul(y, seen, tap)
    return y.to(x.dtype)


def _same_run(ids: Tensor, own: Tensor, k: int, before: int) -> Tensor:
    """Whether no boundary lies between every position and the one that tap k reads. [B, L]"""
    length, step = own.shape[1], 1 if k > before else -1
    same = torch.ones_like(own, dtype=torch.bool)
    for place in range(before + step, k + step, step):
        same = same & (ids[:, place : place + length] == own)
    return same
