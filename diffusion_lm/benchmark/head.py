"""benchmark head: a training step with the head on the scored rows alone, against cross-entropy over all rows.

One masked-diffusion Transformer and its AdamW, the same weights and batches for every variant: `all rows` makes the
logits of every position and takes torch's cross-entropy of them; `all rows, in chunks` is the model's loss without
leaving rows out; `scored rows` is what training does. A step is forward, backward and update; the corruption is drawn
before. Times are interleaved in one process, peak memory is that of two steps in a process per variant, beyond the
parameters.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from diffusion_lm.benchmark.measure import (
    PRECISION,
    PeakMemory,
    check_settings,
    in_own_process,
    interleaved,
    surroundings,
)
from diffusion_lm.config import build, choice, config_class
from diffusion_lm.model import DenoisingModel, ModelConfig
from diffusion_lm.noisy import Batch, Corrupted, Noisy
from diffusion_lm.objectives.base import Objective, TrainingNoise, cross_entropy
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.shapes import Float, Int, Tensor, Tokens


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    layers: int = 4
    d_model: int = 256
    batch: int = 8
    length: int = 512
    vocabulary: int = 50257
    repeats: int = 5
    """Rounds; the median counts."""
    threads: int = 0
    """Of torch on the CPU; 0 is torch's own choice."""
    precision: str = choice("float32", "bfloat16")
    device: str = choice("cpu", "cuda")

    def __post_init__(self) -> None:
        check_settings(self)


class AllRows(DenoisingModel):
    """A model with the logits of every position."""

    def __init__(self, model: DenoisingModel) -> None:
        nn.Module.__init__(self)
        self.model = model

    def weighted_cross_entropy(
        self, noisy: Noisy, tokens: Tokens, weight: Float[Tensor, "B L"], rows: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B L"]]:
        losses = cross_entropy(self.model(noisy).logits, tokens)
        return (weight * losses).sum(), losses.detach()


class AllRowsInChunks(AllRows):
    """A model whose head scores every position."""

    def weighted_cross_entropy(
        self, noisy: Noisy, tokens: Tokens, weight: Float[Tensor, "B L"], rows: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B L"]]:
        every = torch.arange(tokens.numel(), device=tokens.device)
        return self.model.weighted_cross_entropy(noisy, tokens, weight, every)


VARIANTS: dict[str, Callable[[DenoisingModel], DenoisingModel]] = {
    "all rows": AllRows,
    "all rows, in chunks": AllRowsInChunks,
    "scored rows": lambda model: model,
}
"""The first is what the others are compared with."""


class Training:
    """A model in training on random tokens."""

    def __init__(self, config: HeadConfig) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(0)
        self.config = config
        schedule = build(config_class("schedules", "log_linear")())
        process = build(config_class("processes", "masked")(), schedule, config.vocabulary)
        denoiser = config_class("denoisers", "transformer")(n_layers=config.layers)
        self.model = DenoisingModel(ModelConfig(d_model=config.d_model), denoiser, process).to(config.device)
        noise = TrainingNoise(0, config.batch)
        self.objective: Objective = build(
            config_class("objectives", "masked")(), process, PromptConfig(fraction=0.0), noise
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def batch(self, number: int) -> Corrupted:
        """A batch with its corruption."""
        config = self.config
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(config.vocabulary, (config.batch, config.length), generator=generator)
        position = torch.arange(config.batch) + number * config.batch
        return self.objective.draw(Batch(tokens, position)).to(config.device)

    def step(self, variant: str, batch: Corrupted) -> None:
        """One step of training."""
        precision = PRECISION[self.config.precision]
        with torch.autocast(self.config.device, precision, enabled=precision is not None):
            loss = self.objective(VARIANTS[variant](self.model), batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak_memory(config: HeadConfig, variant: str) -> int:
    """Bytes that two steps take beyond the parameters."""
    training = Training(config)
    memory = PeakMemory(config.device)
    for number in range(2):
        training.step(variant, training.batch(number))
    return memory.bytes()


def measure(config: HeadConfig) -> dict[str, Any]:
    """Every variant's seconds and bytes, their ratios to the first's, and what they depend on."""
    peaks = {name: in_own_process(peak_memory, config, name) for name in VARIANTS}
    training = Training(config)
    batches = [training.batch(number) for number in range(config.repeats + 1)]
    steps = {name: (lambda number, name=name: training.step(name, batches[number])) for name in VARIANTS}
    seconds = interleaved(steps, config.repeats, config.device)
    first = next(iter(VARIANTS))
    return {
        "benchmark": "head",
        "sizes": asdict(config),
        "positions": config.batch * config.length,
        "rows": sum(int((batch.rows >= 0).sum()) for batch in batches[1:]) / config.repeats,
        **surroundings(config.device),
        "memory": PeakMemory.source(config.device),
        "variants": {
            name: {
                "seconds": seconds[name],
                "times_faster": seconds[first] / seconds[name],
                "peak_bytes": peaks[name],
                "share_of_peak": peaks[name] / peaks[first],
            }
            for name in VARIANTS
        },
    }


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    sizes = {name: value for name, value in found["sizes"].items() if name != "threads"}
    lines = [
        ", ".join(f"{name} {value}" for name, value in sizes.items()),
        f"{found['rows']:.0f} of {found['positions']} positions scored on average",
        f"{found['machine']}; torch {found['torch']}, {found['threads']} threads; commit {found['git']}",
        f"memory: {found['memory']}, beyond the parameters",
        "",
        "| head | step, s | times faster | peak memory, MiB | share |",
        "|---|---|---|---|---|",
    ]
    for name, one in found["variants"].items():
        peak = f"{one['peak_bytes'] / 2**20:,.0f} | {one['share_of_peak']:.2f}"
        lines.append(f"| {name} | {one['seconds']:.3f} | {one['times_faster']:.2f} | {peak} |")
    return "\n".join(lines)
