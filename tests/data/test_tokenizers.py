"""The contract of every tokenizer in the folder and of tokenizer files, and what is special to each."""

import base64
import hashlib
import itertools
import json
import pickle
import re

import numpy as np
import pytest

from data_prep.train_tokenizer import train_tokenizer
from data_prep.vocabulary import get_vocabulary
from diffusion_lm.data.tokenizers import gpt2
from diffusion_lm.data.tokenizers.base import EOT_TEXT, load_tokenizer, names, vocabulary_size
from diffusion_lm.errors import RunError, UserError

TEXTS = ["", "\x00\x7f\ufeff\u2028", "words\n\twith\r\nspace ", "Größe 日本語 🙂 e\u0301", EOT_TEXT + "[MASK]<pad>"]
WORDS = [" the", " there", "ing", " sing", "ö", " 12", "\n\n", "'s"]


def ranks():
    """A vocabulary as large as GPT-2's: the bytes, the beginnings of some words, and strings that no merge reaches."""
    starts = [word.encode()[:end] for word in WORDS for end in range(2, len(word.encode()) + 1)]
    filling = (b"\xfe" + number.to_bytes(4, "big") for number in itertools.count())
    pieces = dict.fromkeys(itertools.chain((bytes([byte]) for byte in range(256)), starts))
    pieces.update(dict.fromkeys(itertools.islice(filling, 50256 - len(pieces))))
    return {piece: rank for rank, piece in enumerate(pieces)}


@pytest.fixture(scope="module")
def vocabulary_text():
    return b"".join(base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ranks().items())


@pytest.fixture
def vocabulary(tmp_path, monkeypatch, vocabulary_text):
    """A file in the place of GPT-2's vocabulary, so that the tests need no download."""
    path = tmp_path / "made.tiktoken"
    path.write_bytes(vocabulary_text)
    monkeypatch.setattr(gpt2, "SHA256", hashlib.sha256(vocabulary_text).hexdigest())
    monkeypatch.setenv(gpt2.VARIABLE, str(path))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tokenizer file trained on a few sentences."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("the cat sat on the mat. the mat sat there, größer than the cat's 12 hats\n" * 9)
    train_tokenizer(str(folder / "text.txt"), 280, folder / "tokenizer.json")
    return folder / "tokenizer.json"


@pytest.fixture(params=[*names(), "file"])
def tokenizer(request, vocabulary, trained):
    return load_tokenizer(str(trained) if request.param == "file" else request.param)


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


def test_identity(tokenizer, trained):
    again = load_tokenizer(str(trained) if tokenizer.name == "tokenizer.json" else tokenizer.name)
    assert tokenizer.fingerprint == again.fingerprint
    assert tokenizer.vocab_size == again.vocab_size
    others = [load_tokenizer(name).fingerprint for name in (*names(), str(trained), "ids:9", "ids:10")]
    assert len(set(others)) == len(others)


def test_it_goes_to_other_processes(tokenizer):
    tokenizer.prepare()
    other = pickle.loads(pickle.dumps(tokenizer))
    assert np.array_equal(other.encode_ordinary(TEXTS[3]), tokenizer.encode_ordinary(TEXTS[3]))


def test_unknown_name():
    with pytest.raises(UserError, match=r"tokenizer: no variant 'byte'; expected one of bytes.*did you mean 'bytes'\?"):
        load_tokenizer("byte")


