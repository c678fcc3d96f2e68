"""Optimisers: what steps a model's parameters.

A variant makes one `torch.optim.Optimizer` of the parameters it is given, so that Lightning steps, clips, saves and
resumes it like any other; where it takes two algorithms it puts them together (`Together`). Peak learning rate, betas,
weight decay and warm-up are the run's; which parameters decay is decided outside (`training/optimizer.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Member:
    """A parameter of the network and how it is trained.

    matrix: whether it is a hidden matrix of the trunk. part: the prefix that gave it `multiplier`, a multiple of the
    peak learning rate; '' and 1 where nothing did.
    """

    name: str
    parameter: nn.Parameter
    decays: bool
    matrix: bool
    part: str = ""
    multiplier: float = 1.0


@dataclass(frozen=True)
class Peak:
    """The run's numbers. lr: the peak learning rate; weight_decay: of the members that decay."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float


class OptimizerPart(ABC):
    """Makes an optimiser."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def make(self, members: Sequence[Member], peak: Peak, own: list[dict]) -> Optimizer:
        """Of the network's parameters, each in one group, and of groups that bring everything of `own`, last.

        The first group has the peak learning rate itself; a group with another one has a `label`.
        """


def groups(members: Sequence[Member], peak: Peak) -> list[dict]:
    """Two groups, what decays and what does not, and two (those that are not empty) for every part with a multiplier.

    The first two are there even when they are empty: a checkpoint knows groups by their number.
    """
    found = []
    for part in dict.fromkeys(["", *(member.part for member in members)]):
        inside = [member for member in members if member.part == part]
        for decays in (True, False):
            chosen = [member for member in inside if member.decays == decays]
            if chosen or not part:
                lr = peak.lr * (chosen[0].multiplier if chosen else 1.0)
                found.append(_group([m.parameter for m in chosen], lr, peak.weight_decay if decays else 0.0, part))
    return found


def _group(parameters: list[nn.Parameter], lr: float, weight_decay: float, label: str) -> dict:
    group = {"params": parameters, "lr": lr, "weight_decay": weight_decay}
    return {**group, "label": label} if label else group


class Together(Optimizer):
    """Several optimisers as one: their groups in a row, one state, one step.

    A group is the same mapping here and in the optimiser that steps it, and the state is one mapping for all, so that
    schedulers, `state_dict` and what moves the state to a device see nothing unusual. Loading makes new mappings, which
    are handed out again.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        start = 0
        for optimizer in self.optimizers:
            end = start + len(optimizer.param_groups)
            optimizer.param_groups, optimizer.state = self.param_groups[start:end], self.state
            start = end
