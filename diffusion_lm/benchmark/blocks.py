"""benchmark blocks: a training step block by block over one of whole texts, of the same model and the same tokens.

A step is the forward and the backward pass of the masked objective and its model, token table and head included; the
corruption is drawn before, and nothing is updated. Block by block the trunk runs on the noisy blocks and on the clean
text beside them (`blockwise.py`), twice the positions, so that 2 is what a step would cost if positions were all.
Denoisers and block sizes take turns in one process.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion_lm.benchmark.measure import PRECISION, both_clocks, check_settings, surroundings, write_measured
from diffusion_lm.benchmark.models import check_names, first_of, matched, model_of
from diffusion_lm.blockwise import objective_of
from diffusion_lm.config import choice, config_class, name_of
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig

COLUMNS = ("denoiser", "n_layers", "mlp_width", "parameters", "block_size", "seconds", "ratio")


@dataclass(kw_only=True, slots=True)
class BlocksConfig:
    denoisers: tuple[str, ...] = ("transformer", "mamba", "hybrid")
    """Each is compared with itself; the first sets the size."""
    block_sizes: tuple[int, ...] = (4, 16, 64, 256)
    length: int = 1024
    batch: int = 2
    layers: int = 8
    """Blocks of the first denoiser."""
    d_model: int = 256
    vocabulary: int = 256
    clock: str = choice("wall", "processor")
    repeats: int = 5
    """Rounds; the median counts."""
    threads: int = 0
    """Of torch on the CPU; 0 is torch's own choice."""
    precision: str = choice("float32", "bfloat16")
    device: str = choice("cpu", "cuda")

    def __post_init__(self) -> None:
        check_settings(self)
        check_names("denoisers", self.denoisers)
        for number, size in enumerate(self.block_sizes):
            if self.length % size or size in self.block_sizes[:number]:
                raise ValueError(f"block_sizes: got {size}, expected divisors of length {self.length}, each once")


def step(config: BlocksConfig, model: DenoisingModel, block_size: int) -> Callable[[int], None]:
    """What is timed: a step on the batch of that number, drawn here. block_size 0: whole texts."""
    noise = TrainingNoise(0, config.batch)
    own = config_class("objectives", "masked")()
    objective = objective_of(own, model.process, PromptConfig(fraction=0.0), noise, block_size, config.length)
    generator, drawn = torch.Generator().manual_seed(0), []
    for number in range(config.repeats + 1):
        tokens = torch.randint(config.vocabulary, (config.batch, config.length), generator=generator)
        position = torch.arange(config.batch) + number * config.batch
        drawn.append(objective.draw(Batch(tokens=tokens, position=position)).to(config.device))
    precision = PRECISION[config.precision]

    def run(number: int) -> None:
        with torch.autocast(config.device, precision, enabled=precision is not None):
            loss = objective(model, drawn[number]).loss
        loss.backward()
        model.zero_grad()

    return run


def measure(config: BlocksConfig) -> dict[str, Any]:
    """Seconds of a step of every denoiser with every block size, over those with whole texts.

    Raises `UserError` for denoisers that cannot have one size.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    load, first = os.getloadavg()[0], first_of(config.denoisers[0], config.layers)
    others = [config_class("denoisers", name)() for name in config.denoisers[1:]]
    sized = dict(zip(config.denoisers, [first, *matched(first, others, config.d_model)], strict=True))
    steps = {}
    for name, denoiser in sized.items():
        model = model_of(denoiser, "masked", config.d_model, config.vocabulary, config.device).train()
        steps |= {(name, size): step(config, model, size) for size in (0, *config.block_sizes)}
    seconds = both_clocks(steps, config.repeats, config.device)[config.clock]
    times = [_row(config, sized[name], size, value, seconds[name, 0]) for (name, size), value in seconds.items()]
    names = ("length", "batch", "d_model", "vocabulary", "clock", "precision", "repeats", "device")
    return {
        "benchmark": "blocks",
        **{name: getattr(config, name) for name in names},
        **surroundings(config.device),
        "load": [load, os.getloadavg()[0]],
        "times": times,
    }


def _row(config: BlocksConfig, denoiser: Any, block_size: int, seconds: float, whole: float) -> dict[str, Any]:
    """A line of times.csv."""
    return {
        "denoiser": name_of(denoiser),
        "n_layers": denoiser.n_layers,
        "mlp_width": denoiser.width(config.d_model),
        "parameters": denoiser.parameters(config.d_model),
        "block_size": block_size,
        "seconds": seconds,
        "ratio": seconds / whole,
    }


def table(found: dict[str, Any]) -> str:
    """The ratios, and in the first lines what they depend on."""
    times = found["times"]
    whole = {row["denoiser"]: row for row in times if not row["block_size"]}
    ratios = {(row["denoiser"], row["block_size"]): row["ratio"] for row in times if row["block_size"]}
    sizes = sorted({size for _, size in ratios})
    lines = [
        f"a training step in blocks over one of whole texts ({found['clock']} clock): {found['batch']} x "
        f"{found['length']:,} tokens, d_model {found['d_model']}, vocabulary {found['vocabulary']}, "
        f"{found['precision']}, median of {found['repeats']}; {found['machine']}, torch {found['torch']}, "
        f"{found['threads']} threads, load {found['load'][0]:.1f} to {found['load'][1]:.1f}, commit "
        f"{found.get('git', 'unknown')}",
        *(
            f"{name}: {row['n_layers']} layers, MLP {row['mlp_width']} wide, {row['parameters']:,} parameters"
            for name, row in whole.items()
        ),
        "",
        "| denoiser | whole texts, s | " + " | ".join(f"blocks of {size}" for size in sizes) + " |",
        "|---" * (2 + len(sizes)) + "|",
    ]
    for name, row in whole.items():
        cells = [f"{row['seconds']:.3f}", *(f"{ratios[name, size]:.2f}" for size in sizes)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(found: dict[str, Any], folder: Path) -> None:
    """table.md, times.csv, times.png and everything as JSON."""
    write_measured(found, folder, table(found), COLUMNS, _figure(found))


def _figure(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure  # the library takes a second to import

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["denoiser"] for row in found["times"]):
        own = {row["block_size"]: row["ratio"] for row in found["times"] if row["denoiser"] == name}
        sizes = sorted(set(own) - {0})
        axes.plot(sizes, [own[size] for size in sizes], marker="o", label=name)
    sizes = sorted({row["block_size"] for row in found["times"]} - {0})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set(xlabel="block size, tokens", ylabel="training step over that of whole texts", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
