"""Associative recall: how often a model names the value that was told with a key, where the key is asked again.

Of `data_prep synth recall` (Arora et al., "Zoology", arXiv 2312.04927). What is measured, by process:

* next-token models: the most probable token after everything before the answer, the key last.
* diffusion models: all answers of a text are at full noise at once (the mask, or a random token over `uniform`),
  everything else is clean, and the network is told the noise level of such a state, the share of hidden tokens.
* diffusion in blocks: the same inside a block, after the clean blocks before it; its share is the block's.

A state of the second kind is one that training draws. Every answer follows from the pairs in front, so a model that
recalls is right each time, and one that only knows what values there are is right once in `values`. The most probable
token is taken among the whole vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from data_prep.sequences import answers
from diffusion_lm.blocks import Blocks, block_positions, fold, unfold
from diffusion_lm.evaluation.likelihood import Estimate
from diffusion_lm.evaluation.load import LoadedRun
from diffusion_lm.evaluation.sequences import SequenceSet
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.precision import wide
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Bool, Logits, Rows, Tensor

BEFORE = "given everything before the answer"
HIDDEN = "all answers of a text hidden at once, everything else given"
IN_BLOCKS = "the answers of a block hidden at once, the rest of it and all blocks before it given"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """Of every sequence, float64 on the host: the share of answers that were named, and -ln p of an answer.

    of_text: the answers' part of -ln p(x), nats per token of the text; None where what is reported is a bound.
    """

    right: Rows
    nats: Rows
    of_text: Rows | None
    answers: int
    values: int
    given: str

    def facts(self) -> dict[str, Any]:
        """As it stands in a manifest, standard errors over sequences."""
        right, nats = Estimate.of(self.right), Estimate.of(self.nats)
        return {
            "recall/accuracy": right.mean,
            "recall/accuracy_se": right.standard_error,
            "recall/nats_per_answer": nats.mean,
            "recall/nats_per_answer_se": nats.standard_error,
            "recall/answers_of_nll": None if self.of_text is None else float(self.of_text.mean()),
            "recall/chance": 1 / self.values,
            "recall/answers": self.answers,
            "recall/given": self.given,
        }


@torch.no_grad()
def measure_recall(run: LoadedRun, data: SequenceSet, seed: int) -> Recall | None:
    """Recall of a run; None where the data ask nothing, or where states are vectors, not ids."""
    if data.recall is None or not run.model.process.discrete:
        return None
    right, nats, count = [], [], []
    for batch in data.batches(run.config.evaluation.batch_size):
        asked = torch.from_numpy(answers(batch.tokens.numpy(), data.recall["pairs"])).to(run.device)
        batch = batch.to(run.device)
        logits = predict(run.model, batch, asked, Noise(seed, batch.position), run.config.block_size)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")
        right.append(((logits.argmax(-1) == batch.tokens) & asked).sum(1).double().cpu())
        nats.append(losses.double().masked_fill(~asked, 0.0).sum(1).cpu())
        count.append(asked.sum(1).double().cpu())
    right, nats, count = torch.cat(right), torch.cat(nats), torch.cat(count)
    return Recall(
        right=right / count,
        nats=nats / count,
        of_text=nats / data.length if run.objective.exact else None,
        answers=int(count.sum()),
        values=data.recall["values"],
        given=BEFORE if run.model.process.shifted else (IN_BLOCKS if run.config.block_size else HIDDEN),
    )


def predict(model: DenoisingModel, batch: Batch, hidden: Bool[Tensor, "B L"], noise: Noise, block_size: int) -> Logits:
    """What the model says of each token; only that of `hidden` ones, and of tokens after them, is of use."""
    tokens, process = batch.tokens, model.process
    if process.shifted:
        level = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)
        return wide(model(Noisy(tokens, level, segment=batch.segment)).logits)
    size = block_size or tokens.shape[1]
    count, rows, hidden = tokens.shape[1] // size, fold(tokens, size), fold(hidden, size)
    noise = replace(noise, position=block_positions(noise.position, count))
    level = hidden.double().mean(1, keepdim=True).clamp(min=1 / size)  # a block without answers is not looked at
    x_t, t = process.prior(rows, model.table(), noise).where(hidden, rows), process.time_of(level)
    said = model(Noisy(x_t, level, segment=batch.segment, blocks=Blocks(rows, count) if block_size else None))
    return unfold(wide(said.posterior(process, x_t, t).logits), count)
