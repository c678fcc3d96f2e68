"""What is known of a dataset without reading its tokens, and what an experiment says of the data it wants."""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from diffusion_lm.config import choice
from diffusion_lm.data.fetch import is_remote
from diffusion_lm.data.files import cache_root, cached_facts
from diffusion_lm.data.manifest import DATASET_FILE, INCOMPLETE_FILE, MANIFEST_FILE, PLAN_FILE, VERSION, facts_hash
from diffusion_lm.data.tokenizers.base import FILE_NAME, load_tokenizer, stored_name
from diffusion_lm.errors import UserError

MARKED = "each followed by eot_id"
"""In the words of a dataset's packing, that documents end with an id of their own."""


@dataclass(kw_only=True, slots=True)
class TokenDataConfig:
    """Which shards, and how they are read."""

    path: str = "shards/python_docs"  # a folder made by `python -m data_prep shard`, or its URL
    sources: dict[str, float] = field(default_factory=dict)  # several folders with their weights, in the place of path
    length: int = 128  # tokens per sequence; the shards' own
    tokenizer: str = "bytes"  # the shards' own; of a file that is gone, the copy beside the shards is taken
    num_workers: int = 0  # reading processes per device; the order of the data does not depend on it
    val_sequences: int = 256  # validation sequences used at most, spread evenly over the split; 0 = all
    isolate_documents: bool = False  # positions of different documents in a window do not see each other
    shuffle: str = choice("sequences", "blocks")  # what is mixed: all sequences, or those of a few shards at a time
    block_shards: int = 16  # shards of a block
    on_damage: str = choice("error", "skip")  # a damaged sequence ends the run, or is left out, counted and told
    cache: str = ""  # folder for shards of a URL; "" is $DIFFUSION_LM_CACHE, else ~/.cache/diffusion_lm
    cache_gb: float = 50.0  # what it may hold

    def __post_init__(self) -> None:
        if self.block_shards < 1:
            raise ValueError(f"block_shards: got {self.block_shards}, expected 1 or more")
        if not self.cache_gb > 0:
            raise ValueError(f"cache_gb: got {self.cache_gb}, expected more than 0")
        for path, weight in self.sources.items():
            if not 0 < weight < float("inf"):
                raise ValueError(f"sources: got weight {weight} for {path}, expected more than 0; leave the source out")
        if self.tokenizer.endswith(".json") and not Path(self.tokenizer).is_file():
            copies = [Path(place) / FILE_NAME for place in self.places() if not is_remote(place)]
            self.tokenizer = next((str(copy) for copy in copies if copy.is_file()), self.tokenizer)

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys without effect."""
        remote = any(is_remote(place) for place in self.places())
        why = {"data.path": "data.sources names the folders"} if self.sources else {}
        why |= {} if self.shuffle == "blocks" else {"data.block_shards": "data.shuffle=sequences has no blocks"}
        local = "every folder is on this machine, and nothing is copied"
        return why | ({} if remote else {"data.cache": local, "data.cache_gb": local})

    def places(self) -> list[str]:
        """The folders and URLs that are read."""
        return list(self.sources) or [self.path]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """Counts of one split. `tokens` counts an end-of-text id after each document; `text_bytes` is UTF-8 without them;
    `dropped_tokens` is the end of the stream that fills no window."""

    documents: int
    tokens: int
    text_bytes: int
    sequences: int
    dropped_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """The facts in `dataset.json`. Entropy in nats per token over all tokens of both splits, end-of-text included;
    `bytes_per_token` is the bytes of text per token, end-of-text ids counted as tokens. Facts with a default came later
    than the first datasets."""

    path: Path
    name: str
    version: int
    source: str
    source_facts: dict
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    eot_id: int
    length: int
    dtype: str
    packing: str
    split_rule: str
    val_fraction: float
    records_per_shard: int
    splits: dict[str, SplitInfo]
    duplicate_documents: int
    unigram_entropy: float
    bytes_per_token: float
    corpus_hash: str
    sources: list[str] = field(default_factory=list)  # every file or folder the text came from, where they are several
    parts: int = 0  # the parts that were tokenised on their own and merged; 0: made in one piece
    entropy_rate: float | None = None  # nats per token that no model can go below; of synthetic sources
    code_version: str = ""  # of the code that made it
    format: str = "records"  # how a shard is read: `open.py` has the readers
    manifest: str = MANIFEST_FILE
    root: str = ""  # the folder of the shards, where they do not lie beside `dataset.json`
    dialect: dict = field(default_factory=dict)  # of shards that others made
    manifest_sha256: str = ""  # of the manifest's text; "": from before it was kept
    facts_sha256: str = ""  # of all other facts

    @classmethod
    def load(
        cls, path: str | Path, *, tokenizer: str = "bytes", length: int = 128, cache: str = ""
    ) -> "DatasetInfo":
        """Read `path`/dataset.json. `tokenizer` and `length` only fill the command that an error message gives. Of a
        URL dataset.json and manifest are copied into `cache`.

        Raises `UserError` when the folder does not exist, is not a whole dataset, or is of another version.
        """
        path = cached_facts(str(path), cache_root(cache)) if is_remote(str(path)) else Path(path)
        make = shard_command("python-docs", path, tokenizer, length)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder of shards; make it: {make}")
        if not (path / DATASET_FILE).exists():
            if (path / PLAN_FILE).exists():
                again = tokenize_command(path)
                raise UserError(f"{path}: the making of these shards is not done; the same command goes on: {again}")
            if (path / INCOMPLETE_FILE).exists():
                raise UserError(f"{path}: the making of these shards was cut short; run it again, like: {make}")
            raise UserError(f"{path}: not a dataset (no {DATASET_FILE} in it); make one in a new folder")
        return cls._parse(path)

    @classmethod
    def of(cls, path: Path, facts: dict) -> "DatasetInfo":
        """From the plain values of `dataset.json`, wherever they were kept."""
        splits = {split: SplitInfo(**counts) for split, counts in facts["splits"].items()}
        known = [f for f in fields(cls) if f.name not in ("path", "splits")]
        needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
        rest = {f.name: facts[f.name] for f in known if f.name in needed or f.name in facts}
        return cls(path=path, splits=splits, **rest)

    @classmethod
    def _parse(cls, path: Path) -> "DatasetInfo":
        file = path / DATASET_FILE
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            if facts["version"] != VERSION:
                raise UserError(f"{file}: version {facts['version']}, expected {VERSION}; make the shards again")
            if facts.get("facts_sha256") and facts_hash(facts) != facts["facts_sha256"]:
                raise UserError(f"{file}: changed since it was written; copy it again, or make the shards again")
            return cls.of(path, facts)
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file}: not the facts of a dataset ({error!r}); make the shards again") from None

    def content_facts(self) -> dict:
        """The facts that enter the corpus hash: what gives the stored ids their meaning, and how they were chosen."""
        names = ("version", "tokenizer", "tokenizer_fingerprint", "vocab_size", "eot_id", "length", "dtype", "packing")
        return {name: getattr(self, name) for name in (*names, "split_rule", "val_fraction")}


def data_facts(config: TokenDataConfig) -> DatasetInfo:
    """The facts of the dataset that `config` names.

    Raises `UserError` when there is none, or when its tokenizer or length are not the config's.
    """
    if config.num_workers < 0 or config.val_sequences < 0:
        got = f"num_workers={config.num_workers}, val_sequences={config.val_sequences}"
        raise UserError(f"data: {got}; both must be 0 or more")
    tokenizer = load_tokenizer(config.tokenizer)
    infos = [_facts_of(place, config, tokenizer.fingerprint) for place in config.places()]
    tokenizer.prepare()  # a run decodes samples: a missing vocabulary is told now, not at the first of them
    return mixed_info(infos, config.sources) if config.sources else infos[0]


def _facts_of(place: str, config: TokenDataConfig, fingerprint: str) -> DatasetInfo:
    info = DatasetInfo.load(place, tokenizer=config.tokenizer, length=config.length, cache=config.cache)
    for name, wanted in (("tokenizer", stored_name(config.tokenizer)), ("length", config.length)):
        if getattr(info, name) != wanted:
            raise _mismatch(name, place, config, info)
    if info.tokenizer_fingerprint != fingerprint:
        raise UserError(
            f"{place}: made with a tokenizer '{info.tokenizer}' of fingerprint {info.tokenizer_fingerprint}, "
            f"the one installed has {fingerprint}; make the shards again"
        )
    return info


def _mismatch(name: str, place: str, config: TokenDataConfig, info: DatasetInfo) -> UserError:
    got, wanted = getattr(info, name), getattr(config, name)
    other = f"{place}_{config.tokenizer}_{config.length}"
    make = shard_command(info.source, other, config.tokenizer, config.length)
    return UserError(
        f"{place}: shards made with {name}={got}, the experiment says data.{name}={wanted}; "
        f"set data.{name}={got}, or make others and set data.path={other}: {make}"
    )


def shard_command(source: str, out: str | Path, tokenizer: str, length: int) -> str:
    """The command that makes shards."""
    return f"python -m data_prep shard --source {source} --out {out} --tokenizer {tokenizer} --length {length}"


def tokenize_command(out: Path) -> str:
    """The command that goes on with the parts in `out`, as far as their plan tells it."""
    try:
        facts = json.loads((out / PLAN_FILE).read_text(encoding="utf-8"))["facts"]
        words = [f"--source {shlex.quote(source)}" for source in facts["sources"]]
        words += [f"--hold-out {shlex.quote(pattern)}" for pattern in facts["hold_out"]]
        names = ("tokenizer", "length", "val_fraction", "records_per_shard", "files_per_part")
        words += [f"--{name.replace('_', '-')} {facts[name]}" for name in names]
    except (OSError, ValueError, TypeError, KeyError):
        words = ["--source ... as before"]
    return f"python -m data_prep tokenize --out {shlex.quote(str(out))} {' '.join(words)}"


def mixed_info(infos: Sequence[DatasetInfo], weights: Mapping[str, float]) -> DatasetInfo:
    """The facts of a mixture. The unigram entropy is the sources' mean by weight, which the mixture's is not below.

    Raises `UserError` where the sources differ in what gives ids their meaning.
    """
    first = infos[0]
    for info in infos[1:]:
        for name in ("tokenizer", "tokenizer_fingerprint", "vocab_size", "eot_id", "length"):
            if getattr(info, name) != getattr(first, name):
                raise UserError(
                    f"data.sources: {first.path} has {name}={getattr(first, name)}, {info.path} has "
                    f"{getattr(info, name)}; expected sources that agree; make one of them again"
                )
    names = ("documents", "tokens", "text_bytes", "sequences", "dropped_tokens")
    shared = [split for split in first.splits if all(split in info.splits for info in infos)]
    splits = {
        split: SplitInfo(**{name: sum(getattr(info.splits[split], name) for info in infos) for name in names})
        for split in shared
    }
    shares = [weight / sum(weights.values()) for weight in weights.values()]
    told = [f"{info.corpus_hash} {share!r}" for info, share in zip(infos, shares)]
    return replace(
        first,
        path=Path("+".join(str(info.path) for info in infos)),
        name="+".join(info.name for info in infos),
        source="mixture",
        source_facts={info.name: share for info, share in zip(infos, shares)},
        packing=_packing(infos),
        splits=splits,
        duplicate_documents=sum(info.duplicate_documents for info in infos),
        unigram_entropy=sum(share * info.unigram_entropy for share, info in zip(shares, infos)),
        bytes_per_token=sum(share * info.bytes_per_token for share, info in zip(shares, infos)),
        corpus_hash=hashlib.sha256("\n".join(told).encode()).hexdigest(),
        sources=[str(info.path) for info in infos],
        entropy_rate=None,
        manifest_sha256="",
        facts_sha256="",
    )


def _packing(infos: Sequence[DatasetInfo]) -> str:
    """How windows came about; that documents' ends are marked is said only where they are in every source."""
    marked = all(MARKED in info.packing for info in infos)
    several = f"of each source its own, {MARKED}" if marked else "of each source its own"
    return infos[0].packing if len({info.packing for info in infos}) == 1 else several
