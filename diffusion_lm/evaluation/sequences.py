"""What a model is scored on: sequences of equal length, each with its place in the set: the key of its noise."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lm.data.datamodule import open_split
from diffusion_lm.data.info import DatasetInfo, TokenDataConfig, data_facts
from diffusion_lm.data.manifest import DATASET_FILE
from diffusion_lm.data.order import spread_evenly
from diffusion_lm.data.segments import document_ends, segments
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.protocols.base import load_protocol
from diffusion_lm.evaluation.texts import place_of, read_text
from diffusion_lm.noisy import Batch

OWN, DEFAULT_PROTOCOL = "validation", "whole-corpus"
RECALL = "synth:recall"
ISOLATED = "documents do not see each other, and the model is told where they end: the bound is of text given its ends"


@dataclass(frozen=True)
class SequenceSet:
    """Some sequences of a set. places: which [n]; read: their tokens [k, L], by place.

    facts: for the manifest. notes: what was left out or mended when a text was read, what the bound is conditional on.
    ends: the id that ends a document, where documents do not see each other. entropy_rate: nats per token that no model
    can go below, where the source is known. recall: what a recall source was made with.
    """

    name: str
    digest: str
    tokenizer: str
    length: int
    places: np.ndarray
    bytes_per_token: float
    facts: dict[str, Any]
    read: Callable[[np.ndarray], np.ndarray]
    notes: tuple[str, ...] = ()
    ends: int | None = None
    entropy_rate: float | None = None
    recall: Mapping[str, Any] | None = None

    def batches(self, size: int) -> Iterator[Batch]:
        """In order, on the host."""
        for start in range(0, len(self.places), size):
            places = self.places[start : start + size]
            tokens = self.read(places)
            segment = None if self.ends is None else torch.from_numpy(segments(tokens, self.ends))
            yield Batch(torch.from_numpy(tokens), torch.from_numpy(places), segment=segment)


def sequence_set(
    own: TokenDataConfig, data: str | None, protocol: str | None, sequences: int, split: str = "val"
) -> SequenceSet:
    """What `--data`, `--split` and `--protocol` name, for a model of `own` data: its own without `--data`.

    Documents are isolated in the own split alone, where training isolates them; other data is one stream of text.

    Raises `UserError` when there is none, or none that the model can read.
    """
    if sequences < 0:
        raise UserError(f"sequences: got {sequences}, expected 0 or more")
    place = None if data is None else place_of(data)
    if place is not None and not (place / DATASET_FILE).is_file():
        if split != "val":
            raise UserError(f"--split {split}: {place} is text, without splits; leave it out, or give --data SHARDS")
        return _of_text(own, place, protocol or DEFAULT_PROTOCOL, sequences)
    if protocol is not None:
        what = "the run's own validation split" if place is None else str(place)
        raise UserError(f"--protocol {protocol}: {what} is packed already; leave it out, or give --data TEXT")
    return _of_shards(own, place, sequences, split)


def _of_shards(own: TokenDataConfig, place: Path | None, sequences: int, split: str) -> SequenceSet:
    config = own if place is None else TokenDataConfig(path=str(place), length=own.length, tokenizer=own.tokenizer)
    if place is not None:
        _check_shards(own, place)
    info, tokens = data_facts(config), open_split(config, split)
    ends = document_ends(config, info)
    limit = sequences or (own.val_sequences if place is None else 0) or len(tokens)
    counts, is_val = info.splits[split], split == "val"
    bytes_per_token = info.bytes_per_token if is_val else counts.text_bytes / counts.tokens  # whole files differ
    facts = {
        "data": {"name": info.name, "path": str(info.path), "hash": info.corpus_hash, "split": split},
        "tokenizer": {"name": info.tokenizer, "hash": info.tokenizer_fingerprint},
        "protocol": {"name": "shards", "boundary": info.packing, "chunk_length": info.length},
        "documents_isolated": ends is not None,
        "sequences_in_set": len(tokens),
        "tokens_dropped": counts.dropped_tokens,
        "text_bytes_scored": None,
        "bytes_per_token": bytes_per_token,
        "comparison": "published numbers are on other data",
    }
    return SequenceSet(
        name=(OWN if place is None else info.name) if is_val else f"{info.name}-{split}",
        digest=info.corpus_hash,
        tokenizer=info.tokenizer_fingerprint,
        length=info.length,
        places=spread_evenly(min(limit, len(tokens)), len(tokens)),
        bytes_per_token=bytes_per_token,
        facts=facts,
        read=lambda places: tokens.read(places).rows,
        notes=() if ends is None else (ISOLATED,),
        ends=ends,
        entropy_rate=info.entropy_rate,
        recall=info.source_facts if info.source == RECALL else None,
    )


def _check_shards(own: TokenDataConfig, place: Path) -> None:
    info = DatasetInfo.load(place)
    for name in ("tokenizer", "length"):
        if getattr(info, name) != getattr(own, name):
            raise UserError(
                f"--data {place}: shards of {name} {getattr(info, name)}, the run has {name} {getattr(own, name)}; "
                f"give shards that were made with --{name} {getattr(own, name)}, or the text itself"
            )


def _of_text(own: TokenDataConfig, place: Path, protocol: str, sequences: int) -> SequenceSet:
    rule, tokenizer, found = load_protocol(protocol), load_tokenizer(own.tokenizer), read_text(place)
    chunks = rule.chunks(found.text, tokenizer, own.length)
    total = len(chunks.tokens)
    if not total:
        raise UserError(
            f"--data {place}: {chunks.dropped_tokens} tokens are not one sequence of {own.length}; give more text"
        )
    places = spread_evenly(min(sequences or total, total), total)
    scored = len(places) * own.length
    text_bytes = int(chunks.text_bytes[places].sum())
    if not text_bytes:
        raise UserError(f"--data {place}: the sequences that are scored hold no text; give --sequences 0 for all")
    facts = {
        "data": {"name": found.name, "hash": found.digest, **found.facts, "tokens_hash": _hash(chunks.tokens)},
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.fingerprint},
        "protocol": {"name": protocol, "boundary": rule.boundary, "chunk_length": own.length},
        "sequences_in_set": total,
        "tokens_dropped": chunks.dropped_tokens,
        "text_bytes_dropped": chunks.dropped_bytes,
        "text_bytes_scored": text_bytes,
        "marks_scored": int(chunks.marks[places].sum()),
        "bytes_per_token": text_bytes / scored,
        "comparison": rule.comparison(tokenizer.name, own.length),
        "notes": list(found.notes),
    }
    return SequenceSet(
        name=f"{found.name}-{protocol}",
        digest=found.digest,
        tokenizer=tokenizer.fingerprint,
        length=own.length,
        places=places,
        bytes_per_token=text_bytes / scored,
        facts=facts,
        read=lambda chosen: chunks.tokens[chosen],
        notes=found.notes,
    )


def _hash(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest()
