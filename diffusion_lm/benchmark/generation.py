"""benchmark generation: time per generated token against the length of the text, for every way to write it.

Three ways, all models of one size: block by block from a cache (`steps` denoising steps and a commit per block), the
same models over the whole text at once (as many steps per `block_size` tokens, each over all L), and autoregressive
models from a cache, one token per call. Sampling is part of it, tokenisation is not. Weights are random.

The headline, `milliseconds_per_token`: with a cache, the time of the last block, or of the last `block_size` tokens,
of a text of L tokens, the cache having been filled with what comes before in one pass. It is measured at every length,
and where the cost grows it is more than the mean over the text, so that growth is not averaged away. The whole text at
once has no last block: there it is steps x time per step / L, of which a few steps are timed, all being equal in cost.
Beside it, up to `whole_limit`, stands the time of the whole text, really written from the first token to the last, over
its tokens. All arms and lengths take turns in one process.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import torch

from diffusion_lm.benchmark.decoders import BlockWriter, CachedWriter, Stretch, Timed, TokenWriter, WholeTextStep
from diffusion_lm.benchmark.measure import PRECISION, both_clocks, check_settings, surroundings, write_measured
from diffusion_lm.benchmark.models import causal, check_names, first_of, matched, model_of
from diffusion_lm.config import choice, config_class
from diffusion_lm.model import DenoisingModel
from diffusion_lm.shapes import Tokens

BLOCKS, WHOLE, TOKENS = "blocks", "whole text", "autoregressive"
COLUMNS = (
    *("arm", "n_layers", "mlp_width", "parameters", "length", "calls", "seconds_timed", "processor_seconds_timed"),
    *("tokens_timed", "milliseconds_per_token", "whole_milliseconds_per_token", "cache_bytes"),
)


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    denoisers: tuple[str, ...] = ("transformer", "mamba", "hybrid")
    """Run block by block and over the whole text; the first sets the size."""
    autoregressive: tuple[str, ...] = ("transformer", "mamba")
    """Run token by token, with causal mixers; may be none."""
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    block_size: int = 64
    steps: int = 8
    """Denoising steps per block, and per as many tokens of a whole text."""
    full_limit: int = 0
    """Longest length at which the whole text is denoised at once; 0: all of them."""
    whole_limit: int = 512
    """Longest text that is also written from start to end from a cache; 0: none."""
    layers: int = 8
    """Blocks of the first denoiser."""
    d_model: int = 512
    vocabulary: int = 256
    rows: int = 1
    """Texts at a time."""
    clock: str = choice("wall", "processor")
    repeats: int = 5
    """Rounds; the median counts."""
    full_repeats: int = 2
    """Rounds in which steps of whole texts are timed, which take long."""
    threads: int = 0
    """Of torch on the CPU; 0 is torch's own choice."""
    precision: str = choice("float32", "bfloat16")
    device: str = choice("cpu", "cuda")

    def __post_init__(self) -> None:
        check_settings(self, "full_limit", "whole_limit")
        check_names("denoisers", self.denoisers)
        check_names("autoregressive", self.autoregressive)
        if len(self.lengths) != len(set(self.lengths)):
            raise ValueError(f"lengths: got {self._listed()}, expected each length once")
        for length in self.lengths:
            if length % self.block_size:
                raise ValueError(f"lengths: got {length}, expected a multiple of block_size {self.block_size}")
        if self.full_limit and self.full_limit < min(self.lengths):
            raise ValueError(
                f"full_limit: got {self.full_limit}, which leaves the whole-text arms none of the lengths "
                f"{self._listed()}; expected {min(self.lengths)} at least, or 0 for all"
            )

    def _listed(self) -> str:
        return ", ".join(map(str, self.lengths))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model and its way to write. writer: None where that is the whole text at once."""

    denoiser: Any
    model: DenoisingModel
    writer: CachedWriter | None = None


def arms(config: GenerationConfig) -> dict[str, Arm]:
    """Every arm by its name, of equally many parameters. Raises `UserError` where a denoiser cannot have them."""
    first = first_of(config.denoisers[0], config.layers)
    others = [config_class("denoisers", name)() for name in config.denoisers[1:]]
    ahead = [causal(config_class("denoisers", name)()) for name in config.autoregressive]
    sized = [first, *matched(first, [*others, *ahead], config.d_model)]
    found, at_once = {}, {}
    torch.manual_seed(0)
    for name, denoiser in zip(config.denoisers, sized, strict=False):
        model = _model(config, denoiser, "masked")
        writer = BlockWriter(model, config.block_size, config.steps)
        found[f"{name}, {BLOCKS}"] = Arm(denoiser=denoiser, model=model, writer=writer)
        at_once[f"{name}, {WHOLE}"] = Arm(denoiser=denoiser, model=model)
    for name, denoiser in zip(config.autoregressive, sized[len(config.denoisers) :], strict=True):
        model = _model(config, denoiser, "left_to_right")
        writer = TokenWriter(model, config.block_size)
        found[f"{name}, {TOKENS}"] = Arm(denoiser=denoiser, model=model, writer=writer)
    return found | at_once


def _model(config: GenerationConfig, denoiser: Any, process: str) -> DenoisingModel:
    model = model_of(denoiser, process, config.d_model, config.vocabulary, config.device)
    return model.requires_grad_(False)


def cases(config: GenerationConfig, chosen: dict[str, Arm]) -> dict[tuple[str, int], Timed]:
    """What is timed, by arm and length; the caches are filled here."""
    found: dict[tuple[str, int], Timed] = {}
    for length in config.lengths:
        text = some_text(config, length - config.block_size)
        for name, arm in chosen.items():
            if arm.writer is not None:
                found[name, length] = Stretch(arm.writer, arm.writer.filled(text))
            elif not 0 < config.full_limit < length:
                steps = config.steps * length // config.block_size
                found[name, length] = WholeTextStep(arm.model, config.rows, length, steps, config.device)
    return found


def some_text(config: GenerationConfig, length: int) -> Tokens:
    """Random ids [rows, length]."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(config.vocabulary, (config.rows, length), generator=generator)
    return ids.to(config.device)


