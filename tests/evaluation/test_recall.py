"""Recall: models that know all pairs, some or none; that an answer is hidden from the model that is asked it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from data_prep.sequences import Recall
from data_prep.synth import synth
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.evaluation.recall import measure_recall, predict
from diffusion_lm.evaluation.sequences import sequence_set
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction

PAIRS, KEYS, VALUES, LENGTH = 3, 5, 4, 32
ROWS, FEW = 100, 8
AUTOREGRESSIVE = ["objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true"]
KINDS = {
    "masked": [],
    "autoregressive": AUTOREGRESSIVE,
    "blocks": ["block_size=8"],
    "blocks-of-one": ["block_size=1"],
    "uniform": ["objective=uniform"],
    "scores": ["objective=score_entropy", "process=uniform"],
}


@pytest.fixture(scope="module")
def loaded(world):
    """A run on recall data after two steps, by its kind."""
    shards = world.folder / "recall"
    if not shards.exists():
        source = Recall(keys=KEYS, values=VALUES, pairs=PAIRS, length=LENGTH)
        synth("recall", source, shards, seed=0, sequences={"train": 64, "val": ROWS})

    def get(kind, *more):
        data = ["data.path=recall", f"data.tokenizer=ids:{2 + KEYS + VALUES}", f"data.val_sequences={FEW}"]
        return world.run(f"recall-{kind}", *data, *KINDS.get(kind, more))

    return get


@pytest.fixture
def opened(loaded, world, monkeypatch):
    """The run of a kind and the sequences that it is scored on."""
    monkeypatch.chdir(world.folder)

    def get(kind):
        run = load_run(loaded(kind), "float64")
        return run, sequence_set(run.config.data, None, None, ROWS)

    return get


class Remembers(DenoisingModel):
    """Says the value that was told with the key before a place, if it is one of the first `known` pairs; else any."""

    def __init__(self, process, known):
        torch.nn.Module.__init__(self)
        self.process, self.known = process, known

    def table(self):
        return torch.zeros(self.process.symbols, 1)

    def forward(self, noisy):
        if not self.process.shifted:  # every answer is hidden and nothing else is, and the network is told how many
            masked = noisy.x == self.process.mask_id
            assert masked.sum() * LENGTH == PAIRS * masked.numel()
            assert torch.equal(noisy.noise_level.where(masked.any(1, True), 0.0), masked.double().mean(1, True))
        logits = torch.full((*noisy.x.shape, 2 + KEYS + VALUES), -30.0)
        for row in range(len(noisy.x)):
            before = []
            if noisy.blocks is not None:
                first = row - row % noisy.blocks.count
                before = noisy.blocks.tokens[first:row].flatten().tolist()
            text = before + noisy.x[row].tolist()
            for place in range(len(before), len(text)):
                pairs = dict(zip(text[0 : 2 * self.known : 2], text[1 : 2 * self.known : 2]))
                value = pairs.get(text[place - 1]) if place >= 2 * PAIRS else None
                said = range(1 + KEYS, 1 + KEYS + VALUES) if value is None else [value]
                for token in said:
                    logits[row, place - len(before), token] = 0.0
        return Prediction(logits)


@pytest.mark.parametrize("kind", ["masked", "autoregressive", "blocks", "blocks-of-one"])
@pytest.mark.parametrize("known", [0, 1, PAIRS])
def test_models_that_remember_some_pairs(opened, kind, known):
    """Of a text's three answers `known` are known; the others are the first value one time in `VALUES`."""
    run, data = opened(kind)
    found = measure_recall(dataclasses.replace(run, model=Remembers(run.model.process, known)), data, 0)
    facts, share = found.facts(), known / PAIRS
    guessed = (PAIRS - known) * ROWS
    error = math.sqrt((1 - 1 / VALUES) / VALUES * guessed) / (PAIRS * ROWS)
    assert facts["recall/answers"] == PAIRS * ROWS and facts["recall/chance"] == 1 / VALUES
    assert facts["recall/accuracy"] == pytest.approx(share + (1 - share) / VALUES, abs=4 * error)
    assert facts["recall/accuracy_se"] == pytest.approx(error, rel=0.2)
    assert facts["recall/nats_per_answer"] == pytest.approx((1 - share) * math.log(VALUES), abs=1e-6)
    if run.objective.exact:
        assert facts["recall/answers_of_nll"] == pytest.approx((PAIRS - known) * math.log(VALUES) / LENGTH, abs=1e-6)
    else:
        assert facts["recall/answers_of_nll"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_does_not_see_the_answer(opened, kind):
    """Another last answer moves nothing that is said of it; another key before it does."""
    run, data = opened(kind)
    tokens = torch.from_numpy(data.read(np.arange(FEW)))
    last = (tokens != 0).long().mul(torch.arange(LENGTH)).argmax(1, keepdim=True)
    hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, last, True)

    def said(tokens):
        batch = Batch(tokens, torch.arange(FEW))
        with torch.no_grad():
            logits = predict(run.model, batch, hidden, Noise(0, batch.position), run.config.block_size)
        return logits.softmax(-1).gather(1, last.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))

    answer = tokens.gather(1, last)
    assert (answer > KEYS).all(), "it is a value"
    other = 1 + KEYS + (answer - KEYS) % VALUES
    assert (other != answer).all()
    torch.testing.assert_close(said(tokens.scatter(1, last, other)), said(tokens), rtol=0, atol=0)
    moved = (said(tokens.scatter(1, last - 1, 0)) - said(tokens)).abs().amax((1, 2))
    assert (moved > 0).all()


