"""The bound of a trained run over its validation split, with a standard error over sequences."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from diffusion_lm.data.datamodule import TokenDataModule
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.levels import LevelCurve
from diffusion_lm.evaluation.load import LoadedRun
from diffusion_lm.lightning_module import bound_metrics
from diffusion_lm.noisy import Batch
from diffusion_lm.objectives.base import Bound
from diffusion_lm.random import Noise


@dataclass(frozen=True)
class Likelihood:
    """metrics: val/nll, val/nll_se, val/ppl_bound, val/bpb; terms: parts of val/nll in nats per token."""

    metrics: dict[str, float]
    terms: dict[str, float]
    by_noise_level: dict[str, float]
    sequences: int
    tokens: int
    draws: int


@torch.no_grad()
def evaluate(run: LoadedRun, draws: int, sequences: int = 0) -> Likelihood:
    """The bound in float32 from `draws` stratified noise levels per sequence, at most `sequences` (0: the run's own).

    The noise depends on the evaluation seed and the sequence alone, so runs on one corpus share it.
    """
    if draws < 1:
        raise UserError(f"draws: got {draws}, expected at least 1")
    if sequences < 0:
        raise UserError(f"sequences: got {sequences}, expected 0 or more")
    settings = run.config.data
    settings.val_sequences = sequences or settings.val_sequences
    bounds = list(_bounds(run, draws))
    per_token = torch.cat([b.nll / b.tokens for b in bounds])
    metrics = bound_metrics(per_token, run.info.bytes_per_token)
    terms = {name: float(torch.cat([b.terms[name] / b.tokens for b in bounds]).mean()) for name in bounds[0].terms}
    curve = LevelCurve.of(torch.cat([b.level for b in bounds]), torch.cat([b.cross_entropy for b in bounds]))
    return Likelihood(
        metrics={name: float(value) for name, value in metrics.items()},
        terms=terms,
        by_noise_level=dict(curve.points()),
        sequences=len(per_token),
        tokens=int(sum(float(b.tokens.sum()) for b in bounds)),
        draws=draws,
    )


def _bounds(run: LoadedRun, draws: int) -> Iterator[Bound]:
    settings = run.config.evaluation
    loader: DataLoader = TokenDataModule(
        run.config.data, seed=run.config.seed, global_batch=settings.batch_size, micro_batch=settings.batch_size
    ).val_dataloader()
    for batch in loader:
        on_device = Batch(**batch).to(run.device)
        yield run.objective.bound(run.model, on_device, Noise(settings.seed, on_device.position), draws)