@torch.no_grad()
def measure(config: GenerationConfig) -> dict[str, Any]:
    """Time per token and bytes of the cache of every arm at every length, growth, crossovers, and what they depend on.

    Raises `UserError` for what cannot be measured.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    precision, load, chosen = PRECISION[config.precision], os.getloadavg()[0], arms(config)
    with torch.autocast(config.device, precision, enabled=precision is not None):
        times = _timed(config, chosen)
    names = (
        "block_size",
        "steps",
        "rows",
        "d_model",
        "vocabulary",
        "clock",
        "precision",
        "repeats",
        "full_repeats",
        "device",
    )
    return {
        "benchmark": "generation",
        **{name: getattr(config, name) for name in names},
        **surroundings(config.device),
        "load": [load, os.getloadavg()[0]],
        "arms": list(chosen),
        "times": times,
        "growth": {name: growth(by_length(times, name)) for name in chosen},
        "crossovers": crossovers({name: by_length(times, name) for name in chosen}),
    }


def _timed(config: GenerationConfig, chosen: dict[str, Arm]) -> list[dict[str, Any]]:
    """The lines of times.csv."""
    timed = cases(config, chosen)
    cached = [case for case in timed if chosen[case[0]].writer is not None]
    for (_, length), step in timed.items():
        if length == min(config.lengths):
            step.ready()
            step(0)

    def rounds(case: tuple[str, int]) -> int:
        return config.repeats if case in cached else min(config.repeats, config.full_repeats)

    seconds = both_clocks(timed, rounds, config.device, uncounted=0, ready=lambda case: timed[case].ready())
    size = {case: timed[case].fork.cache.nbytes() for case in cached}
    whole = {
        (name, length): partial(_write_whole, config, chosen[name].writer, length)
        for name, length in cached
        if length <= config.whole_limit
    }
    once = both_clocks(whole, 1, config.device, uncounted=0)[config.clock]
    return [
        _row(config, case, chosen[case[0]], {clock: of[case] for clock, of in seconds.items()}, once.get(case))
        | {"cache_bytes": size.get(case)}
        for case in timed
    ]


def _write_whole(config: GenerationConfig, writer: CachedWriter, length: int, number: int) -> None:
    writer.whole(config.rows, length, config.device)


def _row(
    config: GenerationConfig,
    case: tuple[str, int],
    arm: Arm,
    seconds: dict[str, float],
    whole_seconds: float | None,
) -> dict[str, Any]:
    """A line of times.csv without the cache. seconds: by clock; calls: of the network, for a text of that length;
    tokens_timed: those that `seconds` wrote, the share of a step where it is one of a whole text."""
    name, length = case
    steps = config.steps * length // config.block_size
    calls = steps if arm.writer is None else arm.writer.calls(length)
    tokens = config.rows * (length / steps if arm.writer is None else config.block_size)
    return {
        "arm": name,
        "n_layers": arm.denoiser.n_layers,
        "mlp_width": arm.denoiser.width(config.d_model),
        "parameters": arm.denoiser.parameters(config.d_model),
        "length": length,
        "calls": calls,
        "seconds_timed": seconds["wall"],
        "processor_seconds_timed": seconds["processor"],
        "tokens_timed": tokens,
        "milliseconds_per_token": 1e3 * seconds[config.clock] / tokens,
        "whole_milliseconds_per_token": None if whole_seconds is None else 1e3 * whole_seconds / (config.rows * length),
    }


def by_length(times: list[dict[str, Any]], arm: str, column: str = "milliseconds_per_token") -> dict[int, Any]:
    """A column of one arm by length, where it has a value."""
    return {row["length"]: row[column] for row in times if row["arm"] == arm and row[column] is not None}


def growth(values: dict[int, float]) -> float | None:
    """The largest over the smallest; None for fewer than two."""
    return max(values.values()) / min(values.values()) if len(values) > 1 else None


def crossovers(times: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """Lengths from which one arm is faster than another that was faster before, by length; both on straight lines in
    the logarithms of length and time between the lengths at which both were measured."""
    found = []
    for faster, slower in permutations(times, 2):
        common = sorted(set(times[faster]) & set(times[slower]))
        for low, high in pairwise(common):
            before, after = (math.log(times[faster][at] / times[slower][at]) for at in (low, high))
            if before > 0 >= after:
                length = low * (high / low) ** (before / (before - after))
                found.append({"faster": faster, "slower": slower, "length": length})
    return sorted(found, key=lambda one: one["length"])


def table(found: dict[str, Any]) -> str:
    """The numbers, and in the first lines what they depend on."""
    times, sized = found["times"], {row["arm"]: row for row in found["times"]}
    full = min(found["repeats"], found["full_repeats"])
    lines = [
        f"generation, milliseconds per token ({found['clock']} clock), blocks of {found['block_size']}, "
        f"{found['steps']} steps per block, {found['rows']} texts at a time, d_model {found['d_model']}, vocabulary "
        f"{found['vocabulary']}, {found['precision']}, median of {found['repeats']}; {found['machine']}, torch "
        f"{found['torch']}, {found['threads']} threads, load {found['load'][0]:.1f} to {found['load'][1]:.1f}, commit "
        f"{found.get('git', 'unknown')}",
        *(
            f"{name}: {row['n_layers']} layers, MLP {row['mlp_width']} wide, {row['parameters']:,} parameters"
            for name, row in sized.items()
        ),
        "",
        "At a length: of the last block, or as many tokens one by one, after a cache filled in one pass; "
        f"{WHOLE}: steps x time per step over the length, of which {full} are timed. They are "
        f"{found['steps']} x L / {found['block_size']} steps over L tokens each, so that the time per token grows "
        "with L by construction, whatever the mixer.",
        *_columns(times, found["arms"], "milliseconds_per_token", ".3f"),
    ]
    cached = [name for name in found["arms"] if sized[name]["cache_bytes"] is not None]
    if any(row["whole_milliseconds_per_token"] is not None for row in times):
        lines += ["", "The whole text written from a cache, from its first token to its last, once:"]
        lines += _columns(times, cached, "whole_milliseconds_per_token", ".3f")
    lines += ["", "Bytes of the cache:", *_columns(times, cached, "cache_bytes", ",")]
    return "\n".join([*lines, "", *_said(found)])


def _columns(times: list[dict[str, Any]], names: Sequence[str], column: str, form: str) -> list[str]:
    """A table with a line per length and a column per arm."""
    values = {name: by_length(times, name, column) for name in names}
    lines = ["| length | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for length in sorted(set().union(*values.values())):
        cells = [format(values[name][length], form) if length in values[name] else "not run" for name in names]
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return lines


def _said(found: dict[str, Any]) -> list[str]:
    grown = ", ".join(f"{name} {value:.2f}" for name, value in found["growth"].items() if value is not None)
    lines = [f"largest over smallest time per token: {grown or 'not measured, which takes two lengths'}", "crossovers:"]
    lines += [
        f"* {one['faster']} is faster than {one['slower']} from about {one['length']:,.0f} tokens on"
        for one in found["crossovers"]
    ]
    return lines if found["crossovers"] else [*lines[:-1], "crossovers: none among these lengths"]


def write(found: dict[str, Any], folder: Path) -> None:
    """table.md, times.csv, times.png and everything as JSON."""
    write_measured(found, folder, table(found), COLUMNS, _figure(found))


def _figure(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure  # the library takes a second to import

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    denoisers = list(dict.fromkeys(name.partition(", ")[0] for name in found["arms"]))
    for name in found["arms"]:
        values = by_length(found["times"], name)
        denoiser, _, way = name.partition(", ")
        line, color = {BLOCKS: "-", WHOLE: ":", TOKENS: "--"}[way], f"C{denoisers.index(denoiser)}"
        axes.plot(list(values), list(values.values()), line, marker="o", color=color, label=name)
    lengths = sorted({row["length"] for row in found["times"]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_yscale("log")
    axes.set(xlabel="length, tokens", ylabel=f"milliseconds per generated token, {found['precision']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
