"""The contract of every tokenizer in the folder, and what is special to each."""

import numpy as np
import pytest

from diffusion_lm.data.tokenizers.base import EOT_TEXT, load_tokenizer, names
from diffusion_lm.errors import UserError

TEXTS = ["", "\x00\x7f\ufeff\u2028", "words\n\twith\r\nspace ", "Größe 日本語 🙂 e\u0301", EOT_TEXT + "[MASK]<pad>"]


@pytest.fixture(params=names())
def tokenizer(request):
    return load_tokenizer(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode_ordinary(text)
    assert ids.dtype == np.int64 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all() and tokenizer.eot_id not in ids


def test_end_of_text_is_an_id_of_its_own(tokenizer):
    assert 0 <= tokenizer.eot_id < tokenizer.vocab_size
    ids = np.concatenate([tokenizer.encode_ordinary("one"), [tokenizer.eot_id], tokenizer.encode_ordinary("two")])
    assert tokenizer.decode(ids) == f"one{EOT_TEXT}two"


def test_bytes_of_text_add_up_over_ids(tokenizer):
    text = "Größe 日本\n"
    counts = tokenizer.byte_counts(np.append(tokenizer.encode_ordinary(text), tokenizer.eot_id))
    assert counts.sum() == len(text.encode()) == 15 and counts[-1] == 0 and counts[:-1].min() > 0


def test_ids_outside_the_vocabulary_are_shown_as_unreadable(tokenizer):
    assert tokenizer.decode(np.array([tokenizer.vocab_size + 5])) == "\ufffd"


def test_identity(tokenizer):
    assert tokenizer.name in names()
    assert tokenizer.fingerprint == load_tokenizer(tokenizer.name).fingerprint
    assert len({load_tokenizer(name).fingerprint for name in names()}) == len(names())


def test_unknown_name():
    with pytest.raises(UserError, match=r"tokenizer: no variant 'byte'; expected one of bytes.*did you mean 'bytes'\?"):
        load_tokenizer("byte")


def test_bytes_are_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode_ordinary("né").tolist() == [0x6E, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.decode(np.array([0x6E, 0xC3])) == "n\ufffd"  # a character cut by a window's end
