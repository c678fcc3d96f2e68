"""`python -m data_prep train-tokenizer`: a byte-level BPE of a source's text, saved as a `tokenizer.json`.

Bytes as the alphabet, GPT-2's rule for cutting text into words, merges by count (Sennrich et al., 2016). The same text
gives the same file.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.sources import open_source
from diffusion_lm.data.tokenizer_file import TokenizerFile
from diffusion_lm.data.tokenizers.base import EOT_TEXT
from diffusion_lm.errors import UserError
from diffusion_lm.files import atomic_path

SMALLEST = 257  # the bytes and end-of-text


def train_tokenizer(source: str, vocab_size: int, out: Path, max_bytes: int = 0) -> str:
    """Train on the first `max_bytes` (0: all) of the texts of `source`. Returns what to tell the person.

    Raises `UserError`, with nothing written, for a bad number or source, or a place that is taken.
    """
    if vocab_size < SMALLEST or max_bytes < 0:
        raise UserError(f"--vocab-size {vocab_size} --max-bytes {max_bytes}: must be {SMALLEST} and 0, or more")
    if out.suffix != ".json" or out.exists():
        raise UserError(f"--out {out}: expected the name of a new file that ends in .json")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    texts, made = open_source(source), tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        _first(texts.documents(), max_bytes),
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[EOT_TEXT], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if made.get_vocab_size() != vocab_size:
        raise UserError(
            f"--source '{source}': its text gives {made.get_vocab_size()} ids, --vocab-size asks for {vocab_size}; "
            "give more text or ask for fewer"
        )
    with atomic_path(out) as temporary:
        made.save(str(temporary))
    return f"{out}: {vocab_size} ids, fingerprint {TokenizerFile(out).fingerprint}"


def _first(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text.encode("utf-8", errors="replace"))
        if max_bytes and seen >= max_bytes:
            return
