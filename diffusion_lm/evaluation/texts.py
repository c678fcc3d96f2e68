"""Text to evaluate on: named sets (`text_sets/NAME.yaml`) and any folder or file of `.txt` and JSON lines.

A set is looked for at `--data PATH` or in `$DIFFUSION_LM_DATA/NAME` (`text_sets/NAME` where that is not set); nothing
is downloaded. A path whose last part is a set's name is read as that set: its field, rows and detokeniser.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_prep.text_files import TextFiles
from diffusion_lm.config import choice, from_tree, to_tree
from diffusion_lm.errors import UserError, unknown
from diffusion_lm.evaluation.detokenizers import DETOKENIZERS
from diffusion_lm.evaluation.protocols.base import Text

TEXT_SETS = Path(__file__).with_name("text_sets")


@dataclass(kw_only=True, slots=True)
class TextSetConfig:
    hub: str = ""
    """Id of the set on the Hugging Face hub, its configuration, the split that papers score, and the field of text."""
    config: str = ""
    split: str = ""
    field: str = "text"
    unit: str = choice("document", "line", "sentence")
    """What a row is: a text, a line of a running text, or a short text by itself. A `.txt` is one document, or its
    lines are the rows."""
    line_end: str = choice("drop", "keep")
    """Whether a row keeps its line end; blank rows are empty rows."""
    detokenizer: str = choice("none", *sorted(set(DETOKENIZERS) - {"none"}))


@dataclass(frozen=True)
class NamedText:
    """A text with what is known of it. digest: sha256 of its rows as they were read."""

    name: str
    text: Text
    digest: str
    facts: dict[str, Any]
    notes: tuple[str, ...]


def set_names() -> list[str]:
    """The named sets."""
    return sorted(path.stem for path in TEXT_SETS.glob("*.yaml"))


def place_of(data: str) -> Path:
    """Where `--data` lies. Raises `UserError` for a named set that is not there, and for what is neither."""
    if data and Path(data).exists():
        return Path(data)
    if data not in set_names():
        raise unknown("--data: no such path, and no text set", data, set_names())
    place = Path(os.environ.get("DIFFUSION_LM_DATA", "text_sets")) / data
    if not place.exists():
        config = _config(data)
        known_as = f"{config.hub} ({config.config})" if config.config else config.hub
        raise UserError(
            f"--data {data}: no {place}; put split '{config.split}' of the hub set {known_as} there as .jsonl with "
            f"field '{config.field}', or as .txt with a {'file' if config.unit == 'document' else 'line'} per row; "
            "DIFFUSION_LM_DATA names another folder of sets"
        )
    return place


def read_text(place: Path) -> NamedText:
    """The rows below `place`, detokenised. Raises `UserError` when there is no text."""
    name = place.resolve().name.partition(".")[0]
    config = _config(name) if name in set_names() else TextSetConfig()
    lines = config.unit != "document"
    files = TextFiles(place, field=config.field, by_line=lines, option="--data")
    raw = [_row(text, config) if lines else text for text in files.documents()]
    notes = tuple(f"{count} {what}" for what, count in files.notes.items())
    if not any(row.strip() for row in raw):
        raise UserError(f"--data {place}: no text in it{''.join('; ' + note for note in notes)}")
    detokenize = DETOKENIZERS[config.detokenizer]
    digest = hashlib.sha256()
    for row in raw:
        coded = row.encode("utf-8", errors="replace")
        digest.update(len(coded).to_bytes(8, "little") + coded)
    text = Text(tuple(detokenize(row) for row in raw), config.unit)
    facts = {"path": str(place), "rows": len(raw), **files.facts(), "read_as": to_tree(config)}
    return NamedText(name, text, digest.hexdigest(), facts, notes)


def _row(text: str, config: TextSetConfig) -> str:
    if not text.strip():
        return ""
    return text if config.line_end == "keep" else text.rstrip("\r\n")


def _config(name: str) -> TextSetConfig:
    return from_tree(TextSetConfig, OmegaConf.to_container(OmegaConf.load(TEXT_SETS / f"{name}.yaml")), name)
