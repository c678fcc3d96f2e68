"""benchmark tokenization: text to shards by several processes and by one, in turn: all of `data_prep tokenize`.

The text is made: words of random letters, drawn by Zipf's law, as JSON lines in files of equal size; the tokenizer is a
byte-level BPE that is trained on it. What one process does alone (its start, the plan, the merge) is in the time.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_lm.benchmark.measure import check_numbers, interleaved, surroundings

AIM = 1.7
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@dataclass(kw_only=True, slots=True)
class TokenizationConfig:
    megabytes: int = 64
    """Of text."""
    files: int = 8
    processes: int = 2
    """Beside one."""
    vocabulary: int = 8192
    repeats: int = 3
    """Rounds; the median counts."""

    def __post_init__(self) -> None:
        check_numbers(self)


def measure(config: TokenizationConfig) -> dict[str, Any]:
    """Seconds by number of processes, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_text_files(config, folder / "text")
        seconds = interleaved(variants(config, folder), config.repeats, "cpu")
    return {
        "benchmark": "tokenization",
        "sizes": asdict(config),
        **surroundings("cpu"),
        "bytes": size,
        "seconds": {str(processes): value for processes, value in seconds.items()},
        "ratio": seconds[1] / seconds[config.processes],
    }


def write_text_files(config: TokenizationConfig, folder: Path) -> int:
    """The text, as JSON lines. Returns its bytes."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(LETTERS, size)) for size in rng.integers(2, 12, 20000)]
    folder.mkdir()
    total = 0
    for number in range(config.files):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as file:
            written = 0
            while written < config.megabytes * 1e6 / config.files:
                drawn = np.minimum(rng.zipf(1.2, rng.integers(50, 2000)), len(words)) - 1
                written += file.write(json.dumps({"text": " ".join(words[index] for index in drawn)}) + "\n")
            total += written
    return total


def variants(config: TokenizationConfig, folder: Path) -> dict[int, Callable[[int], None]]:
    """By number of processes: makes the dataset of one round."""
    from data_prep.plan import TokenizeSettings
    from data_prep.tokenize import tokenize
    from data_prep.train_tokenizer import train_tokenizer

    tokenizer = folder / "tokenizer.json"
    train_tokenizer(str(folder / "text"), config.vocabulary, tokenizer, 4_000_000)

    def make(processes: int, number: int) -> None:
        out = folder / f"{processes}-{number}"
        source = [str(folder / "text")]
        settings = TokenizeSettings(sources=source, out=out, tokenizer=str(tokenizer), val_fraction=0.05)
        tokenize(settings, processes=processes, say=lambda text: None)

    return {processes: partial(make, processes) for processes in dict.fromkeys((1, config.processes))}


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    lines = [
        sizes,
        f"{found['machine']}; commit {found['git']}",
        "",
        "| processes | seconds | MB of text per second |",
        "|---|---|---|",
    ]
    for processes, seconds in found["seconds"].items():
        lines.append(f"| {processes} | {seconds:.2f} | {found['bytes'] / 1e6 / seconds:.1f} |")
    processes = found["sizes"]["processes"]
    aim = f" (aim: {AIM})" if processes == 2 else ""
    return "\n".join([*lines, "", f"{processes} processes over one: {found['ratio']:.2f} times as fast{aim}"])
