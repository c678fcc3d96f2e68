"""The one LightningModule: pairs a denoising model with an objective."""

import math
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from torch import Tensor

from diffusion_lm.blockwise import objective_of
from diffusion_lm.config import build, part_class, to_tree
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.errors import NotFiniteError, UserError
from diffusion_lm.evaluation.levels import LevelCurve
from diffusion_lm.evaluation.text import draw_texts
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import Bound, TrainingNoise
from diffusion_lm.random import Noise
from diffusion_lm.training.optimizer import clip_gradients, make_optimizer, members


def build_model(config: ExperimentConfig, vocabulary: int) -> DenoisingModel:
    """The model of an experiment over a vocabulary of that many tokens."""
    schedule = build(config.schedule)
    try:
        process = build(config.process, schedule, vocabulary)
        model = DenoisingModel(config.model, config.denoiser, process, part_class(config.objective).readout)
        members(model, config.training)  # refuses a learning rate for parameters that the model does not have
        return model
    except ValueError as error:
        raise UserError(f"{config.name}: {error}") from None


class DiffusionModule(lightning.LightningModule):
    """Training and validation of one experiment. `data` tells the vocabulary and the bytes per token."""

    def __init__(self, config: ExperimentConfig, data: DatasetInfo) -> None:
        super().__init__()
        self.config = config
        self.bytes_per_token = data.bytes_per_token
        self.model = build_model(config, data.vocab_size)
        noise = TrainingNoise(config.seed, config.training.batch_size, build(config.times))
        sizes = (config.block_size, config.data.length, config.denoiser.cache())
        self.objective = objective_of(config.objective, self.model.process, config.prompt, noise, *sizes)
        self.scalars: list[dict[str, Tensor]] = []  # of this step's forward passes, for the callback that logs them
        self.grad_norm: Tensor | None = None
        self.pretrained: dict[str, Any] | None = None  # where the weights came from, if not from the seed
        self._bounds: list[Bound] = []
        self._measures: list[dict[str, Tensor]] = []

    def on_before_batch_transfer(
        self, batch: Mapping[str, Tensor], dataloader_idx: int
    ) -> Mapping[str, Tensor] | Batch | Corrupted:
        """Draws a training batch's noise while it is on the host, where counting the scored rows costs nothing."""
        return self.objective.draw(Batch(**batch)) if self.trainer.training else batch

    def training_step(self, batch: Batch | Corrupted, index: int) -> Tensor:
        loss = self.objective(self.model, batch)
        terms = {f"train/{name}": value for name, value in loss.terms.items()}
        self.scalars.append({"train/loss": loss.loss.detach(), **terms})
        return loss.loss

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        settings = self.config.evaluation
        noise = Noise(settings.seed, batch["position"])
        bound = self.objective.bound(self.model, Batch(**batch), noise, settings.draws)
        if bound is None:
            measures = self.objective.measures(self.model, Batch(**batch), noise, settings.draws)
            for name, value in measures.items():
                self._check_finite(name, value)
            self._measures.append(measures)
            return
        self._check_finite("bound", bound.nll)
        self._bounds.append(bound)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not value.isfinite().all():
            raise NotFiniteError(
                f"{self.config.name}: the {name} is no number at step {self.global_step}, training has diverged; start "
                "again with run=NEW and a lower training.lr, or a longer training.warmup_steps"
            )

    def on_validation_epoch_end(self) -> None:
        measures, self._measures = self._measures, []
        for name in measures[0] if measures else ():
            self.log(f"val/{name}", self._everywhere(torch.cat([m[name] for m in measures])).mean(), logger=False)
        if self._bounds:
            self._report_bound()

    def _report_bound(self) -> None:
        bounds, self._bounds = self._bounds, []
        per_token = self._everywhere(torch.cat([b.nll / b.tokens for b in bounds]))
        self.log_dict(bound_metrics(per_token, self.bytes_per_token), logger=False)  # the Report callback writes them
        for name in bounds[0].terms if len(bounds[0].terms) > 1 else ():
            term = self._everywhere(torch.cat([b.terms[name] / b.tokens for b in bounds]))
            self.log(f"val_terms/{name}", term.mean(), logger=False)
        curve = LevelCurve.of(
            self._everywhere(torch.cat([b.level for b in bounds])),
            self._everywhere(torch.cat([b.cross_entropy for b in bounds])),
        )
        for label, value in curve.points():
            self.log(f"val_cross_entropy_by_noise_level/{label}", value, logger=False)

    def draw_texts(self, count: int) -> list[str]:
        """That many texts, always the same for the same weights."""
        return draw_texts(self.model, self.config, count, seed=self.config.seed)

    def configure_optimizers(self) -> dict:
        return make_optimizer(self, self.config.training)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        self.grad_norm = clip_gradients(self, self.config.training.grad_clip)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["experiment"] = to_tree(self.config)
        if self.pretrained is not None:
            checkpoint["pretrained"] = self.pretrained

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.pretrained = checkpoint.get("pretrained")

    def _everywhere(self, value: Tensor) -> Tensor:
        """The rows of all devices."""
        return self.all_gather(value).flatten(0, 1) if self.trainer.world_size > 1 else value


def bound_metrics(per_token: Tensor, bytes_per_token: float) -> dict[str, Tensor]:
    """The reported numbers, from every sequence's bound in nats per token; the standard error is over sequences.

    One sequence has none.
    """
    mean, count = per_token.mean(), len(per_token)
    return {
        "val/nll": mean,
        **({"val/nll_se": per_token.std() / math.sqrt(count)} if count > 1 else {}),
        "val/ppl_bound": mean.exp(),
        "val/bpb": mean / math.log(2) / bytes_per_token,
    }
