"""How far a likelihood is from the least there is: the entropy rate of data that were drawn from a known source.

H = E[-ln p(x)] / L nats per token, so for every model q  E[-ln q(x)] / L - H = KL(p || q) / L >= 0; a bound adds its
slack. Both are means over sequences: those that are scored may be likelier than the average, and a perfect model is
below H then, by a standard error or two. Imports no torch: reports of studies use it.
"""

from collections.abc import Mapping
from typing import Any

ENTROPY_RATE, ABOVE = "entropy_rate", "above_entropy_rate"


def above_floor(nll: float | None, facts: Mapping[str, Any]) -> float | None:
    """Nats per token above the entropy rate that `facts` name; None without one, or without a bound."""
    rate = facts.get(ENTROPY_RATE)
    return None if rate is None or nll is None else nll - rate


def floor_facts(nll: float | None, entropy_rate: float | None) -> dict[str, float | None]:
    """What is written of data of known entropy; nothing for other data."""
    if entropy_rate is None:
        return {}
    return {ENTROPY_RATE: entropy_rate, ABOVE: above_floor(nll, {ENTROPY_RATE: entropy_rate})}
