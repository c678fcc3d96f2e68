"""benchmark denoiser: time per token of denoisers of equal size, by length.

The first denoiser has `layers` blocks with its own MLP; the others get the depth and the MLP width that give them as
many parameters (`sizing.fitted`). What is timed is the trunk, without the token table and the head, which are the same
for all: its forward pass, or the forward and backward passes of training. A call holds `tokens` positions, cut into
rows of a length, or one row where the length is larger. All denoisers and lengths take turns in one process.

Beside the time on the wall stands the processor time of all threads, which leaves out the waiting for cores that other
jobs hold: `clock` says which of them the table and the ratios are of.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_lm.benchmark.measure import PRECISION, both_clocks, check_settings, surroundings, write_measured
from diffusion_lm.benchmark.models import matched
from diffusion_lm.config import build, choice, config_class, variants
from diffusion_lm.denoisers.base import Denoiser
from diffusion_lm.errors import UserError, unknown
from diffusion_lm.noisy import Noisy

COLUMNS = (
    *("denoiser", "n_layers", "mlp_width", "parameters", "length", "rows"),
    *("seconds", "processor_seconds", "microseconds_per_token"),
)


@dataclass(kw_only=True, slots=True)
class DenoiserTimesConfig:
    denoisers: tuple[str, ...] = ("transformer", "mamba")
    """The first sets the size, and is what the others are compared with."""
    lengths: tuple[int, ...] = (1024, 4096, 16384, 32768)
    attention_limit: int = 0
    """Longest length at which denoisers with attention are run; 0: all of them."""
    layers: int = 4
    """Blocks of the first denoiser."""
    d_model: int = 512
    tokens: int = 32768
    """Positions in a call."""
    mode: str = choice("forward", "training")
    clock: str = choice("wall", "processor")
    repeats: int = 3
    """Rounds; the median counts."""
    threads: int = 0
    """Of torch on the CPU; 0 is torch's own choice."""
    precision: str = choice("float32", "bfloat16")
    device: str = choice("cpu", "cuda")

    def __post_init__(self) -> None:
        check_settings(self, "attention_limit")
        for name in self.denoisers:
            if name not in variants("denoisers"):
                raise unknown("denoisers: no variant", name, variants("denoisers"))

    def rows(self, length: int) -> int:
        """Rows of a call."""
        return max(1, self.tokens // length)

    def runs(self, denoiser: Any, length: int) -> bool:
        """Whether a denoiser is run at a length."""
        attends = any(mixer.family() == "attention" for mixer in denoiser.mixers())
        return not (attends and 0 < self.attention_limit < length)


def sizes(config: DenoiserTimesConfig) -> dict[str, Any]:
    """The denoisers' configs, with as many parameters as the first one's. Raises `UserError` where none fits."""
    first, *names = config.denoisers
    own = config_class("denoisers", first)(n_layers=config.layers)
    others = matched(own, [config_class("denoisers", name)() for name in names], config.d_model)
    return dict(zip(config.denoisers, [own, *others], strict=True))


def check(config: DenoiserTimesConfig) -> None:
    """Raise `UserError` for a denoiser that d_model does not fit, and for one that no length is short enough for."""
    for name in config.denoisers:
        usual = config_class("denoisers", name)()
        try:
            with torch.device("meta"):  # no memory
                build(usual, config.d_model)
        except ValueError as error:
            raise UserError(f"benchmark denoiser: d_model: got {config.d_model}: '{name}' refuses: {error}") from None
        if not any(config.runs(usual, length) for length in config.lengths):
            raise UserError(
                f"benchmark denoiser: attention_limit: got {config.attention_limit}, which leaves '{name}' none of the "
                f"lengths {', '.join(map(str, config.lengths))}; expected {min(config.lengths)} at least, or 0"
            )


def call(config: DenoiserTimesConfig, denoiser: Denoiser, length: int) -> Callable[[int], None]:
    """What is timed: one call of a denoiser, on random activations that are made here."""
    rows, precision = config.rows(length), PRECISION[config.precision]
    training = config.mode == "training"
    generator = torch.Generator().manual_seed(length)
    hidden = torch.randn(rows, length, config.d_model, generator=generator).to(config.device)
    ids = torch.zeros(rows, length, dtype=torch.long, device=config.device)
    noisy = Noisy(ids, torch.full((rows, 1), 0.5, dtype=torch.float64, device=config.device))

    def step(number: int) -> None:
        with torch.set_grad_enabled(training), torch.autocast(config.device, precision, enabled=precision is not None):
            loss = denoiser(hidden, noisy).float().square().mean()
        if training:
            loss.backward()
            denoiser.zero_grad()

    return step


def measure(config: DenoiserTimesConfig) -> dict[str, Any]:
    """Seconds of every denoiser at every length, per token and relative to the first, and what they depend on.

    Raises `UserError` for what cannot be measured.
    """
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    load, chosen = os.getloadavg()[0], sizes(config)
    built = {name: build(each, config.d_model).to(config.device) for name, each in chosen.items()}
    for denoiser in built.values():
        call(config, denoiser, min(config.lengths))(0)
    cases = [(name, length) for length in config.lengths for name in built if config.runs(chosen[name], length)]
    steps = {(name, length): call(config, built[name], length) for name, length in cases}
    seconds = both_clocks(steps, config.repeats, config.device, uncounted=0)
    times = [
        _row(config, name, chosen[name], length, {clock: of[name, length] for clock, of in seconds.items()})
        for name, length in cases
    ]
    return {
        "benchmark": "denoiser",
        **{name: getattr(config, name) for name in ("d_model", "mode", "clock", "precision", "repeats", "device")},
        **surroundings(config.device),
        "load": [load, os.getloadavg()[0]],
        "times": times,
        "growth": _growth(times, config.denoisers),
        "times_faster": {name: _times_faster(times, config.denoisers[0], name) for name in config.denoisers[1:]},
    }


def _row(config: DenoiserTimesConfig, name: str, chosen: Any, length: int, seconds: dict[str, float]) -> dict[str, Any]:
    """A line of times.csv. seconds: by clock."""
    return {
        "denoiser": name,
        "n_layers": chosen.n_layers,
        "mlp_width": chosen.width(config.d_model),
        "parameters": chosen.parameters(config.d_model),
        "length": length,
        "rows": config.rows(length),
        "seconds": seconds["wall"],
        "processor_seconds": seconds["processor"],
        "microseconds_per_token": 1e6 * seconds[config.clock] / (config.rows(length) * length),
    }


def _per_token(times: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {row["length"]: row["microseconds_per_token"] for row in times if row["denoiser"] == name}


def _growth(times: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Time per token at the longest over that at the shortest of the lengths at which all denoisers were run; where
    that is one length, or none, nothing is measured."""
    own = {name: _per_token(times, name) for name in names}
    common = sorted(set.intersection(*map(set, own.values())))
    if len(common) < 2:
        return {"lengths": common, "times": dict.fromkeys(names)}
    first, last = common[0], common[-1]
    return {"lengths": [first, last], "times": {name: value[last] / value[first] for name, value in own.items()}}


def _times_faster(times: list[dict[str, Any]], first: str, name: str) -> dict[int, float]:
    """Time per token of the first over that of another, by length, where both were run."""
    one, other = _per_token(times, first), _per_token(times, name)
    return {length: one[length] / other[length] for length in one if length in other}


def table(found: dict[str, Any]) -> str:
    """The numbers, and in the first lines what they depend on."""
    names = list(found["growth"]["times"])
    others = list(found["times_faster"])
    sized = {row["denoiser"]: row for row in found["times"]}
    lines = [
        f"{found['mode']}, microseconds per token ({found['clock']} clock), d_model {found['d_model']}, "
        f"{found['precision']}, median of {found['repeats']}; {found['machine']}, torch {found['torch']}, "
        f"{found['threads']} threads, load {found['load'][0]:.1f} to {found['load'][1]:.1f}, commit "
        f"{found.get('git', 'unknown')}",
        *(
            f"{name}: {row['n_layers']} blocks, MLP {row['mlp_width']} wide, {row['parameters']:,} parameters"
            for name, row in sized.items()
        ),
        "",
        "| length | " + " | ".join([*names, *(f"{name}, times faster" for name in others)]) + " |",
        "|---" * (1 + len(names) + len(others)) + "|",
    ]
    for length in sorted({row["length"] for row in found["times"]}):
        own = [_per_token(found["times"], name).get(length) for name in names]
        ratios = [found["times_faster"][name].get(length) for name in others]
        cells = [f"{v:.1f}" if v else "not run" for v in own] + [f"{v:.2f}" if v else "" for v in ratios]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _said(found["growth"])])


def _said(growth: dict[str, Any]) -> str:
    if len(growth["lengths"]) < 2:
        return "growth with the length: not measured, which takes two lengths at which all were run"
    shortest, longest = growth["lengths"]
    values = ", ".join(f"{name} {value:.2f}" for name, value in growth["times"].items())
    return f"time per token at {longest:,} over that at {shortest:,}: {values}"


def write(found: dict[str, Any], folder: Path) -> None:
    """table.md, times.csv, times.png and everything as JSON."""
    write_measured(found, folder, table(found), COLUMNS, _figure(found))


def _figure(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure  # the library takes a second to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in found["growth"]["times"]:
        own = _per_token(found["times"], name)
        axes.plot(list(own), list(own.values()), marker="o", label=name)
    lengths = sorted({row["length"] for row in found["times"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set(
        xlabel="length, tokens",
        ylabel=f"microseconds per token, {found['mode']}, {found['clock']} clock",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
