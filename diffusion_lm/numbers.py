"""Numbers as a person reads them."""

HUGE = 1e6


def fixed(value: float, digits: int, sign: str = "") -> str:
    """`value` with so many digits behind the point, or, where that says nothing (a run that diverges), by its first
    three: ``fixed(2.5, 3) -> 2.500``, ``fixed(8.8e31, 3) -> 8.8e+31``. `sign`: ``+`` shows that of all numbers."""
    return f"{value:{sign},.{digits}f}" if abs(value) <= HUGE else f"{value:{sign}.3g}"
