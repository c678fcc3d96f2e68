"""Training that starts from weights: those of another run, averaged or live, or of a folder that `convert` made.

A block-wise model can start from one of whole texts, as BD3-LM's do (arXiv 2503.09573): the parameters are the same.
They are read once, before the first step; a run that is resumed has its own. Tensors of the same names and shapes can
still be of another model (other heads in as many channels, other angles): what the weights mean has to be the same.
What a text sees of itself and how it is noised may differ, as from a next-token model to a diffusion one, and is told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lm.config import differences, name_of, part_class, to_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.shapes import Tensor
from diffusion_lm.training.averaging import averaged
from diffusion_lm.training.checkpoint import read_checkpoint
from diffusion_lm.training.run import Run
from diffusion_lm.weights.folder import is_export, read_folder

KEY = "training.from_pretrained"
MODEL = "model."
Facts = dict[str, Any]
PARTS = ("model", "denoiser", "process")
OF_TRAINING = ("kernel", "chunk_size", "pad_vocabulary_to", "self_conditioning")
OF_THE_START = ("token_std", "dt_min", "dt_max", "dt_init_floor", "conv_init", "A_init_range")
OF_SHAPES = ("mlp_expansion", "mlp_width", "n_kv_heads", "attention_every", "attention_position", "pattern")
FREE = frozenset((*OF_TRAINING, *OF_THE_START, *OF_SHAPES))
"""Keys that say nothing of what trained weights, of given names and shapes, mean."""
TOLD = frozenset(("causal", "block_size", "reverse_scan"))
"""Keys that may change on purpose: what a position sees. So may the process."""


def start_from_pretrained(module: DiffusionModule) -> None:
    """Give the model the weights that its experiment names. Raises `UserError` where they are not of such a model."""
    training = module.config.training
    folder = Path(training.from_pretrained)
    state, config, facts = (_of_export if is_export(folder) else _of_run)(folder, training.pretrained_weights)
    if config.data.tokenizer != module.config.data.tokenizer:
        raise UserError(
            f"{KEY}: {folder} was trained on tokens of '{config.data.tokenizer}', this experiment has "
            f"data.tokenizer={module.config.data.tokenizer}; expected weights of the same vocabulary"
        )
    _check(folder, state, module.model.state_dict())
    told = _differences(folder, config, module.config)
    module.model.load_state_dict(state)
    module.pretrained = {"source": str(folder), **facts, **({"differences": told} if told else {})}


def _of_run(folder: Path, weights: str) -> tuple[dict[str, Tensor], ExperimentConfig, Facts]:
    run = Run(folder)
    config = run.saved_config()
    if config is None or not run.checkpoint.is_file():
        missing = "no run here (no config.yaml)" if config is None else f"no checkpoint yet (no {run.checkpoint.name})"
        raise UserError(f"{KEY}: {folder}: {missing}; expected the folder of a trained run, or of weights")
    checkpoint = read_checkpoint(run, config)
    decay = config.training.ema_decay if weights == "averaged" else 0.0
    state = averaged(checkpoint, config.training, decay)
    model = {name.removeprefix(MODEL): tensor for name, tensor in state.items() if name.startswith(MODEL)}
    return model, config, {"step": checkpoint["global_step"], "ema_decay": decay}


def _of_export(folder: Path, weights: str) -> tuple[dict[str, Tensor], ExperimentConfig, Facts]:
    if weights != "averaged":
        raise UserError(
            f"training.pretrained_weights: got {weights}, but {folder} holds one set of weights; leave it averaged"
        )
    found = read_folder(folder)
    return found.state, found.config, {"step": found.facts["step"], "ema_decay": found.config.training.ema_decay}


def _check(folder: Path, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse other names or shapes than the model's own."""

    def shape(tensors: Mapping[str, Tensor], name: str) -> Any:
        return list(tensors[name].shape) if name in tensors else "missing"

    names = dict.fromkeys((*own, *state))
    differ = [name for name in names if shape(state, name) != shape(own, name)]
    if differ:
        more = f", and {len(differ) - 1} more" if len(differ) > 1 else ""
        raise UserError(
            f"{KEY}: the parameters of {folder} are not this experiment's ('{differ[0]}' is {shape(state, differ[0])} "
            f"there and {shape(own, differ[0])} here{more}); expected the same model, denoiser and vocabulary"
        )


def _differences(folder: Path, there: ExperimentConfig, here: ExperimentConfig) -> list[str]:
    """What may differ and does, to be told; anything else that changes what the weights mean is refused."""

    def meaning(config: ExperimentConfig) -> Facts:
        parts = {name: {"name": name_of(part), **to_tree(part)} for name in PARTS for part in (getattr(config, name),)}
        return parts | {"objective": {"readout": part_class(config.objective).readout}}

    found = {line.partition(":")[0]: line for line in differences(meaning(there), meaning(here))}
    keys = [key for key in found if key.rpartition(".")[2] not in FREE]
    told = [key for key in keys if key.startswith("process.") or key.rpartition(".")[2] in TOLD]
    if refused := [found[key] for key in keys if key not in told]:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        raise UserError(
            f"{KEY}: the weights of {folder} are of another model, of the same shapes ({refused[0]}{more}); expected "
            "the keys that they were trained with; set them as there"
        )
    return [found[key] for key in told]
