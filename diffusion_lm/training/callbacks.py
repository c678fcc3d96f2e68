"""Callbacks: stopping and checkpointing at safe points, reports, sample texts and throughput."""

import time
from typing import Any, NoReturn

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

from diffusion_lm.evaluation.generated import generated
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.training.optimizer import learning_rates
from diffusion_lm.training.result import summary
from diffusion_lm.training.run import INTERRUPTED, PRUNED, Run
from diffusion_lm.training.signals import StopSignal


class Stopped(Exception):
    """Training ends here, after a checkpoint. Lightning's own `should_stop` would validate once more first."""


class Checkpoints(Callback):
    """Writes last.ckpt: every so many steps, after validations, at the end, and before it stops for a signal or STOP.

    A signal only sets a flag; all devices decide together at the end of a batch (a handler that saves by itself hangs
    when one rank is slower). At a step that is validated the checkpoint is written after the validation, so that a
    resumed run repeats nothing and misses nothing.
    """

    def __init__(self, run: Run, every: int, val_every: int, signal: StopSignal) -> None:
        self.run, self.every, self.val_every, self.signal = run, every, val_every, signal
        self.stopped: str | None = None
        self._step = -1

    def on_train_start(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        self._step = trainer.global_step
        self.signal.install()
        if trainer.global_step < trainer.max_steps and (why := self._told_to_stop(trainer)):
            self._stop(trainer, why)

    def on_train_batch_end(self, trainer: Trainer, module: lightning.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step or self._validates(trainer):
            return
        self._step = trainer.global_step
        why = self._told_to_stop(trainer)
        last = trainer.global_step == trainer.max_steps
        if why or last or trainer.global_step % self.every == 0:
            self._save(trainer)
        if why and not last:
            self._stop(trainer, why)

    def on_validation_end(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self._save(trainer)
        if trainer.global_step < trainer.max_steps and (why := self._told_to_stop(trainer)):
            self._stop(trainer, why)

    def _save(self, trainer: Trainer) -> None:
        trainer.logger.save()  # first the curves up to this step: a resumed run does not log them again
        trainer.save_checkpoint(self.run.checkpoint, weights_only=False)

    def _validates(self, trainer: Trainer) -> bool:
        return bool(self.val_every) and trainer.global_step % self.val_every == 0

    def _told_to_stop(self, trainer: Trainer) -> str | None:
        """Why to stop, if any device was told. The first device looks for STOP; the devices agree once a step."""
        stop = trainer.is_global_zero and self.run.stop_file.exists()
        if not trainer.strategy.reduce_boolean_decision(stop or self.signal.number is not None, all=False):
            return None
        return PRUNED if trainer.strategy.reduce_boolean_decision(stop, all=False) else INTERRUPTED

    def _stop(self, trainer: Trainer, why: str) -> NoReturn:
        self.stopped = why
        trainer.training = True  # in a validation Lightning would tear down that loop alone, and leave readers behind
        raise Stopped(why)


class Scalars(Callback):
    """Logs the training scalars of every so many steps, each the mean over the step's forward passes
    on all devices.

    Lightning's own `log` writes them after all callbacks, when the step's checkpoint exists already: a process that
    ends in between would leave a gap in the curves.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._step = -1
        self._rates: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, module: DiffusionModule) -> None:
        self._step = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, module: DiffusionModule, optimizer: Optimizer) -> None:
        self._rates = learning_rates(optimizer)

    def on_train_batch_end(self, trainer: Trainer, module: DiffusionModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        passes, module.scalars = module.scalars, []
        if self._step % self.every == 0:
            means = torch.stack([torch.stack(list(scalars.values())) for scalars in passes]).mean(0)
            means = trainer.strategy.reduce(means, reduce_op="mean")  # over the devices
            scalars = dict(zip(passes[0], means))
            scalars |= {"train/grad_norm": module.grad_norm, **self._rates}
            trainer.logger.log_metrics(scalars, self._step)


class Report(Callback):
    """Each validation's numbers: a line in report.jsonl and on the terminal, and TensorBoard's scalars."""

    def __init__(self, run: Run, length: int) -> None:
        self.run, self.length = run, length

    def on_validation_end(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        found = trainer.callback_metrics.items()
        metrics = {k: float(v) for k, v in found if k.startswith(("val", "gen", "throughput"))}
        step = trainer.global_step
        trainer.logger.log_metrics(metrics, step)
        trainer.logger.save()  # before the line that says that this validation is done: it is never repeated
        tokens = trainer.datamodule.position * self.length  # not by the step: batches may have had another size
        self.run.append_report({"step": step, "tokens": tokens, **metrics})
        print(
            f"step {step:>6}  {summary(metrics)}  "
            f"{metrics.get('throughput/tokens_per_second', float('nan')):,.0f} tokens/s",
            flush=True,
        )


class Samples(Callback):
    """Draws texts at each validation, from the averaged weights that are being validated.

    Stands before the averaging callback in the trainer's list: that one swaps the weights back when its turn comes.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.run, self.count = run, count

    def on_validation_epoch_end(self, trainer: Trainer, module: DiffusionModule) -> None:
        if not self.count:
            return
        texts = module.draw_texts(self.count)  # on all devices: where parameters are shared out, it takes all of them
        if not trainer.is_global_zero:
            return
        text = "\n\n---\n\n".join(texts)
        (self.run.folder / "samples.txt").write_text(text + "\n", encoding="utf-8")
        if trainer.logger is not None:
            quoted = "\n\n---\n\n".join("    " + t.replace("\n", "\n    ") for t in texts)
            trainer.logger.experiment.add_text("samples", quoted, trainer.global_step)


class Generated(Callback):
    """Reports, with the last validation, what drawn texts come to. Stands where `Samples` does, and for its reason."""

    def on_validation_epoch_end(self, trainer: Trainer, module: DiffusionModule) -> None:
        if trainer.global_step < trainer.max_steps or not module.config.evaluation.samples:
            return
        for name, value in generated(module.model, module.config).items():
            module.log(name, value, rank_zero_only=True, logger=False)


class Throughput(Callback):
    """tokens per second of training since the last validation, validations and checkpoints not counted."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.seconds, self.steps = 0.0, 0

    def on_train_batch_start(self, trainer: Trainer, module: lightning.LightningModule, *_: Any) -> None:
        self._step, self._began = trainer.global_step, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: lightning.LightningModule, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self.steps += trainer.global_step - self._step

    def on_validation_epoch_end(self, trainer: Trainer, module: lightning.LightningModule) -> None:
        if self.steps:
            rate = self.steps * self.tokens_per_step / self.seconds
            module.log("throughput/tokens_per_second", rate, rank_zero_only=True, logger=False)
        self.seconds, self.steps = 0.0, 0
