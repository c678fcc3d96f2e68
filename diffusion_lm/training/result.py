"""What a run came to: result.json."""

import json
import math
import subprocess
from collections.abc import Mapping

import lightning

from diffusion_lm.config import name_of
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.evaluation.floor import ABOVE, ENTROPY_RATE, above_floor
from diffusion_lm.experiment import COPIED, ROOT
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.numbers import fixed
from diffusion_lm.training.memory import peak_memory
from diffusion_lm.training.run import Run


def finish(
    run: Run, info: DatasetInfo, module: DiffusionModule, trainer: lightning.Trainer, status: str, seconds: float
) -> None:
    """Write the result of a run that finished or stopped; `seconds` of this life are added to those of earlier ones."""
    config = module.config
    reports = run.reports()
    metrics = reports[max(reports)] if reports else {}
    samples = run.folder / "samples.txt"
    earlier = run.result() or {}
    run.write_result(
        {
            "status": status,
            "step": trainer.global_step,
            "tokens": trainer.datamodule.position * config.data.length,
            "metrics": {name: value for name, value in metrics.items() if name not in ("step", "tokens")},
            "process": name_of(config.process),
            "kind": module.objective.kind().given_ends(config.data.isolate_documents).to_dict(),
            "parameters": module.model.count(),
            **({"from_pretrained": module.pretrained} if module.pretrained else {}),
            "corpus": {
                "hash": info.corpus_hash,
                "name": info.name,
                "unigram_entropy": info.unigram_entropy,
                "log_vocabulary": math.log(info.vocab_size),
                ENTROPY_RATE: info.entropy_rate,
            },
            ABOVE: above_floor(metrics.get("val/nll"), {ENTROPY_RATE: info.entropy_rate}),
            "seconds": earlier.get("seconds", 0.0) + seconds,
            "peak_memory": max(earlier.get("peak_memory", 0), peak_memory()),
            "sample": samples.read_text(encoding="utf-8") if samples.exists() else "",
            "git": git_commit(),
        }
    )
    print(f"{run.folder}: {status} at step {trainer.global_step} after {seconds:.0f} s", flush=True)


def summary(metrics: Mapping[str, float]) -> str:
    """A validation's numbers as a person reads them: the bound, or that there is none and what there is instead."""
    if "val/nll" in metrics:
        error = f" ± {fixed(metrics['val/nll_se'], 4)}" if "val/nll_se" in metrics else ""
        return f"val/nll {fixed(metrics['val/nll'], 4)}{error} nats/token  val/bpb {fixed(metrics['val/bpb'], 3)}"
    found = [f"{name} {fixed(value, 4)}" for name, value in metrics.items() if name.startswith("val/")]
    return "  ".join(["no bound", *found])


def git_commit() -> str:
    """The project's commit, with '+' when files differ from it; '' outside a checkout."""
    if COPIED.is_file():
        return (json.loads(COPIED.read_text())["git"] or "").replace("+changes", "+")

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit + ("+" if commit and ask("status", "--porcelain", "--untracked-files=no") else "")
