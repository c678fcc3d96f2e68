"""Sources without text whose likelihood is known: what a sequence source is, and the three there are.

Every number of a row is a function of (seed, split, block of 64 rows), so that any block can be made alone.
"""

import math
from abc import ABC, abstractmethod

import numpy as np

from diffusion_lm.errors import UserError


class SequenceSource(ABC):
    """Independent rows of `length` ids 0 .. symbols - 1. `entropy` is exact, in nats per token: no model of these rows
    has a lower expected loss, whatever order it predicts them in."""

    symbols: int
    length: int

    @abstractmethod
    def rows(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """`count` rows [count, length]; `draw` is used for uniform numbers alone."""

    @property
    @abstractmethod
    def entropy(self) -> float:
        """Entropy of a row divided by its length."""

    @abstractmethod
    def facts(self) -> dict:
        """What it was made with, and how the entropy is known."""


class HiddenMarkov(SequenceSource):
    """A unifilar hidden Markov source: the state and the symbol give the next state; every row begins in state 0.

    Every state emits the same probabilities p, given to the symbols in an order of its own. So the prefix of a row
    tells its state, the next symbol's entropy is H(p) at every place, and a row's is exactly length x H(p).
    p_k is proportional to (k + 1)^-skew. States and orders are drawn once, from the seed.
    """

    def __init__(self, *, states: int, symbols: int, skew: float, length: int, seed: int):
        check(("--states", states, 1), ("--symbols", symbols, 2), ("--length", length, 2), ("--skew", skew, 0))
        self.states, self.symbols, self.skew, self.length = states, symbols, skew, length
        self.p = powers(symbols, skew)
        draw = np.random.default_rng([seed, 0xA0])
        self.order = np.stack([permutation(draw, symbols) for _ in range(states)])  # [state, rank] -> symbol
        self.next = (draw.random((states, symbols)) * states).astype(np.int64)  # [state, symbol] -> state

    def rows(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """All rows a step at a time."""
        ranks = np.searchsorted(self.p.cumsum()[:-1], draw.random((count, self.length)), side="right")
        state, found = np.zeros(count, dtype=np.int64), np.empty((count, self.length), dtype=np.int64)
        for at in range(self.length):
            found[:, at] = self.order[state, ranks[:, at]]
            state = self.next[state, found[:, at]]
        return found

    @property
    def entropy(self) -> float:
        """H(p)."""
        return nats(self.p)

    def facts(self) -> dict:
        """Sizes and the rule."""
        rule = "unifilar hidden Markov source, all states with the same emission probabilities, start state known"
        return {"rule": rule, "states": self.states, "symbols": self.symbols, "skew": self.skew}


class Grammar(SequenceSource):
    """A probabilistic context-free grammar of fixed depth without ambiguity, after the random hierarchy model (Cagnetti
    et al., arXiv 2307.02129): every symbol of a level has `rules` right sides of `branch` symbols of the level below,
    no right side belongs to two symbols, so that a sentence has one tree.

    The root is uniform over `symbols`, rule k has probability proportional to (k + 1)^-skew whatever the symbol. A tree
    has n = (branch^depth - 1) / (branch - 1) inner nodes, so a sentence of branch^depth tokens has the entropy
    ln symbols + n H(p). A row is whole sentences, one after the other.
    """

    def __init__(self, *, symbols: int, rules: int, branch: int, depth: int, skew: float, length: int, seed: int):
        check(("--symbols", symbols, 2), ("--rules", rules, 1), ("--branch", branch, 2), ("--depth", depth, 1))
        check(("--skew", skew, 0))
        if symbols * rules > symbols**branch:
            raise UserError(
                f"--symbols {symbols} --rules {rules}: need {symbols * rules} right sides, there are {symbols**branch} "
                f"of {branch} symbols; expected rules of at most symbols^(branch - 1)"
            )
        self.sentence = branch**depth
        if length < self.sentence or length % self.sentence:
            raise UserError(
                f"--length {length}: expected a multiple of a sentence's {self.sentence} tokens (branch^depth)"
            )
        self.symbols, self.rules, self.branch, self.depth = symbols, rules, branch, depth
        self.skew, self.length, self.p = skew, length, powers(rules, skew)
        draw = np.random.default_rng([seed, 0xA1])
        self.right = np.stack([self._right_sides(draw) for _ in range(depth)])  # [level, symbol, rule, place] -> symbol

    def rows(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """All sentences a level at a time."""
        sentences = count * (self.length // self.sentence)
        found = (draw.random((sentences, 1)) * self.symbols).astype(np.int64)
        for level in range(self.depth):
            chosen = np.searchsorted(self.p.cumsum()[:-1], draw.random(found.shape), side="right")
            found = self.right[level][found, chosen].reshape(sentences, -1)
        return found.reshape(count, self.length)

    @property
    def entropy(self) -> float:
        """Of a sentence, divided by its tokens."""
        inner = (self.sentence - 1) // (self.branch - 1)
        return (math.log(self.symbols) + inner * nats(self.p)) / self.sentence

    def facts(self) -> dict:
        """Sizes and the rule."""
        sizes = ("symbols", "rules", "branch", "depth", "skew", "sentence")
        rule = "unambiguous grammar of fixed depth: ln symbols + inner nodes x H(rule), over the sentence's tokens"
        return {"rule": rule, **{name: getattr(self, name) for name in sizes}}

    def _right_sides(self, draw: np.random.Generator) -> np.ndarray:
        numbers = distinct(draw, self.symbols**self.branch, self.symbols * self.rules)
        digits = numbers[:, None] // self.symbols ** np.arange(self.branch) % self.symbols
        return digits.reshape(self.symbols, self.rules, self.branch)


class Recall(SequenceSource):
    """Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927): `pairs` different keys, each followed
    by its value; then slots of two tokens, of which `pairs`, at random, hold a key again and its value, and the others
    the filler, id 0, twice.

    Keys are the ids 1 .. keys, values the next `values` ids. Everything but the second values is chosen uniformly and
    these follow from what stands before, so a row's entropy is ln keys!/(keys - pairs)! + pairs ln values + ln of the
    number of ways to put the keys into the slots, slots!/(slots - pairs)!. (Zoology draws the slots by a power law
    instead.)
    """

    def __init__(self, *, keys: int, values: int, pairs: int, length: int):
        check(("--pairs", pairs, 1), ("--keys", keys, pairs), ("--values", values, 1))
        self.slots = length // 2 - pairs
        if length % 2 or self.slots < pairs:
            raise UserError(f"--length {length}: expected an even number of at least 4 x --pairs = {4 * pairs}")
        self.keys, self.values, self.pairs, self.length = keys, values, pairs, length
        self.symbols = 1 + keys + values

    def rows(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """Keys and slots by the order of uniform numbers."""
        keys = 1 + draw.random((count, self.keys)).argsort(1)[:, : self.pairs]
        values = 1 + self.keys + (draw.random((count, self.pairs)) * self.values).astype(np.int64)
        slots = draw.random((count, self.slots)).argsort(1)[:, : self.pairs]
        told = np.stack([keys, values], -1)  # [count, pairs, 2]
        asked = np.zeros((count, self.slots, 2), dtype=np.int64)
        asked[np.arange(count)[:, None], slots] = told
        return np.concatenate([told.reshape(count, -1), asked.reshape(count, -1)], 1)

    @property
    def entropy(self) -> float:
        """Of a row, divided by its length."""
        ways = sum(math.lgamma(n + 1) - math.lgamma(n - self.pairs + 1) for n in (self.keys, self.slots))
        return (ways + self.pairs * math.log(self.values)) / self.length

    def facts(self) -> dict:
        """Sizes and the rule."""
        rule = "keys and values, then slots in uniform order; answers: odd places from 2 x pairs on that are not 0"
        return {"rule": rule, "keys": self.keys, "values": self.values, "pairs": self.pairs}


def answers(rows: np.ndarray, pairs: int) -> np.ndarray:
    """Where rows [n, length] of `Recall` hold a value that must be recalled, bool [n, length]."""
    places = np.arange(rows.shape[1])
    return (rows != 0) & (places % 2 == 1) & (places >= 2 * pairs)


def powers(count: int, skew: float) -> np.ndarray:
    """Probabilities [count] proportional to (k + 1)^-skew."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -skew
    return weights / weights.sum()


def nats(p: np.ndarray) -> float:
    """Entropy of `p`, which is nowhere 0."""
    return float(-(p * np.log(p)).sum())


def permutation(draw: np.random.Generator, count: int) -> np.ndarray:
    """An order of 0 .. count - 1 from uniform numbers alone, whose stream no version of numpy has changed."""
    return draw.random(count).argsort(kind="stable")


def distinct(draw: np.random.Generator, below: int, count: int) -> np.ndarray:
    """`count` different numbers of 0 .. below - 1, in random order."""
    if below <= 2**20:
        return permutation(draw, below)[:count]
    found: dict[int, None] = {}
    while len(found) < count:
        found.setdefault(int(draw.random() * below))
    return np.array(list(found), dtype=np.int64)


def check(*bounds: tuple[str, float, float]) -> None:
    """Raise `UserError` for an option (name, value, lowest) below its lowest value."""
    for name, value, low in bounds:
        if not value >= low:
            raise UserError(f"{name} {value}: must be {low} or more")
