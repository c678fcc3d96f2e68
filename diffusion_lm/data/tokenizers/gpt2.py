"""GPT-2's byte-level BPE (Radford et al., 2019): 50,000 merges over 256 bytes; id 50256 is the end of a text.

The vocabulary is tiktoken's `r50k_base` ranks: one line per id, the id's bytes in base 64 and its rank. It is read from
the first of these places that exists, and its hash is checked; nothing is ever downloaded, changed or deleted here:

    $GPT2_VOCABULARY     $TIKTOKEN_CACHE_DIR/KEY     $DATA_GYM_CACHE_DIR/KEY
    $XDG_CACHE_HOME/diffusion_lm/gpt2.tiktoken (by default ~/.cache)     data-gym-cache/KEY in the temporary folder

KEY is the SHA-1 of the address that tiktoken gets it from; the last place is tiktoken's own by default.
`python -m data_prep get-vocabulary gpt2` puts it into the fourth.
"""

import base64
import hashlib
import os
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion_lm.data.tokenizers.base import PieceTokenizer
from diffusion_lm.errors import UserError

SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
VARIABLE = "GPT2_VOCABULARY"
ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
TIKTOKEN_KEY = hashlib.sha1(ADDRESS.encode()).hexdigest()
# contractions; letters, digits and other signs, each with at most one space before; white space, of which the last
# space before a word is left to the word. Possessive where backing off could never match, so that long runs stay linear
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Gpt2(PieceTokenizer):
    """50,257 ids."""

    name = "gpt2"
    vocab_size = 50257
    eot_id = 50256

    def prepare(self) -> None:
        """Read the vocabulary. Raises `UserError` where there is none or it is another one."""
        _ = self._encoding

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Ids [n] of `text`, int64."""
        return np.array(self._encoding.encode_ordinary(text), dtype=np.int64)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each id."""
        return [*sorted(self._ranks, key=self._ranks.__getitem__), b""]

    @property
    def fingerprint(self) -> str:
        """Of the vocabulary that is demanded."""
        return SHA256[:16]

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        return read_ranks(vocabulary_file())

    @cached_property
    def _encoding(self):
        import tiktoken

        return tiktoken.Encoding(self.name, pat_str=SPLIT, mergeable_ranks=self._ranks, special_tokens={})

    def __getstate__(self) -> dict:
        return {}  # another process reads the vocabulary for itself


def places() -> list[Path]:
    """Where the vocabulary may lie, the first that exists counts."""
    found = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []
    caches = [os.environ.get(name) for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")]
    found += [Path(cache) / TIKTOKEN_KEY for cache in caches if cache]
    return [*found, own_place(), Path(tempfile.gettempdir(), "data-gym-cache", TIKTOKEN_KEY)]


def own_place() -> Path:
    """Where `get-vocabulary` puts it."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "diffusion_lm" / "gpt2.tiktoken"


def vocabulary_file() -> Path:
    """The vocabulary's file, unread. Raises `UserError` where there is none."""
    if os.environ.get(VARIABLE) and not Path(os.environ[VARIABLE]).is_file():
        raise UserError(
            f"{VARIABLE}: no file {os.environ[VARIABLE]}; expected GPT-2's vocabulary; name it, or unset this"
        )
    path = next((path for path in places() if path.is_file()), None)
    if path is None:
        raise UserError(
            f"tokenizer gpt2: its vocabulary is in none of {', '.join(map(str, places()))}; get it: "
            f"python -m data_prep get-vocabulary gpt2, or name its file in the variable {VARIABLE}"
        )
    return path


def check(path: Path, content: bytes) -> None:
    """Raise `UserError` where `content` is not the vocabulary; the file stays as it is."""
    if (got := hashlib.sha256(content).hexdigest()) != SHA256:
        raise UserError(
            f"{path}: not GPT-2's vocabulary: sha256 {got[:16]}..., expected {SHA256[:16]}...; move that file away, "
            "then: python -m data_prep get-vocabulary gpt2"
        )


def read_ranks(path: Path) -> dict[bytes, int]:
    """The bytes of each id but end-of-text, and the id. Raises `UserError` for a file with another content."""
    content = path.read_bytes()
    check(path, content)
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
