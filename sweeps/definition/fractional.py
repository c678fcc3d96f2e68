"""`design: {name: fractional, ...}`: which cells of a study are visited, and what that lets one estimate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition import arrays

Axes = Mapping[str, Sequence[Any]]
ROMAN = {2: "III", 3: "IV"}


@dataclass(frozen=True, slots=True)
class Fraction:
    """`runs` of all cells; `generators` say of two-level factors whose product they are, else they are chosen."""

    runs: int
    generators: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        words = {key: list(word) for key, word in self.generators.items()}
        return {"name": "fractional", "runs": self.runs, **({"generators": words} if words else {})}

    def cells(self, axes: Axes) -> list[dict[str, Any]]:
        """The cells visited, of all combinations of `axes` (``{factor: levels}``). Raises `UserError`."""
        factors = self._factors(axes)
        levels = self._levels(axes)
        words = tuple(tuple(map(factors.index, self.generators[key])) for key in factors if key in self.generators)
        try:
            array = arrays.fraction(levels, self.runs, words or None)
        except ValueError as error:
            cells = " x ".join(f"{len(values)} {key}" for key, values in axes.items())
            raise UserError(f"design: {self.runs} runs of {cells} leave {error}; take another number of runs"
                            f"{' or other generators' if words else ''}") from None
        rows = [{key: axes[key][level] for key, level in zip(factors, row)} for row in array.tolist()]
        order = {key: {repr(value): place for place, value in enumerate(values)} for key, values in axes.items()}
        cells = [{key: row.get(key, values[0]) for key, values in axes.items()} for row in rows]
        return sorted(cells, key=lambda cell: [order[key][repr(value)] for key, value in cell.items()])

    def words(self, axes: Axes) -> list[str]:
        """What the design can tell, in lines for a person."""
        self.cells(axes)
        factors, levels = self._factors(axes), self._levels(axes)
        words = tuple(tuple(map(factors.index, self.generators[key])) for key in factors if key in self.generators)
        array = arrays.fraction(levels, self.runs, words or None)
        strength = arrays.strength(array, levels)
        kind = f"orthogonal, resolution {ROMAN.get(strength, 'V or more')}" if strength > 1 else (
            "balanced, not orthogonal: main effects can be told apart, with wider intervals than those of a complete "
            "design with as many runs")
        lines = [f"fractional design: {self.runs} of {_product(levels)} cells, {kind}"]
        mixed = arrays.aliases(array, levels)
        lines += [f"the main effect of {factors[factor]} is mixed with {_pairs(factors, pairs)}"
                  for factor, pairs in mixed.items()]
        if not mixed:
            lines.append("no main effect is mixed with an interaction of two factors")
        return lines

    def _factors(self, axes: Axes) -> list[str]:
        """Those that vary, the ones with a generator last."""
        varying = [key for key, values in axes.items() if len(values) > 1]
        return [key for key in varying if key not in self.generators] + [k for k in varying if k in self.generators]

    def _levels(self, axes: Axes) -> tuple[int, ...]:
        return tuple(len(axes[key]) for key in self._factors(axes))

    def check(self, axes: Axes) -> None:
        """Refuse what cannot be made of the study's factors. Raises `UserError`."""
        varying = self._factors(axes)
        for key, word in self.generators.items():
            for name in (key, *word):
                if name not in varying:
                    raise unknown("design: generators: no factor", name, varying)
                if len(axes[name]) != 2:
                    raise UserError(f"design: generators: {name} has {len(axes[name])} levels, expected 2; leave "
                                    "`generators` out, and a nearly orthogonal array is found")
                if name != key and name in self.generators:
                    raise UserError(f"design: generators: {key}: {name} is a product itself; expected a product of "
                                    "factors without a generator")
        free = len(varying) - len(self.generators)
        if self.generators and self.runs != 2**free:
            raise UserError(f"design: runs: got {self.runs} with {len(self.generators)} generators of {len(varying)} "
                            f"factors, expected {2**free}, all combinations of the others")
        self.cells(axes)


def _product(levels: Sequence[int]) -> int:
    found = 1
    for count in levels:
        found *= count
    return found


def _pairs(factors: Sequence[str], pairs: Sequence[tuple[int, int]], shown: int = 4) -> str:
    text = ", ".join(f"{factors[a]} x {factors[b]}" for a, b in pairs[:shown])
    return text + (f" and {len(pairs) - shown} more interactions" if len(pairs) > shown else "")


def parse(key: str, raw: Any) -> Fraction | None:
    """The `design` of a study; None for the complete one. Raises `UserError`."""
    if raw in ("factorial", {"name": "factorial"}):
        return None
    if not isinstance(raw, Mapping) or raw.get("name") != "fractional":
        raise UserError(f"{key}: got {raw!r}, expected factorial, or {{name: fractional, runs: 8}}, perhaps with "
                        "generators")
    for name in raw:
        if name not in ("name", "runs", "generators"):
            raise unknown(f"{key}: unknown key", str(name), ("name", "runs", "generators"))
    runs, words = raw.get("runs"), raw.get("generators") or {}
    if not isinstance(runs, int) or isinstance(runs, bool) or runs < 2:
        raise UserError(f"{key}: runs: got {runs!r}, expected a whole number of cells, from 2 on")
    if not isinstance(words, Mapping) or not all(
            isinstance(word, list) and len(set(map(str, word))) == len(word) > 1 for word in words.values()):
        raise UserError(f"{key}: generators: got {words!r}, expected for a factor the two or more whose product it is, "
                        "for example {dropout: [arm, width, depth]}")
    return Fraction(runs, {str(name): tuple(map(str, word)) for name, word in words.items()})
