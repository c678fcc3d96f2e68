"""How long an experiment's parts take here: ``python -m sweeps.cluster.timing CONFIG OUT STEPS STARTED``.

A few real training steps, one validation batch and the sample texts of one validation, by the same trainer as a run's,
in a run folder beside the JSON file OUT, which the caller throws away. `STARTED` is when the caller started this
process, in seconds since 1970.
"""

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from diffusion_lm.data.datamodule import TokenDataModule
from diffusion_lm.errors import run_command
from diffusion_lm.experiment import load
from diffusion_lm.files import write_json
from diffusion_lm.training.blocks import prepare_blocks
from diffusion_lm.training.callbacks import Checkpoints
from diffusion_lm.training.memory import peak_memory
from diffusion_lm.training.run import Run
from diffusion_lm.training.signals import StopSignal
from diffusion_lm.training.train import prepare
from diffusion_lm.training.trainer import make_trainer, quiet


class Clock(Callback):
    """When steps, validation batches and validations ended. Stands last in the trainer's list."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.batches: list[float] = []
        self.began = self.validation = math.nan
        self.offset = time.time() - time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.steps):  # the last of the passes whose gradients are added up
            self.steps.append(_now())

    def on_validation_start(self, *_: Any) -> None:
        self.began, self.batches = _now(), []

    def on_validation_batch_end(self, *_: Any) -> None:
        self.batches.append(_now())

    def on_validation_end(self, *_: Any) -> None:
        self.validation = _now() - self.began

    @property
    def step(self) -> float:
        """Seconds of a step after the first, which compiles and warms up."""
        return statistics.median(b - a for a, b in zip(self.steps, self.steps[1:]))


def measure(path: Path, out: Path, steps: int, started: float) -> None:
    """Time `steps` steps of the experiment in `path`, and a validation. Raises `UserError` for what cannot be built."""
    config = load(path, ["training.devices=1", "training.num_nodes=1", "training.strategy=auto"])
    run = Run(out.parent / "run")
    with quiet(), StopSignal() as stop:
        module, _ = prepare(config, run)
        training = module.config.training
        data = TokenDataModule(config.data, seed=config.seed, global_batch=training.batch_size,
                               micro_batch=training.rows_per_pass())
        prepare_blocks(module.model, training)
        trainer = make_trainer(module.config, run, Checkpoints(run, training.steps, 0, stop), 0)
        clock = Clock()
        trainer.callbacks.append(clock)
        trainer.limit_val_batches = 0
        trainer.fit_loop.epoch_loop.max_steps = min(steps, training.steps)
        trainer.fit(module, data)
        trainer.limit_val_batches = 1
        trainer.validate(module, data, verbose=False)
    write_json(out, {
        "step": clock.step, "validation": _validation(clock, data), "startup": clock.steps[0] + clock.offset - started,
        "steps": training.steps, "tokens": training.steps * training.batch_size * config.data.length,
        "validations": math.ceil(training.steps / training.val_every) if training.val_every else 1,
        "parameters": module.model.count()["non_embedding"], "memory": peak_memory(),
        "accelerator": training.accelerator})


def _validation(clock: Clock, data: TokenDataModule) -> float:
    """Seconds of a whole validation: each of its batches, and what is done once (sample texts, averages swapped)."""
    one = clock.batches[0] - clock.began
    return one * len(data.val_dataloader()) + clock.validation - one


def _now() -> float:
    """Seconds, after the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(argv: list[str]) -> None:
    path, out, steps, started = argv
    measure(Path(path), Path(out), int(steps), float(started))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
