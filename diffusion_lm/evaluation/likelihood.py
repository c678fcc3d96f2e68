"""The bound of a trained run, per sequence, and what is reported of it; two runs are compared sequence by sequence."""

import math
from dataclasses import dataclass

import torch

from diffusion_lm.config import name_of, to_tree
from diffusion_lm.errors import RunError, UserError
from diffusion_lm.evaluation.levels import LevelCurve
from diffusion_lm.evaluation.load import LoadedRun
from diffusion_lm.evaluation.sequences import SequenceSet
from diffusion_lm.lightning_module import bound_metrics
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Float, Rows, Tensor


@dataclass(frozen=True)
class Scores:
    """Nats per token of every sequence, float64 on the host: the bound, its terms, other conventions beside it.

    tokens: positions scored per sequence; level and cross_entropy: as in `Bound`.
    """

    nll: Rows
    tokens: Rows
    terms: dict[str, Rows]
    beside: dict[str, Rows]
    level: Float[Tensor, "B K"]
    cross_entropy: Float[Tensor, "B K"]

    def curve(self) -> LevelCurve:
        """The loss by noise level."""
        return LevelCurve.of(self.level, self.cross_entropy)


@dataclass(frozen=True)
class Estimate:
    """A mean over sequences with its standard error, None for one sequence."""

    mean: float
    standard_error: float | None

    @classmethod
    def of(cls, rows: Rows) -> "Estimate":
        """Of one number per sequence."""
        return cls(float(rows.mean()), float(rows.std() / math.sqrt(len(rows))) if len(rows) > 1 else None)


@dataclass(frozen=True)
class Difference:
    """B - A in nats per token over the same sequences.

    common_levels: both saw the same noise levels of the same process, so that what they share cancels.
    """

    nll: Estimate
    better_share: float
    common_levels: bool
    rows: Rows


@torch.no_grad()
def score(run: LoadedRun, data: SequenceSet, draws: int, seed: int) -> Scores:
    """Every sequence's bound from `draws` stratified noise levels, in the run's precision.

    The noise depends on the seed and the sequence's place in its set alone, so all runs share it. Raises `UserError`
    for an objective without a bound, `RunError` where the bound is no number.
    """
    if draws < 1:
        raise UserError(f"draws: got {draws}, expected at least 1")
    bounds = []
    for batch in data.batches(run.config.evaluation.batch_size):
        batch = batch.to(run.device)
        bound = run.objective.bound(run.model, batch, Noise(seed, batch.position), draws)
        if bound is None:
            raise UserError(
                f"{run.folder}: objective '{name_of(run.config.objective)}' has no likelihood bound; expected a run of "
                "one that has, or draw text from this one: python -m diffusion_lm generate"
            )
        if not bound.nll.isfinite().all():
            raise RunError(f"{run.folder}: the bound is no number; the model's weights have diverged, train it again")
        bounds.append(bound)

    def rows(values: list[Tensor]) -> Tensor:
        return torch.cat(values).double().cpu()

    tokens = rows([b.tokens for b in bounds])
    return Scores(
        nll=rows([b.nll for b in bounds]) / tokens,
        tokens=tokens,
        terms={name: rows([b.terms[name] for b in bounds]) / tokens for name in bounds[0].terms},
        beside={name: rows([b.beside[name] for b in bounds]) / tokens for name in bounds[0].beside},
        level=rows([b.level for b in bounds]),
        cross_entropy=rows([b.cross_entropy for b in bounds]),
    )


def metrics(scores: Scores, bytes_per_token: float) -> dict[str, float | None]:
    """val/nll, val/nll_se (None for one sequence), val/ppl_bound, val/bpb: the numbers that training reports."""
    found = {name: float(value) for name, value in bound_metrics(scores.nll, bytes_per_token).items()}
    return {"val/nll": found["val/nll"], "val/nll_se": found.get("val/nll_se"), **found}


def difference(a: LoadedRun, b: LoadedRun, of_a: Scores, of_b: Scores) -> Difference:
    """B's bound minus A's, sequence by sequence."""
    rows = of_b.nll - of_a.nll
    same = torch.equal(of_a.level, of_b.level) and _process(a) == _process(b)
    return Difference(Estimate.of(rows), float((rows < 0).double().mean()), same, rows)


def check_comparable(a: LoadedRun, b: LoadedRun, *, own_data: bool) -> None:
    """Refuse two runs whose sequences do not match: one line that says in what, and what to do."""
    for what, name, of_a, of_b in (
        ("tokenizers", "tokenizer", a.info.tokenizer_fingerprint, b.info.tokenizer_fingerprint),
        ("lengths", "length", a.info.length, b.info.length),
        ("corpora", "corpus", a.info.corpus_hash[:12], b.info.corpus_hash[:12]),
        ("documents", "isolate_documents", a.config.data.isolate_documents, b.config.data.isolate_documents),
    ):
        of_own = name in ("corpus", "isolate_documents")
        if of_a != of_b and (own_data or not of_own):
            todo = "give --data for a text that both are scored on" if of_own else "evaluate each by itself"
            raise UserError(
                f"{a.folder} and {b.folder}: {what} differ ({of_a} and {of_b}), so that their sequences do not match; "
                f"expected one {name}; {todo}"
            )


def _process(run: LoadedRun) -> tuple[str, dict]:
    return name_of(run.config.process), to_tree(run.config.process)
