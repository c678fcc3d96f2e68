"""Tensor aliases for signatures. B rows, L positions, V symbols, D channels, H heads, P head_dim, N d_state, G groups.

They are checked in the tests by jaxtyping's import hook (``--jaxtyping-packages=diffusion_lm,beartype.beartype``),
never by decorators, which would break ``torch.compile``.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "B L"]
"""Token ids."""
Hidden = Float[Tensor, "B L D"]
"""Activations of the trunk."""
State = Int[Tensor, "B L"] | Float[Tensor, "B L D"]
"""What a process corrupts: ids (discrete) or embedded tokens (Gaussian)."""
Logits = Float[Tensor, "B L V"]
"""Unnormalised log-probabilities, float32."""
Given = Bool[Tensor, "B L"]
"""Clean positions that are not to be predicted."""
Segment = Int[Tensor, "B L"]
"""Document of each position; 0 is padding."""
Times = Float[Tensor, "B #L"]
"""Times in [0, 1], one per row or one per position, float64."""
Rows = Float[Tensor, "B"]
"""One number per row."""
Positions = Int[Tensor, "B"]
"""Places in the training order; the key of a row's noise."""

__all__ = [
    "Bool",
    "Float",
    "Given",
    "Hidden",
    "Int",
    "Logits",
    "Positions",
    "Rows",
    "Segment",
    "State",
    "Tensor",
    "Times",
    "Tokens",
]
