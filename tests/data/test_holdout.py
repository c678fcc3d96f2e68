"""Held-out files are scored like the validation split, by their own counts."""

import numpy as np
import pytest

from data_prep.plan import TokenizeSettings
from data_prep.tokenize import tokenize
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.sequences import sequence_set


def test_a_held_out_split_is_scored(jsonl, texts, tmp_path):
    jsonl(texts[:200], "source/a.jsonl")
    jsonl(["é" * 300, *texts[200:]], "source/held.jsonl")
    settings = TokenizeSettings(
        sources=[str(tmp_path / "source")], out=tmp_path / "out", tokenizer="bytes", length=32, val_fraction=0.2,
        hold_out=["held*"], files_per_part=1,
    )  # fmt: skip
    tokenize(settings, processes=1, say=lambda line: None)
    own = TokenDataConfig(path=str(tmp_path / "out"), length=32, val_sequences=0)
    held, val = sequence_set(own, None, None, 0, "holdout"), sequence_set(own, None, None, 0)
    stored = ShardedTokens(tmp_path / "out", "holdout")
    assert np.array_equal(held.read(held.places), np.stack([stored[i] for i in range(len(stored))]))
    assert (held.name, val.name, held.facts["data"]["split"]) == ("out-holdout", "validation", "holdout")
    counts = stored.info.splits["holdout"]
    text = sum(len(text.encode()) for text in ["é" * 300, *texts[200:]])
    assert held.bytes_per_token == text / (text + 101) == counts.text_bytes / counts.tokens
    assert sequence_set(own, str(tmp_path / "out"), None, 3, "holdout").digest == held.digest
    with pytest.raises(UserError, match="split 'hold'"):
        sequence_set(own, None, None, 0, "hold")
    (tmp_path / "text.txt").write_text("some text " * 50)
    with pytest.raises(UserError, match=r"--split holdout: .*text\.txt is text, without splits; leave it out"):
        sequence_set(own, str(tmp_path / "text.txt"), None, 0, "holdout")
