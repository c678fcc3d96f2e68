"""Blocks: a text as blocks of S tokens, left to right, p(x) = prod_b p(x_b | x_<b), with diffusion inside a block.

Block diffusion (Arriola et al., BD3-LM, arXiv 2503.09573, equations 3 and 4). Everywhere below the objectives a block
is a row of its own: the rows of a text come one after the other, B texts of L tokens being R = B L / S rows of S
tokens. A block is noised, at a time of its own: the network sees the clean blocks before it and the noisy one.
"""

from dataclasses import dataclass

import torch

from diffusion_lm.shapes import Int, Positions, Tensor, Tokens


@dataclass(frozen=True)
class Blocks:
    """What a batch of noisy blocks is told of its texts.

    tokens: the same rows, clean [R, S]; count: rows per text, n = L / S. Row b n + k is block k of text b.
    """

    tokens: Tokens
    count: int

    def to(self, device: torch.device | str) -> "Blocks":
        """The same on another device."""
        return Blocks(self.tokens.to(device), self.count)


def fold(value: Tensor, size: int) -> Tensor:
    """Texts [B, L, ...] as rows of blocks [R, S, ...]; of the same memory."""
    return value.unflatten(1, (-1, size)).flatten(0, 1)


def unfold(value: Tensor, count: int) -> Tensor:
    """Rows of blocks [R, S, ...] as texts [B, L, ...]; of the same memory."""
    return value.unflatten(0, (-1, count)).flatten(1, 2)


def block_positions(position: Positions, count: int) -> Int[Tensor, "R"]:
    """Keys of the noise of every block of some texts. [B] -> [R]

    Text p's are p n .. p n + n - 1, so that a global batch of G texts is one of G n rows to whatever counts positions.
    """
    return (position.unsqueeze(1) * count + torch.arange(count, device=position.device)).flatten()
