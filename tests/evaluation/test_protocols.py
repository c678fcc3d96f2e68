"""Protocols token for token, in bytes: E is end-of-text, 256."""

import os

import numpy as np
import pytest

from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.protocols.base import Text, load_protocol, names

BYTES = load_tokenizer("bytes")
E = 256
ROWS = ("ab", "", "cdé")  # é is two bytes


def ids(text):
    """`ids("ab|")`: bytes, with | for end-of-text."""
    return [E if byte == ord("|") else byte for byte in text.encode()]


EXPECTED = {
    # protocol, unit: chunks of 5, text bytes per chunk, marks per chunk, what is left over
    ("sedd-1024", "document"): (["ab||c"], [3], [2], "dé|"),
    ("sedd-1024", "line"): (["ab||c"], [3], [2], "dé|"),
    ("mdlm-1022-eos", "document"): (["|ab||", "||cd|", "|é||"], [2, 2, 2], [3, 3, 3], ""),
    ("mdlm-1022-noeos", "document"): (["|abc|", "|dé|"], [3, 3], [2, 2], ""),
    ("whole-corpus", "document"): (["ab||c"], [3], [2], "dé|"),
    ("whole-corpus", "line"): (["ab\n\nc", "dé\n|"], [5, 4], [0, 1], ""),
}


@pytest.mark.parametrize(("name", "unit"), EXPECTED)
def test_token_for_token(name, unit):
    chunks, text_bytes, marks, left = EXPECTED[name, unit]
    found = load_protocol(name).chunks(Text(ROWS, unit), BYTES, 5)
    assert found.tokens.tolist() == [ids(chunk) for chunk in chunks]
    assert (found.text_bytes.tolist(), found.marks.tolist()) == (text_bytes, marks)
    assert found.dropped_tokens == len(ids(left))
    assert found.dropped_bytes == len(left.replace("|", "").encode())


def test_every_protocol_is_tested():
    assert names() == sorted({name for name, _ in EXPECTED})


def test_lines_that_have_their_line_ends_get_no_second_one():
    found = load_protocol("whole-corpus").chunks(Text(("a\n", "b"), "line"), BYTES, 5)
    assert found.tokens.tolist() == [ids("a\nb\n|")]


@pytest.mark.parametrize("cpus", [1, 3, 80])
def test_one_remainder_for_all_rows_on_any_number_of_cpus(monkeypatch, cpus):
    """2500 rows: more than the 1000 of a map batch, of which others drop a remainder each."""
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    rows = tuple(f"row {number}" for number in range(2500))
    stream = [byte for row in rows for byte in [*row.encode(), E]]
    found = load_protocol("mdlm-1022-eos").chunks(Text(rows), BYTES, 66)
    assert found.tokens[:, 1:-1].ravel().tolist() == stream[: len(stream) // 64 * 64]
    assert (found.tokens[:, [0, -1]] == E).all()
    assert found.dropped_tokens == len(stream) % 64
    assert found.text_bytes.sum() + found.dropped_bytes == sum(map(len, rows))


def test_text_that_spells_end_of_text_is_text():
    found = load_protocol("sedd-1024").chunks(Text(("<|endoftext|>",)), BYTES, 14)
    assert found.tokens.tolist() == [[*b"<|endoftext|>", E]]


@pytest.mark.parametrize(("name", "text"), [
    ("mdlm-1022-eos", "may stand beside published numbers of this protocol"),
    ("sedd-1024", "may stand beside published numbers of this protocol"),
    ("whole-corpus", "a protocol of this project: no published number is under it"),
])  # fmt: skip
def test_published_numbers_are_at_1024_with_gpt2(name, text):
    protocol = load_protocol(name)
    assert protocol.comparison("gpt2", 1024) == text
    if protocol.published:
        for tokenizer, length in (("gpt2", 512), ("bytes", 1024)):
            assert protocol.comparison(tokenizer, length) == (
                "not comparable with published numbers: those are at length 1024 with tokenizer gpt2, "
                f"this is at length {length} with tokenizer {tokenizer}"
            )


@pytest.mark.parametrize("name", names())
def test_a_tokenizer_without_end_of_text_is_refused(name):
    class Bare(type(BYTES)):
        name, eot_id = "bare", None

    with pytest.raises(UserError, match=f"--protocol {name}: tokenizer 'bare' has no end-of-text id to mark ends "):
        load_protocol(name).chunks(Text(("a",)), Bare(), 8)


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match=r"--protocol mdlm-1022-eos: a sequence of 2 tokens has no room for text "):
        load_protocol("mdlm-1022-eos").chunks(Text(("a",)), BYTES, 2)


def test_unknown_name():
    with pytest.raises(UserError, match=r"no variant 'mdlm-1022'; expected one of mdlm-1022-eos, .*did you mean"):
        load_protocol("mdlm-1022")


def test_no_row_at_all():
    found = load_protocol("sedd-1024").chunks(Text(()), BYTES, 4)
    assert found.tokens.shape == (0, 4) and found.dropped_tokens == 0 and found.tokens.dtype == np.int64
