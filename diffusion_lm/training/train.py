"""Training one experiment in one run folder: start, resume, stop, finish."""

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import lightning
import torch

from diffusion_lm.data import batches
from diffusion_lm.data.datamodule import TokenDataModule, accumulation_steps, open_split
from diffusion_lm.data.info import DatasetInfo, data_facts
from diffusion_lm.data.manifest import SPLITS
from diffusion_lm.errors import DiskError, UserError
from diffusion_lm.experiment import ExperimentConfig, with_kernels
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.training import allocation
from diffusion_lm.training.blocks import check_compiler, prepare_blocks
from diffusion_lm.training.callbacks import Checkpoints, Stopped
from diffusion_lm.training.checkpoint import data_state, read_checkpoint
from diffusion_lm.training.failure import failing_once, refused_once
from diffusion_lm.training.failure_class import recorded
from diffusion_lm.training.hparams import columns, flat_hparams
from diffusion_lm.training.pretrained import start_from_pretrained
from diffusion_lm.training.result import finish, summary
from diffusion_lm.training.run import FINISHED, INTERRUPTED, PRUNED, Run
from diffusion_lm.training.signals import StopSignal
from diffusion_lm.training.strategy import check_shares
from diffusion_lm.training.trainer import make_trainer, quiet

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    errno.EROFS: "make the folder writable",
}
EXIT_CODES = {FINISHED: 0, PRUNED: 3, INTERRUPTED: 75}


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


def started_with(run: Run) -> ExperimentConfig | None:
    """The run's config. One that was put there to be trained, and still says ``auto``, reads as it will be started."""
    saved = run.saved_config()
    return None if saved is None else resolve(saved, None)


def prepare(config: ExperimentConfig, run: Run) -> tuple[DiffusionModule, DatasetInfo]:
    """Check everything that can be checked, and build the model, before anything is written. Raises `UserError`."""
    saved = started_with(run)
    config = resolve(config, saved)
    info = data_facts(config.data)
    training = config.training
    allocation.check(training)
    if training.samples and config.sampler.guidance:
        raise UserError(
            f"sampler.guidance: got {config.sampler.guidance}, but training draws its texts without a prompt; leave it "
            f"0, and guide when generating: python -m diffusion_lm generate {run.folder} --prompt TEXT guidance="
            f"{config.sampler.guidance}"
        )
    accumulation_steps(training.batch_size, training.rows_per_pass(), training.devices * training.num_nodes)
    run.check(saved, config)
    check_compiler(training)
    for split in SPLITS:
        open_split(config.data, split)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = DiffusionModule(config, info)
    if training.from_pretrained and not run.checkpoint.is_file():
        start_from_pretrained(module)
    check_shares(module, training)
    return module, info


def train(config: ExperimentConfig, run: Run) -> int:
    """Train until done or told to stop; returns the exit status: 0 finished, 75 interrupted, 3 pruned, 130 Ctrl-C."""
    devices = config.training.devices * config.training.num_nodes
    with refused_once(devices), recorded(run), quiet(devices), StopSignal() as stop:
        module, info = prepare(config, run)
        with run.locked():
            result = run.result()
            if result and result["status"] == FINISHED:
                print(
                    f"{run.folder} is finished: step {result['step']}, {summary(result['metrics'])}; repeat it with "
                    "run=NEW"
                )
                return 0
            run.check(started_with(run), module.config)
            checkpoint = read_checkpoint(run, module.config) if run.checkpoint.is_file() else None
            resumed_at = checkpoint["global_step"] if checkpoint else 0
            try:
                run.save_config(module.config)
                if checkpoint:
                    batches.note(run.folder, data_state(checkpoint), module.config.training.batch_size)
                run.stop_file.unlink(missing_ok=True)
                run.failure_file.unlink(missing_ok=True)
                return _fit(module, run, info, resumed_at, stop)
            except OSError as error:
                if error.errno not in REMEDIES:
                    raise
                raise DiskError(
                    f"{run.folder}: {error.strerror}; {REMEDIES[error.errno]}, then repeat the command: it goes on "
                    "from the last checkpoint"
                ) from None


def _fit(module: DiffusionModule, run: Run, info: DatasetInfo, resumed_at: int, stop: StopSignal) -> int:
    began = time.monotonic()
    config, training = module.config, module.config.training
    data = TokenDataModule(
        config.data, seed=config.seed, global_batch=training.batch_size, micro_batch=training.rows_per_pass()
    )
    prepare_blocks(module.model, training)
    checkpoints = Checkpoints(run, training.checkpoint_every, training.val_every, stop)
    trainer = make_trainer(config, run, checkpoints, resumed_at)
    if trainer.is_global_zero:
        print(
            f"{run.folder}: {module.model.count()['total']:,} parameters, {training.accelerator}, "
            f"{training.precision}, {training.steps * training.batch_size * config.data.length:,} tokens planned"
            + (f", resuming at step {resumed_at}" if resumed_at else _origin(module)),
            flush=True,
        )
    trainer.logger.log_hyperparams(flat_hparams(config, run.folder), columns(module.objective.headline))
    with failing_once(trainer), suppress(Stopped):
        trainer.fit(module, data, ckpt_path=run.checkpoint if resumed_at else None, weights_only=True)
        if training.steps not in run.reports():
            trainer.validate(module, data, verbose=False)
    status = checkpoints.stopped or FINISHED
    if not trainer.is_global_zero:
        return 0  # the first device speaks for all; Lightning kills it when another ends with a status of its own
    finish(run, info, module, trainer, status, time.monotonic() - began)
    return 128 + signal.SIGINT if stop.number == signal.SIGINT and status == INTERRUPTED else EXIT_CODES[status]


def _origin(module: DiffusionModule) -> str:
    """Where the weights come from, if not from the seed."""
    found = module.pretrained
    if not found:
        return ""
    told = f" ({'; '.join(found['differences'])})" if "differences" in found else ""
    return f", from the weights of {found['source']} at step {found['step']}{told}"


def run_folder(config: ExperimentConfig, source: Path, chosen: str | None) -> Path:
    """Where a run lives: `chosen`, else the folder of a run's own config.yaml, else runs/NAME."""
    if chosen:
        return Path(chosen)
    return (
        source.parent
        if source.name == "config.yaml"
        else Path(os.environ.get("DIFFUSION_LM_RUNS", "runs")) / config.name
    )
