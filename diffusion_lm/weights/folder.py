"""A folder of weights: what `convert` writes, and what `evaluate`, `generate` and `describe` take in a run's place.

model.safetensors, experiment.yaml (the whole experiment), config.json (what is known of the weights: sizes, tokenizer,
data, steps, bound, where they come from) and README.md, a card for people. The folder appears whole or not at all.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diffusion_lm.data.info import DatasetInfo, data_facts
from diffusion_lm.data.manifest import DATASET_FILE
from diffusion_lm.errors import RunError, UserError
from diffusion_lm.experiment import EXPORTED, ExperimentConfig, load, save, with_kernels
from diffusion_lm.files import atomic_folder, fsync, umask, write_json, write_text
from diffusion_lm.lightning_module import build_model
from diffusion_lm.model import DenoisingModel
from diffusion_lm.shapes import Tensor
from diffusion_lm.training.result import git_commit
from diffusion_lm.weights import keys
from diffusion_lm.weights.card import card
from diffusion_lm.weights.checkpoint import read_safetensors
from diffusion_lm.weights.formats.base import Pretrained, tokenizer_of

WEIGHTS, FACTS, CARD = "model.safetensors", "config.json", "README.md"
VERSION = 1


@dataclass(frozen=True)
class Exported:
    """A folder of weights, read. facts: config.json."""

    folder: Path
    config: ExperimentConfig
    facts: dict[str, Any]
    state: dict[str, Tensor]

    def model(self) -> DenoisingModel:
        """The model, float32 on the host, for the config's own backends."""
        return filled(self.folder, build_model(self.config, self.facts["vocabulary"]), self.state)

    def info(self) -> DatasetInfo:
        """The facts of the data: of the shards where they lie, else those of the training data that came along."""
        config, dataset = self.config.data, self.facts["dataset"]
        if dataset is None or (Path(config.path) / DATASET_FILE).is_file():
            return data_facts(config)
        return DatasetInfo.of(Path(config.path), dataset)


def is_export(folder: str | Path) -> bool:
    """Whether a folder of weights lies there."""
    return (Path(folder) / EXPORTED).is_file()


def load_pretrained(folder: str | Path) -> DenoisingModel:
    """The model in a folder of weights, ready to be called: float32 on the host, in evaluation mode.

    Raises `UserError` in one line where there is none, or where a file of it is damaged.
    """
    found = read_folder(folder)
    found.config.denoiser = with_kernels(found.config.denoiser, "cpu", anew=True)
    return found.model().eval()


def read_folder(folder: str | Path) -> Exported:
    """What `write_folder` wrote."""
    folder = Path(folder)
    if not is_export(folder):
        raise UserError(f"{folder}: no weights here (no {EXPORTED}); expected a folder that `convert` made")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        version = facts["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / FACTS}: cannot be read ({error!r}); convert the weights again") from None
    if version != VERSION:
        raise UserError(f"{folder / FACTS}: version {version}, expected {VERSION}; convert the weights again")
    state = read_safetensors(folder / WEIGHTS)
    state |= {name: state[other] for name, other in facts["tied"].items() if other in state}
    return Exported(folder, load(folder / EXPORTED, trained=True), facts, state)


def filled(where: str | Path, model: DenoisingModel, state: Mapping[str, Tensor]) -> DenoisingModel:
    """`model` with the tensors of `state`; refused unless they are exactly its own."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    keys.check(where, state, own, "the model of its experiment")
    model.load_state_dict(state)
    return model


def write_folder(folder: str | Path, found: Pretrained, command: str) -> dict[str, Any]:
    """Write the folder, whole; returns the facts. Raises `UserError` where something is there already, or where the
    tensors are not those of the experiment's model, and `RunError` where the disk is full."""
    folder = Path(folder)
    check_new(folder)
    with torch.device("meta"):
        model = build_model(found.config, found.vocabulary)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    keys.check(found.facts["source"]["path"], found.state, shapes, "the model of its experiment")
    tied, state = _untied(found.state)
    facts = _facts(found, model, tied, command)
    with _whole(folder) as place:
        try:
            save_file(state, place / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise _full(folder, str(error)) from None
        os.chmod(place / WEIGHTS, 0o666 & ~umask())
        fsync(place / WEIGHTS)
        save(found.config, place / EXPORTED)
        write_text(place / CARD, card(found.config, facts))
        write_json(place / FACTS, facts)
    return facts


def check_new(folder: Path) -> None:
    """Refuse a folder that holds anything, or cannot be made."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise UserError(f"--out {folder}: is there already, and nothing is written over; give a new folder")
    there = next(place for place in folder.absolute().parents if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--out {folder}: cannot be made in {there}; give a folder where you may write")


def _facts(found: Pretrained, model: DenoisingModel, tied: dict[str, str], command: str) -> dict[str, Any]:
    tokenizer = tokenizer_of(found.config)
    known = {"fingerprint": tokenizer.fingerprint, "eot_id": tokenizer.eot_id} if tokenizer is not None else {}
    return {
        "version": VERSION,
        "name": found.config.name,
        "vocabulary": found.vocabulary,
        "parameters": model.count(),
        "tokenizer": {"name": found.config.data.tokenizer, "vocabulary": found.vocabulary, **known},
        **{"step": None, "tokens": None, "bound": None, "dataset": None, "notes": []},
        **found.facts,
        "tied": tied,
        "command": command,
        "git": git_commit(),
    }


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The names whose tensor is another name's too, with that name; and the state without them, ready to be saved."""
    first: dict[tuple, str] = {}
    tied = {}
    for name, value in state.items():
        key = (value.data_ptr(), tuple(value.shape), value.stride()) if value.numel() else (name,)
        if first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied, {name: value.detach().cpu().contiguous() for name, value in state.items() if name not in tied}


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """`atomic_folder`, whose errors name --out."""
    try:
        with atomic_folder(folder) as place:
            yield place
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(folder, error.strerror) from None
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); give another folder") from None


def _full(folder: Path, why: str) -> RunError:
    return RunError(f"--out {folder}: the weights could not be written ({why}); make room, then repeat the command")
