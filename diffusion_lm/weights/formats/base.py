"""Formats: what weights come from, and what every format makes of them. The folder is the registry.

A format reads a file or folder and gives an experiment's config, the tensors of its `DenoisingModel` by their names
here, and what is known of them. `weights.folder` writes that down; no format writes anything.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from diffusion_lm.data.tokenizers.base import Tokenizer, is_known, load_tokenizer
from diffusion_lm.errors import UserError, unknown
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.shapes import Tensor


@dataclass(frozen=True)
class Options:
    """overrides: key=value over the config that a format finds. ema: decay of the average that is wanted, 0 for the
    live weights, None for the average where there is one. vocabulary: ids of a tokenizer that this project lacks."""

    overrides: Sequence[str] = ()
    ema: float | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Pretrained:
    """facts: what goes into config.json beside the sizes: source, step, tokens, bound, dataset, notes."""

    config: ExperimentConfig
    vocabulary: int
    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)


class Format(ABC):
    """A way in which weights are stored."""

    summary: ClassVar[str]
    """What it reads, for --help."""

    @abstractmethod
    def read(self, source: Path, options: Options) -> Pretrained:
        """Raises `UserError` in one line for what is not there, damaged or of another format."""


def names() -> list[str]:
    """The formats there are: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name != "base")


def load_format(name: str) -> Format:
    """The format called `name`. Raises `UserError` naming the ones there are."""
    if name not in names():
        raise unknown("format: no variant", name, names())
    module = importlib.import_module(f"{__package__}.{name}")
    [variant] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Format) and value.__module__ == module.__name__
    ]
    return variant()


def tokenizer_of(config: ExperimentConfig) -> Tokenizer | None:
    """The tokenizer that the config names, if this project has it."""
    return load_tokenizer(config.data.tokenizer) if is_known(config.data.tokenizer) else None


def vocabulary_of(config: ExperimentConfig, options: Options, rows: int, extra: int, default: int) -> int:
    """Ids of the text's tokenizer: as the options say, else the tokenizer, else `default`.

    Refused unless a table of `rows` has room for them and `extra` more.
    """
    tokenizer = tokenizer_of(config)
    found = options.vocabulary or (tokenizer.vocab_size if tokenizer is not None else default)
    if not 0 < found <= rows - extra:
        raise UserError(
            f"vocabulary: got {found} ids (tokenizer '{config.data.tokenizer}'), the token table has {rows} rows; "
            f"expected at most {rows - extra}: set data.tokenizer to the one that the weights were trained with"
        )
    return found
