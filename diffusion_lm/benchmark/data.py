"""benchmark data: tokens per second of reading shards, this project's reader beside webdataset's, on the same tokens.

Ids are drawn by Zipf's law; they are written as this project's shards and as DCLM writes them (a gzipped JSON list of
2 L + 1 ids per member). Own reading checks every row's CRC-32 and gives int64. All variants run in one process, in
turn; `batches` is all that a training step asks of the data: order, reading, checking, tensors. Its cost is told as the
share of a core that a consumer of a million tokens per second takes.
"""

import gzip
import io
import itertools
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_lm.benchmark.measure import check_numbers, surroundings
from diffusion_lm.config import choice
from diffusion_lm.data.datamodule import TokenDataModule
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.dclm import DclmTokens
from diffusion_lm.data.info import DatasetInfo, SplitInfo, TokenDataConfig
from diffusion_lm.data.manifest import (
    DATASET_FILE,
    MANIFEST_FILE,
    ROWS_PER_RECORD,
    VERSION,
    corpus_hash,
    manifest_text,
)
from diffusion_lm.data.reader import TokenReader
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.files import write_json, write_text

OWN, OWN_UNCHECKED, BATCHES = "own shards, random order", "own shards, random order, unchecked", "batches"
DCLM_ORDER, DCLM_RANDOM = "DCLM shards, in order", "DCLM shards, random order"
DCLM_CONTEXTS = "DCLM shards, random contexts"
WDS_DCLM, WDS_OWN = "webdataset: DCLM shards, in order", "webdataset: own shards, in order"
RATIOS = {
    "random order over webdataset's decode of DCLM shards": (OWN, WDS_DCLM, 20.0),
    "random order over webdataset's reading of own shards in order": (OWN, WDS_OWN, 0.5),
    "DCLM shards in order over webdataset's": (DCLM_ORDER, WDS_DCLM, 2.0),
    "DCLM shards in random contexts over webdataset's in order": (DCLM_CONTEXTS, WDS_DCLM, 2.0),
    "random order over the same unchecked": (OWN, OWN_UNCHECKED, None),
}
"""Tokens per second of one over another, and what is aimed at."""
VOCABULARY, PER_SHARD = 50257, 1024
TOKENIZER = f"ids:{VOCABULARY}"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    sequences: int = 4096
    length: int = 1024
    batch: int = 64
    """Sequences that are asked for at a time."""
    repeats: int = 5
    """Rounds; the median counts."""
    clock: str = choice("processor", "wall")
    """Processor seconds of this process do not depend on other load; reading from a cold disk is not in them."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.sequences % (2 * self.batch):
            raise ValueError(f"sequences: got {self.sequences}, expected a multiple of 2 x batch = {2 * self.batch}")


def measure(config: DataConfig) -> dict[str, Any]:
    """Every variant's tokens per second by both clocks, ratios, and the share of a core."""
    with tempfile.TemporaryDirectory() as folder:
        steps = variants(config, Path(folder))
        seconds = _in_turn(steps, config.repeats)
    tokens = config.sequences * config.length
    speeds = {name: {clock: tokens / value for clock, value in both.items()} for name, both in seconds.items()}
    return {
        "benchmark": "data",
        "sizes": asdict(config),
        **surroundings("cpu"),
        "tokens_per_second": speeds,
        "ratios": {
            name: {"value": speeds[a][config.clock] / speeds[b][config.clock], "aim": aim}
            for name, (a, b, aim) in RATIOS.items()
        },
        "core_share_at_1M_tokens_per_second": 1e6 / speeds[BATCHES]["processor"],
    }


