"""Objectives: what is minimised, and the bound that is reported.

An objective is called with a model and a training batch and returns a `Loss`. `draw` is the part that needs no model:
it runs on the host, with the batch. `bound` evaluates the negative log-likelihood bound of the same model with nothing
given, at K stratified noise levels per sequence on the process's own grid: the same levels and the same noise for every
model that is evaluated with the same seed. All arithmetic on likelihoods is float32 or better.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.config import build, config_class, name_of, to_tree
from diffusion_lm.kind import CONTINUOUS, EXACT, NO_BOUND, Kind
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.precision import wide
from diffusion_lm.processes.base import Process
from diffusion_lm.prompts import PromptConfig, draw_given
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Float, Positions, Rows, Tensor, Times
from diffusion_lm.times.base import TimeSampler
from diffusion_lm.times.stratified import Stratified, StratifiedConfig


@dataclass(frozen=True)
class Loss:
    """loss: scalar to minimise. tokens: positions scored per row. terms: scalars to log.

    nll: an estimate of the bound over the times that are trained on, nats per row, or of the loss where that is no
    bound; the number to report is `bound`'s.
    """

    loss: Float[Tensor, ""]
    nll: Rows
    tokens: Rows
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """An evaluated bound. nll: nats per row; tokens: positions scored per row; terms: parts of nll, nats per row.

    level: noise levels [B, K]; cross_entropy: mean nats per predicted token at that level [B, K].
    beside: the same in another convention, nats per row, to be printed beside nll.
    """

    nll: Rows
    tokens: Rows
    terms: dict[str, Rows]
    level: Float[Tensor, "B K"]
    cross_entropy: Float[Tensor, "B K"]
    beside: dict[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingNoise:
    """Where training noise comes from: the seed, and how times are drawn for the rows of a global batch.

    Raises `ValueError` for a global batch that the time sampler cannot serve.
    """

    seed: int
    global_batch: int
    time_sampler: TimeSampler = field(default_factory=lambda: Stratified(StratifiedConfig()))

    def __post_init__(self) -> None:
        self.time_sampler.check(self.global_batch)

    def times(self, position: Positions) -> tuple[Times, Times]:
        """One time in [0, 1] per row, and 1 / its density in the range that is trained on. [B, 1] float64 each"""
        t, weight = self.time_sampler.draw(position, self.global_batch, self.seed)
        return t.unsqueeze(1), weight.unsqueeze(1)

    def noise(self, position: Positions) -> Noise:
        """The rows' noise."""
        return Noise(self.seed, position)

    def mean_of_step(self, position: Positions, value: Callable[[Positions], Rows]) -> Rows:
        """The mean of a row's value over the global batch that each row is in, however that is split. [B]"""
        steps, row = torch.unique(position // self.global_batch, return_inverse=True)
        slots = torch.arange(self.global_batch, device=position.device)
        everyone = (steps.unsqueeze(1) * self.global_batch + slots).flatten()
        return value(everyone).view(len(steps), -1).mean(1)[row]


class Objective(nn.Module, ABC):
    """A training loss over a process, and the process's likelihood bound."""

    processes: ClassVar[tuple[str, ...]]
    """Names of the processes that it has a meaning for; the first is the default."""
    default_schedule: ClassVar[str]
    readout: ClassVar[str] = "posterior"
    """What the model's last layer means: a key of `readouts.READOUTS`."""
    trains_bound: ClassVar[bool] = True
    """Whether the `nll` of its default config's training loss estimates the bound."""
    reports_bound: ClassVar[bool] = True
    """Whether there is a bound to report; where there is none, `measures` says what is reported instead."""
    headline: ClassVar[tuple[str, ...]] = ("val/nll", "val/bpb")
    """The reported numbers by which runs are compared."""
    causal: ClassVar[bool] = False
    """Whether the denoiser must not see later positions."""
    shows_answer: ClassVar[bool] = False
    """Whether it can show a prompt encoder the answer in training (`prompt.leak`)."""
    blockwise: ClassVar[bool] = True
    """Whether it has a meaning block by block."""
    exact: ClassVar[bool] = False
    """Whether what is reported is the negative log-likelihood itself and not a bound."""
    exact_alone: ClassVar[tuple[str, ...]] = ()
    """Names of the processes under which it is that for texts of one token: there the bound has no slack."""

    def __init__(self, config: Any, process: Process, prompt: PromptConfig, training: TrainingNoise) -> None:
        super().__init__()
        self.config = config
        self.process = process
        self.prompt = prompt
        self.training_noise = training

    def check(self) -> None:
        """Raises `ValueError` where its schedule and the range of its times leave nothing to train on."""

    def counted(self, position: Positions, length: int) -> Rows:
        """Positions of each row that count in the loss: those that are not given. [B] float32"""
        given = draw_given(self.prompt, self.training_noise.noise(position), length)
        if given is None:
            return torch.full(position.shape, float(length), device=position.device)
        return (~given).sum(1).float()

    def mean_counted(self, batch: Batch) -> Rows:
        """What the loss of a row is divided by: the mean of `counted` over its global batch.

        The mean of the losses over micro-batches and devices is then the loss of the global batch in one piece.
        """
        length = batch.tokens.shape[1]
        return self.training_noise.mean_of_step(batch.position, lambda position: self.counted(position, length))

    def draw(self, batch: Batch) -> Batch | Corrupted:
        """What `forward` takes: the batch, with as much of its noise as can be drawn without the model."""
        return batch

    @abstractmethod
    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        """The training loss of a batch, which may have been drawn already."""

    @abstractmethod
    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound | None:
        """The bound of every sequence of a batch from `draws` stratified noise levels each, None without a bound."""

    def measures(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> dict[str, Rows]:
        """What is reported of every sequence instead of a bound, by name."""
        return {}

    @classmethod
    def over(cls, config: Any) -> str:
        """What the reported number is over; with the process this is the number's kind."""
        if not cls.reports_bound:
            return NO_BOUND
        return EXACT if cls.exact else CONTINUOUS

    def depends_on(self) -> dict[str, Any]:
        """What else decides the number, beside model and data: what the process has to set."""
        return to_tree(self.process.config)

    def kind(self) -> Kind:
        """With what the reported number may be compared."""
        return Kind(name_of(self.process.config), self.over(self.config), self.depends_on())

    @classmethod
    def trains_schedule(cls, config: Any) -> bool:
        """Whether a learned schedule can be trained along with an objective of this config."""
        return False

    def bounded_by_process(self) -> "Objective":
        """The objective that defines the bound of this one's process, for a training loss that is none."""
        config = config_class("objectives", self.process.bound_objective)()
        return build(config, self.process, self.prompt, self.training_noise)


def cross_entropy(logits: Float[Tensor, "B L V"], tokens: torch.Tensor) -> Float[Tensor, "B L"]:
    """-ln softmax(logits)[token] per position, float32 or better."""
    return nn.functional.cross_entropy(wide(logits).transpose(1, 2), tokens, reduction="none")
