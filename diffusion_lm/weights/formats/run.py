"""run: a run of this project, or another folder of its weights."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.load import LoadedRun, load_run
from diffusion_lm.training.run import Run
from diffusion_lm.weights.folder import is_export, read_folder
from diffusion_lm.weights.formats.base import Format, Options, Pretrained


class OwnRun(Format):
    """The weights of a run's last checkpoint, averaged by the decay that is asked for."""

    summary: ClassVar[str] = "a run of this project"

    def read(self, source: Path, options: Options) -> Pretrained:
        if options.overrides or options.vocabulary:
            raise UserError("convert run: the run's own config goes with its weights; expected no key=value")
        loaded = load_run(source, ema=options.ema)
        state, vocabulary = loaded.model.state_dict(), loaded.model.vocabulary
        if is_export(source):
            found = read_folder(source)
            return Pretrained(found.config, vocabulary, state, found.facts)
        config = Run(source).saved_config()
        config.training.ema_decay, config.training.ema_decays = loaded.ema, ()
        return Pretrained(config, vocabulary, state, _facts(Run(source), loaded))


def _facts(run: Run, loaded: LoadedRun) -> dict[str, Any]:
    config, report = loaded.config, run.reports().get(loaded.step, {})
    own = loaded.ema == config.training.ema_decay
    measured = {name: value for name, value in report.items() if name.startswith("val/")}
    return {
        "step": loaded.step,
        "tokens": report.get("tokens", loaded.step * config.training.batch_size * config.data.length),
        "weights": f"averaged by {loaded.ema:g}" if loaded.ema else "live",
        "bound": {**measured, "exact": loaded.objective.exact} if own and "val/nll" in measured else None,
        "dataset": dataset_facts(loaded.info),
        "trained_by": (run.result() or {}).get("git") or None,
    }


def dataset_facts(info: DatasetInfo) -> dict[str, Any]:
    """What `dataset.json` says, as plain values."""
    return {name: value for name, value in asdict(info).items() if name != "path"}
