"""Any objective block by block: -ln p(x) = -sum_b ln p(x_b | x_<b), each term bounded as a whole text's would be.

Blocks are handed to the objective as rows of their own, with keys of noise and times of their own, beside the clean
texts that they are blocks of (`blocks.py`). Times are stratified over the batch x blocks of an optimiser step. What
comes out per block is summed over the blocks of a text. (BD3-LM, arXiv 2503.09573, equation 8.)

Prompts are drawn as times are, for each block on its own: in a share `prompt.fraction` of the blocks a prefix (or
spans) of the block is given, which is clean, marked and not scored. That is what generation meets where a prompt ends
inside a block; the blocks before it are clean text in any case, whatever `prompt` says. The clean text beside the
blocks is never marked, nor is it when it is taken into a cache. A block of one token has nothing that could be given.
"""

from dataclasses import replace
from typing import Any

from diffusion_lm.blocks import Blocks, block_positions, fold
from diffusion_lm.config import build, name_of, part_class
from diffusion_lm.kind import CACHE, EXACT, Kind
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Batch, Corrupted
from diffusion_lm.objectives.base import Bound, Loss, Objective, TrainingNoise
from diffusion_lm.processes.base import Process
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise
from diffusion_lm.shapes import Float, Rows, Tensor


def objective_of(
    config: Any,
    process: Process,
    prompt: PromptConfig,
    training: TrainingNoise,
    block_size: int,
    length: int,
    cache: str = EXACT,
) -> Objective:
    """The objective over texts of `length` tokens, or block by block where there is a block size. cache: what that of
    the denoiser is (`DenoiserConfig.cache`)."""
    if not block_size:
        return build(config, process, prompt, training)
    training = replace(training, global_batch=training.global_batch * (length // block_size))
    return Blockwise(build(config, process, prompt, training), block_size, cache)


def over(objective: Any, process: Any, block_size: int) -> str:
    """What the number of an objective, of a config, is over, block by block or (0) not."""
    found = part_class(objective)
    return EXACT if block_size == 1 and name_of(process) in found.exact_alone else found.over(objective)


class Blockwise(Objective):
    """An objective over the blocks of texts."""

    def __init__(self, inner: Objective, block_size: int, cache: str = EXACT) -> None:
        super().__init__(inner.config, inner.process, inner.prompt, inner.training_noise)
        self.inner, self.block_size, self.cache = inner, block_size, cache
        self.exact = over(inner.config, inner.process.config, block_size) == EXACT
        self.headline, self.reports_bound = inner.headline, inner.reports_bound

    def check(self) -> None:
        self.inner.check()

    def draw(self, batch: Batch) -> Batch | Corrupted:
        return self.inner.draw(self._rows(batch))

    def forward(self, model: DenoisingModel, batch: Batch | Corrupted) -> Loss:
        return self.inner(model, batch if batch.blocks is not None else self._rows(batch))

    def bound(self, model: DenoisingModel, batch: Batch, noise: Noise, draws: int) -> Bound | None:
        rows = self._rows(batch)
        found = self.inner.bound(model, rows, replace(noise, position=rows.position), draws)
        return None if found is None else self._of_texts(found, rows.blocks.count)

    def kind(self) -> Kind:
        inner = self.inner.kind()
        depends_on = {} if self.exact else inner.depends_on
        cache = {} if self.cache == EXACT else {CACHE: self.cache}
        return Kind(
            inner.process,
            over(self.inner.config, self.inner.process.config, self.block_size),
            {**depends_on, "block_size": self.block_size, **cache},
        )

    def _rows(self, batch: Batch) -> Batch:
        """The batch's blocks."""
        count, tokens = batch.tokens.shape[1] // self.block_size, fold(batch.tokens, self.block_size)
        return Batch(tokens, block_positions(batch.position, count), blocks=Blocks(tokens, count))

    def _of_texts(self, found: Bound, count: int) -> Bound:
        """Sums over the blocks of each text; the levels of its blocks side by side."""

        def total(value: Float[Tensor, "R"]) -> Rows:
            return value.unflatten(0, (-1, count)).sum(1)

        return Bound(
            nll=total(found.nll),
            tokens=total(found.tokens),
            terms={name: total(value) for name, value in found.terms.items()},
            level=found.level.unflatten(0, (-1, count)).flatten(1),
            cross_entropy=found.cross_entropy.unflatten(0, (-1, count)).flatten(1),
            beside={name: total(value) for name, value in found.beside.items()},
        )
