"""Objectives: what is minimised, and the bound that is reported.

An objective is called with a model and a training batch and returns a `Loss`. `bound` evaluates the negative
log-likelihood bound of the same model with nothing given, at K stratified noise levels per sequence on the process's
own grid: the same levels and the same noise for every model that is evaluated with the same seed. All arithmetic on
likelihoods is float32 or better; the process is asked for marginals, never the schedule.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.processes.base import Process
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise, stratified_times
from diffusion_lm.shapes import Float, Rows, Tensor, Times


@dataclass(frozen=True)
class Loss:
    """loss: scalar to minimise. tokens: positions scored per row. terms: scalars to log.

    nll: an estimate of the bound over the times that are trained on, nats per row; the number to report is `bound`'s.
    """

    loss: Float[Tensor, ""]
    nll: Rows
    tokens: Rows
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bound:
    """An evaluated bound. nll: nats per row; tokens: positions scored per row; terms: parts of nll, nats per row.

    level: noise levels [B, K]; cross_entropy: mean nats per predicted token at that level [B, K].
    """

    nll: Rows
    tokens: Rows
    terms: dict[str, Rows]
    level: Float[Tensor, "B K"]
    cross_entropy: Float[Tensor, "B K"]


@dataclass(frozen=True)
class TrainingNoise:
    """Where training noise comes from: the seed, and the global batch over which times are stratified."""

    seed: int
    global_batch: int

    def times(self, batch: Batch) -> Times:
        """One time in [0, 1) per row, stratified over the global batch. [B, 1] float64"""
        return stratified_times(batch.position, self.global_batch, self.seed).unsqueeze(1)

    def noise(self, batch: Batch) -> Noise:
        """The rows' noise."""
        return Noise(self.seed, batch.position)


class Objective(nn.Module, ABC):
    """A training loss over a process, and the process's likelihood bound."""

    processes: ClassVar[tuple[str, ...]]
    """Names of the processes that it has a meaning for; the first is the default."""
    default_schedule: ClassVar[str]

    def __init__(self, config: Any, process: Process, prompt: PromptConfig, training: TrainingNoise) -> None:
        super().__init__()
        self.config = config
        self.process = process
        self.prompt = prompt
        self.training_noise = training

    @abstractmethod
    def forward(self, model: DenoisingModel, batch: Batch) -> Loss:
        """The training loss of a batch."""

    @abstractmethod
    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound:
        """The bound of every sequence of a batch from `draws` stratified noise levels each."""


def cross_entropy(logits: Float[Tensor, "B L V"], tokens: torch.Tensor) -> Float[Tensor, "B L"]:
    """-ln softmax(logits)[token] per position, float32."""
    return nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
