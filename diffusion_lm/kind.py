"""What kind of number a likelihood is. Numbers of one kind are compared; those of different kinds are not.

A kind is the process and what the number is over: `exact`, `continuous time`, `32 steps`, or `no bound`, and whether
the model is told where documents end; of exact numbers it is the latter alone. A bound of few steps may be far above
that of many, and bounds of different processes have different slack, so that the order of two kinds says nothing about
models. Imports no torch: reports of studies read kinds from result.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

EXACT, CONTINUOUS, NO_BOUND, UNKNOWN = "exact", "continuous time", "no bound", "not recorded"
GIVEN_ENDS = ", document ends given"
CACHE = "cache"
"""In `depends_on`, of a model that writes with a cache that is not exact: what the cache is."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Exact numbers are of one kind, whatever the process: each is -ln p(x) of its model."""

    process: str
    over: str
    depends_on: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the number beside model and data: num_steps, schedule, log-SNR range, the noise's mixture."""

    def __str__(self) -> str:
        return f"{self.process}, {self.over}" if self.over != UNKNOWN else self.process

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and self._compared == other._compared

    def __hash__(self) -> int:
        return hash(self._compared)

    def compares(self, other: "Kind") -> bool:
        """Whether a difference between the two numbers is shown: inside a kind, and (with a caution) between the exact
        number and the bound that one process has at different block sizes."""
        ends = {self.over, other.over} == {EXACT, CONTINUOUS}
        return self == other or (self.process == other.process and ends)

    @property
    def _compared(self) -> tuple[str, str]:
        return ("" if self.exact else self.process, self.over)

    def given_ends(self, isolated: bool) -> "Kind":
        """This kind, where `isolated` documents are: text whose ends the model is told, which is less to be coded."""
        return replace(self, over=f"{self.over}{GIVEN_ENDS}") if isolated else self

    @property
    def exact(self) -> bool:
        """Whether the number is the negative log-likelihood itself; any other is an upper bound on it."""
        return self.over in (EXACT, EXACT + GIVEN_ENDS)

    @property
    def caution(self) -> str | None:
        """What is to be said beside the number of a model whose cache is not exact."""
        return cache_caution(self.depends_on.get(CACHE, EXACT))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in result.json and in the manifest of an evaluation."""
        return {"process": self.process, "over": self.over, "depends_on": dict(self.depends_on)}

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> "Kind":
        """Of a run, from its result.json; older ones know the process at most."""
        found = result.get("kind") or {"process": result.get("process", ""), "over": UNKNOWN}
        return cls(found["process"], found["over"], found.get("depends_on", {}))


def approximate(why: str) -> str:
    """A cache that is not exact, and what makes it so."""
    return f"approximate ({why})"


def cache_caution(cache: str) -> str | None:
    """What is to be said of likelihoods and texts of one model; None where its cache is exact."""
    if cache == EXACT:
        return None
    return f"the cache is {cache}: the likelihood is of the model without it, text is written with it"


def steps(count: int) -> str:
    """What the bound of a chain of `count` steps is over."""
    return "1 step" if count == 1 else f"{count} steps"