def variants(config: DataConfig, folder: Path) -> dict[str, Callable[[], int]]:
    """What is measured: each reads all tokens once and returns how many sequences, or parts of them, it met."""
    rows = _tokens(config)
    own = _write_own(folder / "own", rows)
    unchecked = _write_own(folder / "unchecked", rows, crc=False)
    windows, contexts = (_write_dclm(folder / f"dclm{times}", rows, times) for times in (1, 2))
    order = np.random.default_rng(1).permutation(config.sequences)
    step = config.batch
    return {
        OWN: lambda: _read(own, order, step),
        OWN_UNCHECKED: lambda: _read(unchecked, order, step),
        WDS_OWN: lambda: _webdataset(folder / "own", lambda sample: sample["tokens.npy"]),
        WDS_DCLM: lambda: _webdataset(folder / "dclm1", lambda sample: sample["json.gz"]),
        DCLM_ORDER: lambda: _read(windows, np.arange(config.sequences), step),
        DCLM_RANDOM: lambda: _read(windows, order, step),
        DCLM_CONTEXTS: lambda: _read(contexts, order[order < config.sequences // 2], step),
        BATCHES: lambda: _batches(folder / "own", config),
    }


def _read(tokens: TokenReader, order: np.ndarray, step: int) -> int:
    return sum(len(tokens.read(order[at : at + step]).rows) for at in range(0, len(order), step))


def _webdataset(folder: Path, field: Callable[[dict], Any]) -> int:
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return sum(len(field(sample)) for sample in webdataset.WebDataset(urls, shardshuffle=False).decode())


def _batches(folder: Path, config: DataConfig) -> int:
    settings = TokenDataConfig(path=str(folder), length=config.length, tokenizer=TOKENIZER)
    module = TokenDataModule(settings, seed=0, global_batch=config.batch, micro_batch=config.batch)
    count = config.sequences // config.batch
    return sum(len(batch["tokens"]) for batch in itertools.islice(iter(module.train_dataloader()), count))


def _tokens(config: DataConfig) -> np.ndarray:
    """Ids [sequences, L] that are as frequent as words are."""
    p = 1 / np.arange(1, VOCABULARY + 1)
    drawn = np.random.default_rng(0).random((config.sequences, config.length))
    return np.searchsorted(np.cumsum(p / p.sum()), drawn).clip(max=VOCABULARY - 1).astype("<u2")


def _write_own(folder: Path, rows: np.ndarray, crc: bool = True) -> ShardedTokens:
    """The rows as shards; without checksums, as in folders from before there were any, on demand."""
    from data_prep.shards import write_shards

    folder.mkdir()
    records = (rows[at : at + ROWS_PER_RECORD] for at in range(0, len(rows), ROWS_PER_RECORD))
    shards = write_shards(folder, "train", records, PER_SHARD // ROWS_PER_RECORD, eot_id=VOCABULARY - 1)
    if not crc:
        shards = [replace(shard, crc="", crc_sha256="") for shard in shards]
    tokenizer = load_tokenizer(TOKENIZER)
    counts = SplitInfo(documents=0, tokens=rows.size, text_bytes=rows.size, sequences=len(rows), dropped_tokens=0)
    info = DatasetInfo(
        path=folder, name="drawn", version=VERSION, source="drawn", source_facts={}, tokenizer=TOKENIZER,
        tokenizer_fingerprint=tokenizer.fingerprint, vocab_size=VOCABULARY, eot_id=VOCABULARY - 1, length=rows.shape[1],
        dtype="<u2", packing="drawn by Zipf's law", split_rule="none", val_fraction=0.0, records_per_shard=PER_SHARD,
        splits={"train": counts}, duplicate_documents=0, unigram_entropy=0.0, bytes_per_token=1.0, corpus_hash="",
    )  # fmt: skip
    facts = asdict(replace(info, corpus_hash=corpus_hash(info.content_facts(), shards)))
    del facts["path"]
    write_text(folder / MANIFEST_FILE, manifest_text(shards))
    write_json(folder / DATASET_FILE, facts)
    return ShardedTokens(folder, "train")


def _write_dclm(folder: Path, rows: np.ndarray, times: int) -> DclmTokens:
    """The rows by twos as DCLM's contexts, each with one id more, indexed for windows of `times` rows."""
    from data_prep.index import IndexSettings, index

    folder.mkdir()
    contexts = np.concatenate([rows.reshape(len(rows) // 2, -1), np.zeros((len(rows) // 2, 1), rows.dtype)], 1)
    for number, at in enumerate(range(0, len(contexts), PER_SHARD)):
        with tarfile.open(folder / f"shard_{number:08}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for place, ids in enumerate(contexts[at : at + PER_SHARD].tolist()):
                data = gzip.compress(json.dumps(ids, separators=(",", ":")).encode())
                member = tarfile.TarInfo(f"{number:08}_{place:08}.json.gz")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    sizes = {"context": contexts.shape[1], "length": times * rows.shape[1], "vocab_size": VOCABULARY}
    index(IndexSettings(folder=folder, tokenizer=TOKENIZER, eot_id=VOCABULARY - 1, val_shards=0, **sizes))
    return DclmTokens(folder, "train")


def _in_turn(steps: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of each step by both clocks; the first round does not count."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(1 + repeats):
        for name, step in steps.items():
            began = time.perf_counter(), time.process_time()
            step()
            seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {
        name: {clock: statistics.median(one[n] for one in values[1:]) for n, clock in enumerate(("wall", "processor"))}
        for name, values in seconds.items()
    }


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    lines = [
        f"{sizes}; ids by Zipf's law",
        f"{found['machine']}; torch {found['torch']}, {found['threads']} threads; commit {found['git']}",
        "",
        "| reading | M tokens per processor second | M tokens per second |",
        "|---|---|---|",
    ]
    for name, speed in found["tokens_per_second"].items():
        lines.append(f"| {name} | {speed['processor'] / 1e6:.1f} | {speed['wall'] / 1e6:.1f} |")
    lines += ["", f"| ratio, by {found['sizes']['clock']} time | found | aim |", "|---|---|---|"]
    for name, ratio in found["ratios"].items():
        lines.append(f"| {name} | {ratio['value']:.2f} | {ratio['aim'] or '-'} |")
    share = found["core_share_at_1M_tokens_per_second"]
    return "\n".join([*lines, "", f"batches for 1 M tokens per second: {share:.2%} of a core (aim: under 5 %)"])
