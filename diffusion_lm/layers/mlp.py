"""The position-wise MLP: two matrices around a GELU (tanh form)."""

from torch import nn

from diffusion_lm.shapes import Hidden


def mlp_width(d_model: int, expansion: float) -> int:
    """Hidden width: expansion * d_model, rounded down to a multiple of 8. 0 means no MLP."""
    return int(expansion * d_model) // 8 * 8


class MLP(nn.Module):
    """down(gelu(up(x))), without biases."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Hidden) -> Hidden:
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))
