"""Documents of packed windows: read off the end-of-text ids, in training, validation and evaluation."""

import json

import numpy as np
import pytest
import torch

from diffusion_lm.data.datamodule import TokenDataConfig
from diffusion_lm.data.segments import segments
from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.sequences import ISOLATED, sequence_set
from diffusion_lm.experiment import load

EOT = 256


def counted(row: list[int]) -> list[int]:
    """Document of each position, one after the other."""
    found, document = [], 1
    for token in row:
        found.append(document)
        document += token == EOT
    return found


def test_a_document_ends_with_its_end_of_text():
    tokens = np.array([[5, 6, EOT, 7, EOT, EOT, 8], [EOT, 1, 2, 3, 4, 5, EOT]])
    assert segments(tokens, EOT).tolist() == [[1, 1, 1, 2, 2, 3, 4], [1, 2, 2, 2, 2, 2, 2]]


def test_batches_carry_segments_where_documents_are_isolated(texts, make_shards, make_module):
    folder = make_shards(texts, length=256)
    plain, isolated = make_module(folder, length=256), make_module(folder, length=256, isolate_documents=True)
    for loader in ("train_dataloader", "val_dataloader"):
        without, batch = next(iter(getattr(plain, loader)())), next(iter(getattr(isolated, loader)()))
        assert "segment" not in without
        assert torch.equal(without["tokens"], batch["tokens"])
        assert batch["segment"].tolist() == [counted(row) for row in batch["tokens"].tolist()]
        assert batch["segment"].max() > 1


def test_the_own_validation_split_is_evaluated_like_it(texts, make_shards):
    folder = make_shards(texts)
    own = TokenDataConfig(path=str(folder), length=32, isolate_documents=True)
    data = sequence_set(own, None, None, 0)
    for batch in data.batches(7):
        assert batch.segment.tolist() == [counted(row) for row in batch.tokens.tolist()]
    assert data.notes == (ISOLATED,) and data.facts["documents_isolated"]
    other = sequence_set(own, str(folder), None, 0)
    assert next(other.batches(7)).segment is None
    assert other.notes == () and not other.facts["documents_isolated"]


def test_windows_whose_documents_are_not_marked_are_refused(texts, make_shards, make_module):
    folder = make_shards(texts)
    file = folder / "dataset.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "packing": "documents without a mark, concatenated", "facts_sha256": ""}))
    make_module(folder)
    message = (
        "data.isolate_documents: got true, but nothing marks the documents of .*; set data.isolate_documents=false"
    )
    with pytest.raises(UserError, match=message):
        make_module(folder, isolate_documents=True)


def test_a_conditioning_with_a_position_of_its_own_is_refused():
    message = "data.isolate_documents: got true with conditioning 'token', .*; expected adaln, film, additive or none"
    with pytest.raises(UserError, match=message) as refused:
        load("quickstart", ["data.isolate_documents=true", "denoiser.conditioning=token"])
    assert "\n" not in str(refused.value)
    assert load("quickstart", ["data.isolate_documents=true"]).data.isolate_documents
