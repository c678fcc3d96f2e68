"""Web pages as DCLM ships them (one JSON object per line: text, label), the whole way: tokens, shards, text again.

The pages are made here; the variable DCLM_PAGES names a file of real ones to go the same way, with GPT-2's tokenizer
where its vocabulary is found and one that is trained on the pages where it is not.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.errors import UserError

LENGTH = 128
PIECES = ["Toledo > Bakeries", "no. 1 – “best” café", "日本語", "|a table|b|\n|-|", "  code()", "😀", "\t\r\n", "the"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The file, and its texts."""
    given = os.environ.get("DCLM_PAGES")
    path = Path(given) if given else tmp_path_factory.mktemp("pages") / "pages.jsonl"
    if not given:
        rng = np.random.default_rng(0)
        made = (" ".join([str(number), *rng.choice(PIECES, size=rng.integers(1, 300))]) for number in range(120))
        path.write_text("".join(json.dumps({"text": text, "label": 0}) + "\n" for text in made), encoding="utf-8")
    return path, [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_whole_way(pages, tmp_path, data_prep):
    path, texts = pages
    name = "gpt2"
    try:
        load_tokenizer(name).encode_ordinary("found?")
    except UserError:
        name = str(tmp_path / "tokenizer.json")
        result = data_prep("train-tokenizer", "--source", path, "--out", name, "--vocab-size", "400")
        assert result.returncode == 0, result
    tokenizer = load_tokenizer(name)
    out = tmp_path / "s"
    options = ("--source", path, "--out", out, "--tokenizer", name, "--length", LENGTH, "--val-fraction", 0.1)
    for command in (("tokenize", *options), ("verify", out), ("inspect", out)):
        result = data_prep(*command)
        assert result.returncode == 0, result
    facts = json.loads((out / "dataset.json").read_text())["splits"]
    unique = dict.fromkeys(texts)
    assert sum(facts[split]["documents"] for split in facts) == len(unique)
    assert sum(facts[split]["tokens"] for split in facts) == sum(len(tokenizer.encode_ordinary(t)) + 1 for t in unique)
    found = []
    for split in facts:
        tokens = ShardedTokens(out, split)
        rows = [tokens[index] for index in range(len(tokens))]
        assert rows and {len(row) for row in rows} == {LENGTH}
        stream = np.concatenate(rows)
        ends = np.flatnonzero(stream == tokenizer.eot_id)
        found += [tokenizer.decode(piece[piece != tokenizer.eot_id]) for piece in np.split(stream, ends + 1)[:-1]]
        theirs = [value for tar in sorted(out.glob(f"{split}-*.tar"))
                  for sample in webdataset.WebDataset(str(tar), shardshuffle=False).decode()
                  for key, value in sample.items() if isinstance(value, np.ndarray)]  # fmt: skip
        assert np.array_equal(np.concatenate([value.reshape(-1) for value in theirs]), stream)
    assert len(found) == len(set(found)) >= len(unique) - 2 * len(facts) and set(found) <= set(unique)
