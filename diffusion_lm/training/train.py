"""Training one experiment in one run folder: start, resume, stop, finish."""

import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO

from diffusion_lm.config import differences
from diffusion_lm.data.datamodule import TokenDataModule, accumulation_steps
from diffusion_lm.data.info import DatasetInfo, data_facts
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ROOT, ExperimentConfig, to_dict, with_kernels
from diffusion_lm.files import atomic_path
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.training.averaging import Average
from diffusion_lm.training.callbacks import Checkpoints, Report, Samples, Throughput
from diffusion_lm.training.hparams import flat_hparams
from diffusion_lm.training.run import FINISHED, INTERRUPTED, PRUNED, Run

EXIT_CODES = {FINISHED: 0, PRUNED: 3, INTERRUPTED: 75}
PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent: temporary name, fsync, rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def resolve(config: ExperimentConfig, saved: ExperimentConfig | None) -> ExperimentConfig:
    """`config` with every ``auto`` replaced: by what the run was started with, else by what this machine offers."""
    training = config.training
    if saved is not None:
        accelerator, precision = saved.training.accelerator, saved.training.precision
    else:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        precision = None
    training.accelerator = accelerator if training.accelerator == "auto" else training.accelerator
    if training.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("training.accelerator: got cuda, but PyTorch finds no GPU here; set training.accelerator=cpu")
    if training.precision == "auto":
        training.precision = precision or fast_precision(training.accelerator)
    config.denoiser = with_kernels(config.denoiser, training.accelerator)
    return config


def fast_precision(accelerator: str) -> str:
    """bfloat16 where the GPU computes in it or the CPU has AMX, else float32."""
    if accelerator == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu._is_amx_tile_supported() else "float32"


def prepare(config: ExperimentConfig, run: Run) -> tuple[ExperimentConfig, DatasetInfo]:
    """Check everything that can be checked before anything is written. Raises `UserError`."""
    config = resolve(config, run.saved_config())
    info = data_facts(config.data)
    training = config.training
    accumulation_steps(training.batch_size, training.rows_per_pass(), training.devices * training.num_nodes)
    run.check(config)
    return config, info


def train(config: ExperimentConfig, run: Run) -> int:
    """Train until done or told to stop; returns the exit status: 0 finished, 75 interrupted, 3 pruned, 130 Ctrl-C."""
    config, info = prepare(config, run)
    with run.locked():
        result = run.result()
        if result and result["status"] == FINISHED:
            print(
                f"{run.folder} is finished: step {result['step']}, val/nll {result['metrics']['val/nll']:.4f} "
                "nats/token; repeat it with run=NEW"
            )
            return 0
        run.check(config)
        run.save_config(config)
        return _fit(config, run, info)


def _fit(config: ExperimentConfig, run: Run, info: DatasetInfo) -> int:
    began = time.monotonic()
    training = config.training
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = DiffusionModule(config, info)
    data = TokenDataModule(
        config.data, seed=config.seed, global_batch=training.batch_size, micro_batch=training.rows_per_pass()
    )
    checkpoints = Checkpoints(run, training.checkpoint_every, training.val_every)
    resumed_at = read_checkpoint(run, config)["global_step"] if run.checkpoint.is_file() else 0
    trainer = _trainer(config, run, checkpoints, resumed_at)
    counts = module.model.count()
    print(
        f"{run.folder}: {counts['total']:,} parameters, {training.accelerator}, {training.precision}, "
        f"{training.steps * training.batch_size * config.data.length:,} tokens planned"
        + (f", resuming at step {resumed_at}" if resumed_at else ""),
        flush=True,
    )
    run.stop_file.unlink(missing_ok=True)
    trainer.logger.log_hyperparams(flat_hparams(config), {"hp/val_nll": math.nan, "hp/val_bpb": math.nan})
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*(num_workers|does not have many workers|dataloader is not resumable|mid-epoch).*"
        )
        trainer.fit(module, data, ckpt_path=run.checkpoint if resumed_at else None, weights_only=True)
        if checkpoints.stopped is None and training.steps not in run.reports():
            trainer.validate(module, data, verbose=False)
    status = checkpoints.stopped or FINISHED
    if trainer.is_global_zero:
        _finish(config, run, info, module, trainer, status, time.monotonic() - began)
    if status == INTERRUPTED and checkpoints.signal == 2:
        return 130
    return EXIT_CODES[status]


