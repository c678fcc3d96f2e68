"""Weights that others saved: Lightning checkpoints, plain state dicts, safetensors files, Hugging Face folders.

Nothing in a file is run. What it holds beside tensors and plain values (a config object, a tokenizer) is of classes
that are not imported: an inert object takes the place of each and keeps its fields, and settings are read from them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffusion_lm.errors import UserError
from diffusion_lm.shapes import Tensor

WHOLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Foreign:
    """state: tensors by their names there. settings: its config as plain values, nested as it was; {} where there is
    none. average: the averaged weights, a list in the order of the parameters; None where there is none."""

    source: Path
    state: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    average: list[Tensor] | None = None
    decay: float = 0.0
    step: int | None = None

    def setting(self, *places: str) -> Any:
        """The value at the first of some dotted places that is there; None where none is."""
        for place in places:
            value: Any = self.settings
            for name in place.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None


class Inert:
    """Stands for an object, or what a function made, whose class is not loaded."""

    def __new__(cls, *arguments: Any, **named: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


def read_foreign(source: str | Path) -> Foreign:
    """What lies at `source`, a file or a folder. Raises `UserError` where that is no weights."""
    source = Path(source)
    if source.is_dir():
        return Foreign(source, _of_folder(source), _settings_beside(source))
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder; expected a checkpoint, or a folder with {WHOLE[0]}")
    if source.suffix == ".safetensors":
        return Foreign(source, _tensors(source), _settings_beside(source.parent))
    found = read_torch(source)
    if not isinstance(found, Mapping):
        raise _unreadable(source, f"it holds a {type(found).__name__}, expected a dict of tensors")
    if "state_dict" not in found:
        return Foreign(source, _only_tensors(source, found), _settings_beside(source.parent))
    average, step = found.get("ema"), found.get("global_step")
    given = plain(found.get("hyper_parameters")) or {}
    return Foreign(
        source,
        _only_tensors(source, found["state_dict"]),
        given.get("config") or given,
        average.get("shadow_params") if isinstance(average, Mapping) else None,
        float(average.get("decay") or 0.0) if isinstance(average, Mapping) else 0.0,
        step if isinstance(step, int) else None,
    )


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, by PyTorch's restricted reader; unknown classes become `Inert`."""
    try:
        unknown = _unknown_classes(path)
        with torch.serialization.safe_globals([(Inert, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except Exception:  # the reader raises whatever the bytes lead it to, and its texts are about those
        raise _unreadable(path, "it is no file that torch.save wrote, or not the whole of one") from None


def plain(value: Any) -> Any:
    """Values out of inert objects: OmegaConf's nodes, dicts and lists; None for what is neither these nor plain."""
    if isinstance(value, Inert):
        fields = vars(value)
        return plain(fields["_content"] if "_content" in fields else fields.get("_val"))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) else None


def _unknown_classes(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before PyTorch 1.6 has no index of them
        return []


def _of_folder(folder: Path) -> dict[str, Tensor]:
    for name in WHOLE:
        if (folder / name).is_file():
            return _tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(_json(index)["weight_map"].values()))
            return {key: value for part in parts for key, value in _tensors(folder / part).items()}
    raise UserError(f"{folder}: no weights in it; expected {' or '.join(WHOLE)}, whole or with an index of parts")


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _only_tensors(path, read_torch(path))
    return read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `UserError` where it is none, or cut short."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error).partition("\n")[0]) from None


def _only_tensors(path: Path, found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise _unreadable(path, f"it holds a {type(found).__name__}, expected a dict of tensors")
    wrong = next((key for key, value in found.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise _unreadable(path, f"'{wrong}' is a {type(found[wrong]).__name__}, expected a tensor")
    return dict(found)


def _settings_beside(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return _json(file) if file.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from None
    if not isinstance(found, dict):
        raise _unreadable(path, f"it holds a {type(found).__name__}, expected an object")
    return found


def _unreadable(path: Path, why: str) -> UserError:
    return UserError(
        f"{path}: cannot be read as weights ({why}); expected an undamaged checkpoint; give another, or get it again"
    )
