"""A tokenizer read from a Hugging Face `tokenizer.json`: `tokenizer: PATH/tokenizer.json`.

Only files whose ids spell the text's bytes are taken, as byte-level BPE does (GPT-2, GPT-NeoX, Llama 3, OLMo and those
of `data_prep train-tokenizer`): a text comes back exactly, and bits per byte mean something. A normaliser, a lower
case or a space put before every text is refused. Special tokens are never read from text, so that no document can
inject an end of text.
"""

import hashlib
import json
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_lm.data.tokenizers.base import EOT_TEXT, FILE_NAME, PieceTokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.files import atomic_path

ENDS = (EOT_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|eot_id|>", "[EOS]")
BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
PROBES = ("word", " two  words\n\tand\r\n", "Größe 日本語 🙂 e\u0301", "\x00\x7f\ufeff\u2028", "12 A's don't <s> [CLS]")


class TokenizerFile(PieceTokenizer):
    """Ids 0 .. the largest of the file. Raises `UserError` for a file that cannot be used."""

    name = FILE_NAME

    def __init__(self, path: Path):
        self.path = path
        try:
            self._facts = json.loads(path.read_text(encoding="utf-8"))
            self._model = _model(self._facts)
        except OSError as error:
            raise UserError(f"tokenizer '{path}': {error.strerror}; expected a {FILE_NAME}") from None
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"tokenizer '{path}': not a tokenizer's file ({error}); expected a {FILE_NAME}") from None
        self._ids: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values()) + 1
        self.eot_id = self._ids[self._end_text()]
        self._check_bytes()

    def encode_ordinary(self, text: str) -> np.ndarray:
        """Ids [n] of `text`, int64. A lone surrogate, which UTF-8 cannot write, becomes ``?``."""
        text = text.encode("utf-8", errors="replace").decode()
        return np.array(self._model.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each id: an added token's own text, else as the decoder spells it."""
        added = {token["id"]: token for token in self._facts.get("added_tokens") or []}
        spell = _byte_level if '"ByteLevel"' in json.dumps(self._facts.get("decoder")) else _plain
        table = [b""] * self.vocab_size
        for text, number in self._ids.items():
            if number == self.eot_id:
                continue
            table[number] = added[number]["content"].encode() if number in added else spell(text)
        return table

    @property
    def fingerprint(self) -> str:
        """Of the file's content without what does not touch ids, and of the end of text."""
        kept = {key: value for key, value in self._facts.items() if key not in ("truncation", "padding")}
        content = json.dumps([kept, self.eot_id], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def copy_to(self, folder: Path) -> None:
        """Write the file, and those beside it that may name its end of text, to `folder`: equal, whole or absent."""
        for name, source in ((FILE_NAME, self.path), *((name, self.path.parent / name) for name in BESIDE)):
            if source.is_file() and source.resolve() != (folder / name).resolve():
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(source, temporary)

    def __reduce__(self) -> tuple:
        return TokenizerFile, (self.path,)

    def _end_text(self) -> str:
        found = next((text for text in (*map(self._named_beside, BESIDE), *ENDS) if text in self._ids), None)
        if found is None:
            raise UserError(
                f"tokenizer '{self.path}': no end-of-text token; expected one of {', '.join(ENDS)}, or a "
                "tokenizer_config.json beside it that names the file's own as eos_token"
            )
        return found

    def _named_beside(self, name: str) -> str | None:
        try:
            value = json.loads((self.path.parent / name).read_text(encoding="utf-8")).get("eos_token")
        except (OSError, ValueError, AttributeError):
            return None
        return value.get("content") if isinstance(value, dict) else value

    def _check_bytes(self) -> None:
        for text in (*PROBES, f"a{self._end_text()}b"):
            ids = self.encode_ordinary(text)
            if self.eot_id in ids or b"".join(self.pieces[i] for i in ids) != text.encode():
                raise UserError(
                    f"tokenizer '{self.path}': its ids do not spell a text's bytes ({text!r} comes back as "
                    f"{self.decode(ids)!r}), so that bits per byte would be wrong; expected a byte-level tokenizer "
                    "without a normaliser: python -m data_prep train-tokenizer makes one"
                )


def _model(facts: dict[str, Any]):
    import tokenizers

    model = tokenizers.Tokenizer.from_str(json.dumps(facts))
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True  # text that spells one is text
    return model


def _byte_level(text: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in text)


def _plain(text: str) -> bytes:
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", text):
        return bytes([int(byte[1], 16)])
    return text.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte that prints as itself, the n-th of the others as the character 256 + n."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