def test_bytes_are_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode_ordinary("né").tolist() == [0x6E, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.decode(np.array([0x6E, 0xC3])) == "n\ufffd"  # a character cut by a window's end


def merged(word, table):
    """BPE of one word by the book: join the pair of lowest rank until no pair has one."""
    parts = [bytes([byte]) for byte in word]
    while pairs := [(table[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in table]:
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [table[part] for part in parts]


def test_gpt2_is_bpe_of_words(vocabulary):
    """Words of ASCII text: a space goes to the word after it, the last of several too; contractions stand alone."""
    text = "  There is  the singer's  12 songs,\n\n\n and the\tthing there   "
    words = re.findall(r"'s| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s", text)
    assert "".join(words) == text
    wanted = [number for word in words for number in merged(word.encode(), ranks())]
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.encode_ordinary(text).tolist() == wanted
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (50257, 50256)


def test_a_long_run_of_one_letter_is_not_slow(vocabulary):
    tokenizer = load_tokenizer("gpt2")
    for run in ("a" * 200_000, "^" * 200_000, " " * 200_000):
        assert tokenizer.byte_counts(tokenizer.encode_ordinary(run)).sum() == 200_000


def test_gpt2_without_its_vocabulary(tmp_path, monkeypatch):
    for variable in (gpt2.VARIABLE, "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    tokenizer = load_tokenizer("gpt2")
    assert vocabulary_size("gpt2") == 50257 and tokenizer.fingerprint == "306cd27f03c1a714"
    wanted = r"in none of .*gpt2.tiktoken, .*0ea1e91bbb3a\w+; get it: python -m data_prep get-vocabulary gpt2, or"
    with pytest.raises(UserError, match=wanted):
        tokenizer.prepare()
    monkeypatch.setenv(gpt2.VARIABLE, "nowhere")
    with pytest.raises(UserError, match=r"GPT2_VOCABULARY: no file nowhere; expected GPT-2's vocabulary"):
        tokenizer.prepare()


def test_another_vocabulary_is_refused_and_left_alone(tmp_path, monkeypatch, vocabulary_text):
    path = tmp_path / gpt2.TIKTOKEN_KEY
    path.write_bytes(vocabulary_text)
    monkeypatch.delenv(gpt2.VARIABLE, raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=rf"{gpt2.TIKTOKEN_KEY}: not GPT-2's vocabulary: sha256 .*, expected 306cd2"):
        load_tokenizer("gpt2").encode_ordinary("text")
    assert path.read_bytes() == vocabulary_text


def test_a_vocabulary_is_put_into_its_place(vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "diffusion_lm" / "gpt2.tiktoken"
    assert str(place) in get_vocabulary("gpt2", vocabulary)
    assert "is there already" in get_vocabulary("gpt2", vocabulary)
    monkeypatch.delenv(gpt2.VARIABLE)
    assert load_tokenizer("gpt2").decode(np.array([256, 257])) == " t th"
    (tmp_path / "other").write_text("other")
    with pytest.raises(UserError, match="other: not GPT-2's vocabulary"):
        get_vocabulary("gpt2", tmp_path / "other", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="get-vocabulary: no vocabulary 'gpt3'; expected one of gpt2"):
        get_vocabulary("gpt3")


@pytest.mark.parametrize("place", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "temporary folder"])
def test_tiktokens_caches_are_looked_at(vocabulary, tmp_path, monkeypatch, place):
    """In the order of tiktoken itself, whose default is data-gym-cache in the temporary folder."""
    for variable in (gpt2.VARIABLE, "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if place.isupper():
        monkeypatch.setenv(place, str(tmp_path / "data-gym-cache"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    (tmp_path / "data-gym-cache").mkdir()
    vocabulary.rename(tmp_path / "data-gym-cache" / "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4")
    assert load_tokenizer("gpt2").decode(np.array([256, 257])) == " t th"


def test_the_vocabulary_is_fetched_from_tiktokens_address(vocabulary, tmp_path, monkeypatch):
    """Whole, or not from there: what another content gives is the next place's turn."""
    assert gpt2.ADDRESS == "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
    monkeypatch.setattr(gpt2, "ADDRESS", vocabulary.as_uri())
    get_vocabulary("gpt2", to=tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == vocabulary.read_bytes()
    (tmp_path / "page").write_text("<html>log in first</html>")
    for address in (tmp_path / "page", tmp_path / "nothing"):
        monkeypatch.setattr(gpt2, "ADDRESS", address.as_uri())
        monkeypatch.setattr("data_prep.vocabulary.PACKAGE", "--version of no package")
        with pytest.raises(RunError, match=r"does not serve it, and pip download .* failed .*give it: python"):
            get_vocabulary("gpt2", to=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_the_published_vocabulary_from_the_package_index(tmp_path, monkeypatch):
    """Ids that OpenAI published for this text (the example of tiktoken's page) and for its end of text."""
    monkeypatch.setattr(gpt2, "ADDRESS", (tmp_path / "unreachable").as_uri())
    get_vocabulary("gpt2", to=tmp_path / "gpt2.tiktoken")
    monkeypatch.setenv(gpt2.VARIABLE, str(tmp_path / "gpt2.tiktoken"))
    assert load_tokenizer("gpt2").encode_ordinary("Hello world").tolist() == [15496, 995]


def test_training_twice_gives_the_same_file(trained, data_prep):
    arguments = ["--source", trained.parent / "text.txt", "--vocab-size", 280, "--out", trained.parent / "again.json"]
    result = data_prep("train-tokenizer", *arguments)
    assert result.returncode == 0 and "280 ids" in result.stdout, result
    assert (trained.parent / "again.json").read_bytes() == trained.read_bytes()


def test_training_joins_the_commonest_pairs(trained):
    """In its text "t" stands before "h" more often than any other two bytes stand together inside a word."""
    tokenizer = load_tokenizer(str(trained))
    assert tokenizer.vocab_size == 280 and tokenizer.pieces[tokenizer.eot_id] == b""
    assert b"at" in tokenizer.pieces[257:260] and b"th" not in tokenizer.pieces[:257]
    assert tokenizer.decode(tokenizer.encode_ordinary(" the cat")[:1]) == " the"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--vocab-size", "256"], "--vocab-size 256 --max-bytes 0: must be 257 and 0, or more"),
        (["--vocab-size", "5000"], "its text gives 266 ids, --vocab-size asks for 5000; give more text"),
        (["--out", "t.txt"], "--out t.txt: expected the name of a new file that ends in .json"),
    ],
)
def test_training_that_cannot_be(refused, tmp_path, arguments, text):
    """All words of "one two three" are joined after 2 + 3 + 5 - 1 merges: two of them begin with the same."""
    (tmp_path / "text.txt").write_text("one two three")
    command = ["train-tokenizer", "--source", "text.txt", "--vocab-size", 260, "--out", "t.json"]
    assert text in refused(*command, *arguments)


def edited(trained, tmp_path, **changes):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(trained.read_text()), **changes}))
    return path


def test_files_that_do_not_spell_the_text_are_refused(trained, tmp_path):
    for kind in ("Lowercase", "NFD"):
        path = edited(trained, tmp_path, normalizer={"type": kind})
        with pytest.raises(UserError, match=r"its ids do not spell a text's bytes \(.*expected a byte-level tokenizer"):
            load_tokenizer(str(path))


def test_the_end_of_text_is_found_by_name_or_refused(trained, tmp_path):
    token = {"id": 0, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    facts = json.loads(trained.read_text())
    for content in ("</s>", "[end]"):
        vocab = {content if text == EOT_TEXT else text: number for text, number in facts["model"]["vocab"].items()}
        changes = {"added_tokens": [{**token, "content": content}], "model": {**facts["model"], "vocab": vocab}}
        path = edited(trained, tmp_path, **changes)
        if content == "[end]":
            with pytest.raises(UserError, match=r"no end-of-text token; expected one of <\|endoftext\|>, .*eos_token"):
                load_tokenizer(str(path))
            (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[end]"}}')
        assert load_tokenizer(str(path)).eot_id == 0


def test_a_file_that_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer 'nowhere.json': No such file .*; expected a tokenizer.json"):
        load_tokenizer("nowhere.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a.json': not a tokenizer's file"):
        load_tokenizer(str(tmp_path / "a.json"))


def test_numbers_without_text():
    tokenizer = load_tokenizer("ids:12")
    ids = np.array([3, 0, 10])
    assert tokenizer.decode(np.append(ids, [11, 99])) == f"3 0 10 {EOT_TEXT} \ufffd"
    assert np.array_equal(tokenizer.encode_ordinary("3 0 10"), ids)
    assert tokenizer.byte_counts(np.array([3, 11])).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"tokenizer ids:12: got 'words', expected numbers below 11"):
        tokenizer.encode_ordinary("words")
    with pytest.raises(UserError, match=r"tokenizer: got 'ids:1', expected ids:N with N of 2 or more"):
        load_tokenizer("ids:1")