def test_next_tokens_nats_are_a_part_of_the_likelihood(opened):
    """-ln p of the answers, each from the text before it alone, as a loop that cuts the text off there finds them."""
    run, data = opened("autoregressive")
    found, first = measure_recall(run, data, 0), torch.zeros(1, dtype=torch.long)
    for row, tokens in enumerate(torch.from_numpy(data.read(np.arange(3)))):
        total = 0.0
        for place in range(2 * PAIRS + 1, LENGTH, 2):
            if tokens[place]:
                text = torch.cat((tokens[:place], tokens.new_zeros(1)))[None]
                with torch.no_grad():
                    said = predict(run.model, Batch(text, first), text < 0, Noise(0, first), 0)
                total -= float(said[0, -1].log_softmax(0)[tokens[place]])
        assert float(found.nats[row]) == pytest.approx(total / PAIRS, abs=1e-5)
        assert float(found.of_text[row]) == pytest.approx(total / LENGTH, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "given"),
    [("masked", "all answers of a text hidden at once, everything else given"),
     ("autoregressive", "given everything before the answer"),
     ("blocks", "the answers of a block hidden at once, the rest of it and all blocks before it given")],
)  # fmt: skip
def test_evaluate(loaded, evaluate, command, kind, given):
    run = loaded(kind)
    found = evaluate(run)
    assert found["recall/given"] == given and found["recall/answers"] == PAIRS * FEW
    hits = found["recall/accuracy"] * PAIRS * FEW
    assert hits == pytest.approx(round(hits)) and 0 <= hits <= PAIRS * FEW
    said = command("evaluate", run).out
    assert f"recall      {found['recall/accuracy']:.4f} ± {found['recall/accuracy_se']:.4f} of 24 answers" in said
    assert "one in 4 by chance" in said and ("nats per token of the text" in said) == (kind == "autoregressive")


def test_vectors_are_not_asked(loaded, evaluate, command):
    run = loaded("gaussian", "objective=gaussian")
    assert not [name for name in evaluate(run) if name.startswith("recall/")]
    said = command("evaluate", run).out
    assert "recall      not measured: the states of process 'gaussian' are vectors, not tokens" in said
