"""The position-wise MLPs.

gelu: down(gelu(up(x))), GELU in its tanh form (Hendrycks and Gimpel, arXiv 1606.08415, section 2).
swiglu: down(silu(g) * v), (g, v) = up(x): three matrices, two in one product (Shazeer, arXiv 2002.05202, section 2).
"""

from typing import ClassVar

from torch import nn

from diffusion_lm.shapes import Float, Hidden, Tensor

MULTIPLE = 8
"""Of which a width that goes by an expansion is one."""


def mlp_width(d_model: int, expansion: float) -> int:
    """Hidden width: expansion * d_model, rounded down to a multiple of 8. 0 means no MLP."""
    return int(expansion * d_model) // MULTIPLE * MULTIPLE


class MLP(nn.Module):
    """down(activation(up(x)))."""

    ways_up: ClassVar[int]
    """Matrices of the size d_model x width on the way up."""

    def __init__(self, d_model: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, self.ways_up * width, bias=bias)
        self.down = nn.Linear(width, d_model, bias=bias)

    @classmethod
    def parameters_of(cls, d_model: int, width: int, bias: bool = False) -> int:
        """Parameters at those sizes; 0 without a width."""
        biases = cls.ways_up * width + d_model if bias else 0
        return (cls.ways_up + 1) * d_model * width + biases if width else 0

    def activation(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L V"]:
        """From what `up` gives to what `down` takes."""
        raise NotImplementedError

    def forward(self, x: Hidden) -> Hidden:
        return self.down(self.activation(self.up(x)))


class Gelu(MLP):
    """Two matrices around a GELU."""

    ways_up = 1

    def activation(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L V"]:
        return nn.functional.gelu(x, approximate="tanh")


class SwiGLU(MLP):
    """Three matrices: a SiLU gate on a linear value."""

    ways_up = 2

    def activation(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B L V"]:
        gate, value = x.chunk(2, -1)
        return nn.functional.silu(gate) * value


MLPS: dict[str, type[MLP]] = {"gelu": Gelu, "swiglu": SwiGLU}
