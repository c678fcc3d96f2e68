"""The Lightning Trainer of a run, and how little it says."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from diffusion_lm.config import part_class
from diffusion_lm.data.datamodule import accumulation_steps
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.files import atomic_path
from diffusion_lm.training import allocation
from diffusion_lm.training.averaging import Average
from diffusion_lm.training.callbacks import Checkpoints, Generated, Report, Samples, Scalars, Throughput
from diffusion_lm.training.clip_search import ClipSearch
from diffusion_lm.training.events import Events
from diffusion_lm.training.grace import Grace
from diffusion_lm.training.run import Run
from diffusion_lm.training.strategy import make_strategy

PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent: temporary name, fsync, rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's own, about positions in the file, after what the disk said
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


@contextmanager
def quiet(devices: int = 1) -> Iterator[None]:
    """Without Lightning's hints: the loader resumes by the step, its workers are chosen, srun is nobody's duty, and the
    module draws the noise of batches that the data module has no hook for. Of several devices the first warns for all.
    """
    other = devices > 1 and bool(rank_zero_only.rank)
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")[: 1 + other]]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for hint in (
                "workers",
                "resumable",
                "mid-epoch",
                "srun",
                "LeafSpec",
                "PossibleUserWarning",
                "lr_scheduler.step",
                "sync_dist",
                "on_before_batch_transfer",
            ):
                warnings.filterwarnings("ignore", f"(?s).*{hint}.*")
            if other:
                warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def make_trainer(config: ExperimentConfig, run: Run, checkpoints: Checkpoints, resumed_at: int) -> lightning.Trainer:
    training = config.training
    tokens_per_step = training.batch_size * config.data.length
    world = training.devices * training.num_nodes
    accumulate = accumulation_steps(training.batch_size, training.rows_per_pass(), world)
    average = [Average(training.ema_decay, training.ema_decays)] if training.ema_decay else []
    interactive = sys.stderr.isatty()
    return lightning.Trainer(
        accelerator="gpu" if training.accelerator == "cuda" else "cpu",
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy=make_strategy(training),
        precision=PRECISION[training.precision],
        max_steps=training.steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=training.val_every * accumulate or None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=training.log_every,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=interactive,
        logger=Events(run.folder, resumed_at),
        plugins=[AtomicCheckpointIO(), *allocation.environment()],
        default_root_dir=run.folder,
        callbacks=[
            Grace(),
            Throughput(tokens_per_step),
            *(Samples(run, training.samples), Generated()),
            *average,
            *([ClipSearch()] if part_class(config.times).searches else []),
            Scalars(training.log_every),
            Report(run, config.data.length),
            checkpoints,  # the last: what a checkpoint has passed is never logged again
            *([TQDMProgressBar(refresh_rate=10)] if interactive else []),
        ],
    )
