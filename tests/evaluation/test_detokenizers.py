"""Detokenisers on lines in the style of their corpora; the right side was written by hand from the conventions."""

import pytest

from diffusion_lm.evaluation.detokenizers import DETOKENIZERS

EXAMPLES = [
    ("none", "as it , is", "as it , is"),
    # WikiText: split numbers and hyphens, spaced punctuation, brackets and quotes, headings
    ("wikitext", " = = Early life = = \n", " == Early life ==\n"),
    ("wikitext", "in 1 @,@ 234 well @-@ known places , 5 @.@ 5 km away .", "in 1,234 well-known places, 5.5 km away ."),
    ("wikitext", "he left ; she ( his wife ) stayed : why ? no ! yes", "he left; she (his wife) stayed: why? no! yes"),
    ("wikitext", 'called " The Gate " [ sic ] { x }', 'called "The Gate" [sic] {x}'),
    ("wikitext", "the dog 's tail , the boys ' room", "the dog's tail, the boys' room"),
    ("wikitext", "at 20 ° C \n next N rows", "at 20°C\nnext 1 rows"),
    ("wikitext", "= = = Notes = = =", "=== Notes ==="),
    # Penn Treebank: N for numbers, <unk>, split clitics
    ("ptb", "it did n't pay $ N N per share", "it didn't pay $1 1 per share"),
    ("ptb", "mr. <unk> 's firm \n the banks ' loans", "mr. ?'s firm\nthe banks' loans"),
    ("ptb", r"a n\/a entry N N N # N end", "a n/a entry 1 1 1 #1 end"),
    # Billion Word Benchmark: everything between spaces
    ("lm1b", "He said , it 's over . Really ? Yes !", "He said, it's over. Really? Yes!"),
    ("lm1b", 'The " new deal " costs $ 5 / £ 4 ( about ) [ sic ] : cheap ; good',
     'The "new deal" costs $5/£4 (about) [sic]: cheap; good'),
    ("lm1b", "see http : / / www.a.com and https : / / b.org now .", "see http://www.a.com and https://b.org now."),
    ("lm1b", "wait ! stop . Now .", "wait! stop. Now."),
    # LAMBADA: straight quotation marks, a line of its own
    ("lambada", "  “ Yes , ” she said \n", '\n" Yes , " she said'),
    # scientific papers: both
    ("scientific_papers", "in fig . 1 ( see @xcite ) , 3 @.@ 5 cm .", "in fig. 1 (see @xcite), 3.5 cm."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), EXAMPLES)
def test_by_hand(name, text, expected):
    assert DETOKENIZERS[name](text) == expected


def test_every_detokenizer_has_an_example():
    assert {name for name, _, _ in EXAMPLES} == set(DETOKENIZERS)


@pytest.mark.parametrize("name", DETOKENIZERS)
def test_plain_words_stay(name):
    assert DETOKENIZERS[name]("plain words stay as they are").strip() == "plain words stay as they are"
