"""Sources of known entropy: the stated floor is that of the whole distribution, written out; rows are drawn from it."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.sequences import Grammar, HiddenMarkov, Recall, answers
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import DatasetInfo, TokenDataConfig, data_facts
from diffusion_lm.errors import UserError


def drawn(source, count):
    rows = source.rows(np.random.default_rng(5), count)
    assert rows.shape == (count, source.length) and 0 <= rows.min() <= rows.max() < source.symbols
    return Counter(map(tuple, rows.tolist()))


def agrees(counts, distribution):
    """Chi-square of the draws against every row's probability, within five standard deviations of its mean."""
    total = counts.total()
    assert set(counts) <= set(distribution)
    chi = sum((counts[row] - total * p) ** 2 / (total * p) for row, p in distribution.items())
    free = len(distribution) - 1
    return abs(chi - free) < 5 * math.sqrt(2 * free)


def nats(distribution):
    assert sum(distribution.values()) == pytest.approx(1)
    return -sum(p * math.log(p) for p in distribution.values())


def test_hidden_markov():
    """Every string of six symbols, its probability by walking through the states."""
    source = HiddenMarkov(states=3, symbols=3, skew=1.0, length=6, seed=2)
    emission = [{int(s): 1 / (rank + 1) / (1 + 1 / 2 + 1 / 3) for rank, s in enumerate(row)} for row in source.order]
    distribution = {}
    for row in itertools.product(range(3), repeat=6):
        state, p = 0, 1.0
        for symbol in row:
            p *= emission[state][symbol]
            state = int(source.next[state, symbol])
        distribution[row] = p
    assert source.entropy == pytest.approx(nats(distribution) / 6)
    assert agrees(drawn(source, 20_000), distribution)
    assert len({tuple(row) for row in source.order.tolist()}) > 1, "states differ, else nothing would be hidden"


def sentences(source, level, symbol):
    """Every expansion of `symbol` and its probability."""
    if level == source.depth:
        return {(symbol,): 1.0}
    found = Counter()
    for rule, p in enumerate([1 / (1 + 2**-0.5), 1 / (1 + 2**0.5)]):
        parts = [sentences(source, level + 1, int(below)) for below in source.right[level, symbol, rule]]
        for choice in itertools.product(*(part.items() for part in parts)):
            found[sum((words for words, _ in choice), ())] += p * math.prod(q for _, q in choice)
    return found


def test_grammar():
    """Every sentence of a grammar of depth two, by expanding it; two make a row."""
    source = Grammar(symbols=3, rules=2, branch=2, depth=2, skew=0.5, length=4, seed=1)
    distribution = Counter()
    for root in range(3):
        for sentence, p in sentences(source, 0, root).items():
            assert sentence not in distribution, "no sentence has two trees"
            distribution[sentence] += p / 3
    assert len(distribution) == 3 * 2**3
    assert source.entropy == pytest.approx(nats(distribution) / 4)
    assert agrees(drawn(source, 20_000), distribution)
    double = Grammar(symbols=3, rules=2, branch=2, depth=2, skew=0.5, length=8, seed=1)
    assert double.entropy == source.entropy
    halves = Counter()
    for row, count in drawn(double, 10_000).items():
        halves[row[:4]] += count
        halves[row[4:]] += count
    assert agrees(halves, distribution)


def test_recall():
    """Three keys, two values, two pairs, four slots: 6 x 4 x 12 rows, all equally likely, every question answerable."""
    source = Recall(keys=3, values=2, pairs=2, length=12)
    distribution = {}
    for keys in itertools.permutations((1, 2, 3), 2):
        for values in itertools.product((4, 5), repeat=2):
            for slots in itertools.permutations(range(4), 2):
                row = [keys[0], values[0], keys[1], values[1]] + [0] * 8
                for key, value, slot in zip(keys, values, slots):
                    row[4 + 2 * slot : 6 + 2 * slot] = key, value
                distribution[tuple(row)] = 1 / (6 * 4 * 12)
    assert len(distribution) == 288 and source.symbols == 6
    assert source.entropy == pytest.approx(nats(distribution) / 12)
    counts = drawn(source, 20_000)
    assert agrees(counts, distribution)
    rows = np.array(list(counts))
    marked = answers(rows, 2)
    assert (marked.sum(1) == 2).all() and (rows[marked] >= 4).all() and not marked[:, :4].any()


KINDS = {
    "hmm": ["--states", 4, "--symbols", 8],
    "grammar": ["--symbols", 4, "--depth", 3],
    "recall": ["--keys", 5, "--values", 5, "--pairs", 2],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_it(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    command = ["synth", kind, *map(str, KINDS[kind]), "--length", "16", "--train", "200", "--val", "70"]
    for out, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([*command, "--out", out, "--seed", seed]) == 0
    a, b, c = (DatasetInfo.load(out) for out in "abc")
    assert a.corpus_hash == b.corpus_hash != c.corpus_hash
    assert (a.source, a.splits["val"].sequences, a.tokenizer) == (f"synth:{kind}", 70, f"ids:{a.vocab_size}")
    assert 0 < json.loads((tmp_path / "a" / "dataset.json").read_text())["entropy_rate"] < math.log(a.vocab_size)
    train, val = ({tuple(row.tolist()) for row in ShardedTokens("a", split)} for split in ("train", "val"))
    assert len(train | val) > 200 and max(map(max, train)) == a.vocab_size - 2
    assert len(ShardedTokens("a", "train")) == 200 and len(ShardedTokens("a", "val")) == 70
    assert data_facts(TokenDataConfig(path="a", length=16, tokenizer=a.tokenizer)) == a
    assert main(["verify", "a"]) == main(["inspect", "a"]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["hmm", "--states", "0"], "--states 0: must be 1 or more"),
        (["hmm", "--skew", "nan"], "--skew nan: must be 0 or more"),
        (["grammar", "--length", "48"], "--length 48: expected a multiple of a sentence's 32 tokens (branch^depth)"),
        (
            ["grammar", "--symbols", "3"],
            "--symbols 3 --rules 4: need 12 right sides, there are 9 of 2 symbols; expected",
        ),
        (["recall", "--pairs", "65"], "--keys 64: must be 65 or more"),
        (["recall", "--length", "30"], "--length 30: expected an even number of at least 4 x --pairs = 32"),
        (["recall", "--train", "0"], "--train 0: must be 1 or more sequences"),
        (["markov"], "invalid choice: 'markov'"),
    ],
)
def test_bad_input(refused, arguments, text):
    assert text in refused("synth", *arguments, "--out", "s")


def test_what_is_there_is_not_overwritten(refused, make_shards, texts):
    folder = make_shards(texts)
    assert "holds another dataset already; nothing written" in refused("synth", "hmm", "--out", folder)


def test_the_same_again_is_there_already(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["synth", "hmm", "--length", "16", "--train", "70", "--val", "10", "--out", "a"]
    assert main(command) == 0 and "already" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(command) == 0 and "a already holds this dataset; nothing written" in capsys.readouterr().out
    for other in (["--seed", "1"], ["--train", "71"], ["--states", "3"], ["--length", "32"]):
        with pytest.raises(UserError, match="holds another dataset already; nothing written"):
            main([*command, *other])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
