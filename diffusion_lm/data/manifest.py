"""The files of a dataset folder: `manifest.jsonl` (one line per shard) and `dataset.json` (written last: its presence
means complete), and the hash that stands for the content.

    dataset.json   manifest.jsonl   train-000000.tar  train-000000.tar.crc32 ...   val-000000.tar ...

A shard is a plain tar that webdataset reads: records `NNNNNN.tokens.npy`, each an array [n <= 64, L] of uint16, or of
uint32 where the vocabulary needs it.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusion_lm.errors import UserError

VERSION = 1
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.jsonl"
INCOMPLETE_FILE = "incomplete.json"  # present from the first write to the last
PLAN_FILE = "parts/plan.json"  # what `data_prep tokenize` was asked for, from its first write on
ROWS_PER_RECORD = 64
TOKENS_KEY = "tokens.npy"
DTYPE = "<u2"
SPLITS = ("train", "val")
MOVABLE = ("name", "root", "code_version")
"""Facts that say nothing of the content: of where it lies, which may be changed by hand, and when it was made."""


@dataclass(kw_only=True, slots=True)
class Shard:
    """One line of the manifest. `offsets` [records]: the byte at which each record's array data begins, so that rows
    can be mapped without walking the tar; every record but a shard's last has `ROWS_PER_RECORD` rows. `tokens`
    stored in it and `documents` that end in it, 0 where not counted. `crc`: the side file of checksums (`crc.py`), ""
    where there is none, and its hash. Manifests from before these have the defaults."""

    shard: str
    split: str
    num_sequences: int
    records: int
    bytes: int
    sha256: str
    offsets: list[int]
    tokens: int = 0
    documents: int = 0
    crc: str = ""
    crc_sha256: str = ""


def manifest_text(shards: Iterable[Shard]) -> str:
    """The text of `manifest.jsonl`."""
    return "".join(json.dumps(asdict(shard)) + "\n" for shard in shards)


def read_manifest(folder: Path, name: str = MANIFEST_FILE) -> list[Shard]:
    """The shards of `folder`, in order. Raises `UserError` when the file is missing or not a manifest."""
    path = folder / name
    try:
        shards = [Shard(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        outside = [name for shard in shards for name in (shard.shard, shard.crc) if not is_inside(name)]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the dataset is not whole, make it again") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a manifest ({error}); the dataset is damaged, make it again") from None
    if outside:
        raise UserError(
            f"{path}: names a file {outside[0]!r}, which would lie outside the folder; expected names below it: do not "
            "use this dataset"
        )
    return shards


def is_inside(name: str) -> bool:
    """Whether a file of that name lies below the folder that names it."""
    return not re.search(r"^/|(^|/)\.\.(/|$)|[\0\\]", name)


def sealed(facts: dict, manifest: str) -> dict:
    """The facts of `dataset.json` with the hash of the manifest's text and one over all of them, so that a fact or a
    line that was changed later is found. The corpus hash covers what the ids mean and the shards' content alone."""
    facts = {**facts, "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest()}
    return {**facts, "facts_sha256": facts_hash(facts)}


def facts_hash(facts: dict) -> str:
    """Sha256 over all facts that are not `MOVABLE`, as JSON."""
    plain = {name: value for name, value in facts.items() if name not in ("facts_sha256", *MOVABLE)}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(plain)), sort_keys=True).encode()).hexdigest()


def corpus_hash(content_facts: dict, shards: Iterable[Shard]) -> str:
    """Sha256 over the facts that give the ids their meaning and over the shards' content, in order.

    Equal content gives an equal hash wherever the folder lies and whenever it was made.
    """
    digest = hashlib.sha256(json.dumps(content_facts, sort_keys=True).encode())
    for shard in shards:
        digest.update(f"\n{shard.split} {shard.num_sequences} {shard.sha256}".encode())
    return digest.hexdigest()
