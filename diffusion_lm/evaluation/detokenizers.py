"""Corpora that were published as tokens between spaces, turned back into text as people write it.

Each detokeniser is an ordered table of rewritings, after the conventions of its corpus: WikiText writes `1 @,@ 000` and
headings as `= = Title = =`, the Penn Treebank writes every number `N` and splits `do n't`, the Billion Word Benchmark
puts spaces around all punctuation. A later rule sees what the earlier ones left. The aim is the text that SEDD, MDLM,
BD3-LM and Duo score, so that rules which leave a space or take one too many are kept as the papers have them.
"""

import re
from collections.abc import Callable

Rule = tuple[str, str]
"""A regular expression and what takes its place."""


def _exact(*pairs: Rule) -> list[Rule]:
    return [(re.escape(old), new.replace("\\", r"\\")) for old, new in pairs]


def _closed_up(marks: str) -> list[Rule]:
    """No space before these marks, where one stands on either side; one mark after the other."""
    return _exact(*[(f" {mark} ", f"{mark} ") for mark in marks])


WIKITEXT = [
    *_exact(("s '", "s'")),
    *[(rf" @{re.escape(mark)}@ ", mark) for mark in "-,."],
    *_closed_up(":;.!?,"),
    *[
        (rf"{re.escape(a)}\s*([^{re.escape(b)}]*?)\s*{re.escape(b)}", rf"{a}\1{b}")
        for a, b in ("()", "[]", "{}", '""', "''")
    ],
    *_exact(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *_exact((" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]

PTB = [
    *_exact((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), (r"\/", "/")),
    (" N(?= )", " 1"),
    *_exact(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
]

LM1B = [
    *_exact(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *[rule for mark in "?!" for rule in (*_closed_up(mark), (rf" \{mark}$", mark))],
    *_closed_up(",:;"),
    *_exact((" / ", "/")),
    *[(rf"{a} ([^{a}]+) {a}", rf"{a}\1{a}") for a in "\"'"],
    (r"\( ([^()]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *_exact(("$ ", "$"), ("£ ", "£")),
]


def _table(rules: list[Rule]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]

    def rewrite(text: str) -> str:
        for pattern, new in compiled:
            text = pattern.sub(new, text)
        return text

    return rewrite


def _lambada(text: str) -> str:
    """Straight quotation marks; the passage on a line of its own."""
    return "\n" + text.translate({0x201C: '"', 0x201D: '"'}).strip()


wikitext, ptb, lm1b = _table(WIKITEXT), _table(PTB), _table(LM1B)

DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
    "lambada": _lambada,
    "scientific_papers": lambda text: lm1b(wikitext(text)),
}
