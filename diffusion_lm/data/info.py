"""What is known of a dataset without reading its tokens, and what an experiment says of the data it wants."""

import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from diffusion_lm.data.manifest import DATASET_FILE, INCOMPLETE_FILE, VERSION
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError


@dataclass(kw_only=True, slots=True)
class TokenDataConfig:
    """Which shards, and how they are read."""

    path: str = "shards/python_docs"  # a folder made by `python -m data_prep shard`
    length: int = 128  # tokens per sequence; the shards' own
    tokenizer: str = "bytes"  # the shards' own
    num_workers: int = 0  # reading processes per device; the order of the data does not depend on it
    val_sequences: int = 256  # validation sequences used at most, spread evenly over the split; 0 = all
    isolate_documents: bool = False  # positions of different documents in a window do not see each other


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

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: str = "bytes", length: int = 128) -> "DatasetInfo":
        """Read `path`/dataset.json. `tokenizer` and `length` only fill the command that an error message gives.

        Raises `UserError` when the folder does not exist, is not a whole dataset, or is of another version.
        """
        path = Path(path)
        make = shard_command("python-docs", path, tokenizer, length)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder of shards; make it: {make}")
        if not (path / DATASET_FILE).exists():
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
    info = DatasetInfo.load(config.path, tokenizer=config.tokenizer, length=config.length)
    for name in ("tokenizer", "length"):
        if getattr(info, name) != getattr(config, name):
            raise _mismatch(name, config, info)
    if info.tokenizer_fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.path}: made with a tokenizer '{info.tokenizer}' of fingerprint {info.tokenizer_fingerprint}, "
            f"the one installed has {tokenizer.fingerprint}; make the shards again"
        )
    return info


def _mismatch(name: str, config: TokenDataConfig, info: DatasetInfo) -> UserError:
    got, wanted = getattr(info, name), getattr(config, name)
    other = f"{config.path}_{config.tokenizer}_{config.length}"
    make = shard_command(info.source, other, config.tokenizer, config.length)
    return UserError(
        f"{config.path}: shards made with {name}={got}, the experiment says data.{name}={wanted}; "
        f"set data.{name}={got}, or make others and set data.path={other}: {make}"
    )


def shard_command(source: str, out: str | Path, tokenizer: str, length: int) -> str:
    """The command that makes shards."""
    return f"python -m data_prep shard --source {source} --out {out} --tokenizer {tokenizer} --length {length}"