def read_checkpoint(run: Run, config: ExperimentConfig) -> dict[str, Any]:
    """The run's checkpoint, memory-mapped. Refuses a file that is no checkpoint, or one of another config."""
    try:
        checkpoint = torch.load(run.checkpoint, map_location="cpu", weights_only=True, mmap=True)
        experiment = checkpoint["experiment"]
    except Exception as error:
        raise UserError(
            f"{run.checkpoint}: not a checkpoint of this project ({type(error).__name__}); move it away to start "
            "from step 0, or put the right file back"
        ) from None
    changed = differences(experiment, to_dict(config))
    if changed:
        raise UserError(
            f"{run.checkpoint}: belongs to another config than {run.config_file} ({'; '.join(changed)}); put the "
            "right file back, or give run=NEW"
        )
    return checkpoint


def _trainer(config: ExperimentConfig, run: Run, checkpoints: Checkpoints, resumed_at: int) -> lightning.Trainer:
    training = config.training
    tokens_per_step = training.batch_size * config.data.length
    accumulate = accumulation_steps(
        training.batch_size, training.rows_per_pass(), training.devices * training.num_nodes
    )
    average = [Average(training.ema_decay)] if training.ema_decay else []
    logger = TensorBoardLogger(run.folder, name="", version="", default_hp_metric=False, purge_step=resumed_at or None)
    interactive = sys.stderr.isatty()
    return lightning.Trainer(
        accelerator="gpu" if training.accelerator == "cuda" else "cpu",
        devices=training.devices,
        num_nodes=training.num_nodes,
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
        logger=logger,
        plugins=[AtomicCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
        default_root_dir=run.folder,
        callbacks=[
            Throughput(tokens_per_step),
            Samples(run, training.samples),
            *average,
            LearningRateMonitor("step"),
            checkpoints,
            Report(run, tokens_per_step),
            *([TQDMProgressBar(refresh_rate=10)] if interactive else []),
        ],
    )


def _finish(
    config: ExperimentConfig,
    run: Run,
    info: DatasetInfo,
    module: DiffusionModule,
    trainer: lightning.Trainer,
    status: str,
    seconds: float,
) -> None:
    reports = run.reports()
    metrics = reports[max(reports)] if reports else {}
    if status == FINISHED:
        for name in ("nll", "bpb"):
            trainer.logger.log_metrics({f"hp/val_{name}": metrics[f"val/{name}"]}, config.training.steps)
        trainer.logger.save()
    samples = run.folder / "samples.txt"
    earlier = (run.result() or {}).get("seconds", 0.0)
    run.write_result(
        {
            "status": status,
            "step": trainer.global_step,
            "tokens": trainer.global_step * config.training.batch_size * config.data.length,
            "metrics": {k: v for k, v in metrics.items() if k not in ("step", "tokens")},
            "parameters": module.model.count(),
            "corpus": {
                "hash": info.corpus_hash,
                "name": info.name,
                "unigram_entropy": info.unigram_entropy,
                "log_vocabulary": math.log(info.vocab_size),
            },
            "seconds": earlier + seconds,
            "sample": samples.read_text(encoding="utf-8") if samples.exists() else "",
            "git": git_commit(),
        }
    )
    print(f"{run.folder}: {status} at step {trainer.global_step} after {seconds:.0f} s", flush=True)


def git_commit() -> str:
    """The project's commit, with '+' when files differ from it; '' outside a checkout."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")


def run_folder(config: ExperimentConfig, source: Path, chosen: str | None) -> Path:
    """Where a run lives: `chosen`, else the folder of a run's own config.yaml, else runs/NAME."""
    if chosen:
        return Path(chosen)
    return (
        source.parent
        if source.name == "config.yaml"
        else Path(os.environ.get("DIFFUSION_LM_RUNS", "runs")) / config.name
    )
