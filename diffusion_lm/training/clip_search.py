"""The search for the range of times of `times=clipped`: at each validation the one whose training loss varies least.

    [low, high] = argmin Var_{x, t, x_t}[ loss of a block ],  t uniform in [low, high]

(BD3-LM, arXiv 2503.09573, section 5.2), nats per token, with the weights that training has, over the validation text.
Each block's loss is taken at K stratified times of the whole range; those that fall into a range are what training in
it would draw. So every range is judged by the same noise, and a search costs K passes whatever the grid. It is made
with the weights that are validated; the range found is a part of the checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import pad

from diffusion_lm.blocks import block_positions
from diffusion_lm.blockwise import objective_of
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Objective, TrainingNoise
from diffusion_lm.processes.base import Process
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise, stratified_levels
from diffusion_lm.shapes import Float, Positions, Rows, Times
from diffusion_lm.times.base import TimeSampler

Range = tuple[float, float]


@dataclass(frozen=True)
class ValidationNoise(TrainingNoise):
    """Of a training loss over validation rows: the `draw`-th of `draws` stratified times in the whole range."""

    draws: int = 1
    draw: int = 0

    def times(self, position: Positions) -> tuple[Times, Times]:
        t = stratified_levels(Noise(self.seed, position), self.draws)[:, self.draw : self.draw + 1]
        return t, torch.ones_like(t)

    def noise(self, position: Positions) -> Noise:
        return Noise(self.seed, position).at(self.draw)

    def mean_of_step(self, position: Positions, value: Callable[[Positions], Rows]) -> Rows:
        """No loss of a step is wanted."""
        return value(position)


def objectives(config: ExperimentConfig, process: Process) -> list[Objective]:
    """The objective once for each time at which the loss of a block is taken, with nothing given."""
    draws, seed = config.times.draws, config.evaluation.seed
    sizes = (config.block_size, config.data.length)
    noises = [ValidationNoise(seed, 1, draws=draws, draw=number) for number in range(draws)]
    return [objective_of(config.objective, process, PromptConfig(fraction=0.0), noise, *sizes) for noise in noises]


def variances(times: Float[Tensor, "n"], losses: Float[Tensor, "n"], ranges: Sequence[Range]) -> Float[Tensor, "m"]:
    """Of the losses at times in each range, unbiased; infinite where fewer than two are."""
    order = times.argsort()
    centred = (losses - losses.mean())[order].double()
    sums = pad(torch.stack((centred, centred.square())).cumsum(1), (1, 0))
    ends = torch.searchsorted(times[order].contiguous(), times.new_tensor(ranges))
    count = ends[:, 1] - ends[:, 0]
    first, second = sums[:, ends[:, 1]] - sums[:, ends[:, 0]]
    found = (second - first.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
    return found.masked_fill(count < 2, torch.inf)


class Search:
    """Takes the losses of blocks at times of the whole range, and moves a sampler to the best range."""

    def __init__(self, config: ExperimentConfig, process: Process, sampler: TimeSampler) -> None:
        self.sampler, self.objectives = sampler, objectives(config, process)
        self._taken: list[Float[Tensor, "n 2"]] = []

    @torch.no_grad()
    def take(self, model: DenoisingModel, batch: Batch) -> None:
        """Remember the losses of a batch's blocks, in nats per token, beside their times."""
        for objective in self.objectives:
            loss = objective(model, batch)
            position = block_positions(batch.position, len(loss.nll) // len(batch.position))
            t = objective.training_noise.times(position)[0].squeeze(1)
            self._taken.append(torch.stack((t, (loss.nll / loss.tokens).double()), 1))

    def taken(self) -> Float[Tensor, "n 2"]:
        """All times and losses since the last call."""
        taken, self._taken = torch.cat(self._taken), []
        return taken

    def choose(self, taken: Float[Tensor, "n 2"]) -> dict[str, float]:
        """Move the sampler to the range of least variance; says which, and what the whole range's variance is."""
        ranges = self.sampler.ranges()
        found = variances(*taken.unbind(1), [*ranges, (0.0, 1.0)]).tolist()
        best = min(range(len(ranges)), key=found.__getitem__)
        low, high = self.sampler.low, self.sampler.high = ranges[best]
        return {"low": low, "high": high, "variance": found[best], "variance_of_whole_range": found[-1]}


class ClipSearch(Callback):
    """A search at each validation of a run; what it finds is logged and saved."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        sampler = pl_module.objective.training_noise.time_sampler
        self.search = Search(pl_module.config, pl_module.model.process, sampler)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Tensor], *_: Any
    ) -> None:
        if trainer.state.fn == "fit":
            with trainer.precision_plugin.val_step_context():
                self.search.take(pl_module.model, Batch(**batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        taken = self.search.taken()
        everyone = pl_module.all_gather(taken).flatten(0, 1) if trainer.world_size > 1 else taken
        for name, value in self.search.choose(everyone).items():
            pl_module.log(f"val_times/{name}", value, logger=False)

    def state_dict(self) -> dict[str, float]:
        return {"low": self.search.sampler.low, "high": self.search.sampler.high}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.search.sampler.low, self.search.sampler.high = state_dict["low"], state_dict["high"]
