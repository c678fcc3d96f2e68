"""Generation in blocks: a block is denoised beside the cache of the text before it, then taken into it, and so on.

Rows are on their own: each has its block, its place in the time grid of that block, and its end. A pass of the network
serves all of them at once: in some rows it denoises, in others it takes the finished block in, clean, at noise level 0
(`mixers/base.py`: a block's outputs are the same either way). So no row waits for another, and none knows of another:
noise is a function of (seed, row, block, step). Under absorbing noise a block is finished as soon as no mask is left.

`num_steps` is that of every block. (Block diffusion: Arriola et al., arXiv 2503.09573, algorithm 2.)
"""

from dataclasses import dataclass, replace

import torch

from diffusion_lm.cache import Cache, CacheUse, Committing, Denoising
from diffusion_lm.errors import UserError
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.samplers.base import Guess, Sample, Sampler, SamplerState
from diffusion_lm.shapes import Bool, Given, Int, State, Tensor, Times, Tokens


@dataclass(frozen=True)
class Prompts:
    """What every row begins with: the first `lengths` [B] of its `tokens` [B, P]."""

    tokens: Tokens
    lengths: Int[Tensor, "B"]

    def given(self) -> Given:
        """Which of the tokens they are."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.lengths.unsqueeze(1)


@torch.no_grad()
def generate_blocks(
    sampler: Sampler,
    model: DenoisingModel,
    noise: Noise,
    length: int,
    block_size: int,
    prompts: Prompts | None = None,
    stop: int | None = None,
) -> Sample:
    """Draw one text of `length` tokens per row key of `noise`, block by block; the last block is cut.

    A row ends before the first `stop` that it draws, where there is such an id. Raises `UserError` for what has no
    meaning in blocks.
    """
    _check(sampler, length, block_size, prompts)
    rows = Rows(sampler, model, noise, length, block_size, prompts, stop)
    while not bool(rows.done.all()):
        rows.advance()
    return Sample(rows.tokens[:, :length], rows.calls, rows.ends, rows.cache.nbytes())


def _check(sampler: Sampler, length: int, block_size: int, prompts: Prompts | None) -> None:
    for name, value in (("length", length), ("block_size", block_size)):
        if value < 1:
            raise UserError(f"{name}: got {value}, expected at least 1")
    if sampler.config.guidance:
        raise UserError(f"guidance: got {sampler.config.guidance}, but it has no meaning in blocks yet; set it to 0")
    longest = 0 if prompts is None else int(prompts.lengths.max())
    if longest >= length:
        raise UserError(
            f"prompt: {longest} tokens leave no room in {length}; give a shorter prompt or a larger length"
        )


class Rows:
    """The rows of a batch on their ways.

    tokens: the texts, whole blocks of them [B, T]; block: the active one; taking_in: it is finished, and the next pass
    takes it in; done: nothing is left to do; ends: where the text ends; calls: passes that a row had a use for. [B]
    state: the sampler's, of the active blocks.
    """

    def __init__(
        self,
        sampler: Sampler,
        model: DenoisingModel,
        noise: Noise,
        length: int,
        block_size: int,
        prompts: Prompts | None,
        stop: int | None,
    ) -> None:
        self.sampler, self.model, self.process = sampler, model, model.process
        self.length, self.size, self.stop, self.prompted = length, block_size, stop, prompts is not None
        self.noise, position = noise, noise.position
        self.tokens = position.new_zeros(len(position), -(-length // block_size) * block_size)
        self.known, self.cache = torch.zeros_like(position), Cache.empty(len(position), position.device)
        if prompts is not None:
            self._read(prompts)
        self.block = self.known // block_size
        self.calls = (self.block > 0).long()
        self.taking_in = self.done = torch.zeros_like(position, dtype=torch.bool)
        self.ends = torch.full_like(position, length)
        self.state = self._fresh()

    def advance(self) -> None:
        """One pass of the network, for every row what it needs, and what follows from it."""
        taken, all_taken = self.taking_in, bool((self.taking_in | self.done).all())
        if all_taken:
            self.calls = self.calls + taken
            self.cache = self.model.commit(self._clean(), self.cache, self._named(taken))
        else:
            self._denoise()
        if all_taken or bool(taken.any()):
            self._start(taken)

    def _read(self, prompts: Prompts) -> None:
        """Put the prompts in place, and their whole blocks into the cache."""
        self.known = prompts.lengths
        width = min(prompts.tokens.shape[1], self.tokens.shape[1])
        self.tokens[:, :width] = prompts.tokens[:, :width].where(prompts.given()[:, :width], 0)
        whole = int(self.known.max()) // self.size * self.size
        if whole:
            self.cache = self.model.prefill(self.tokens[:, :whole], self.known, self.size)

    def _place(self) -> Int[Tensor, "B S"]:
        """Places in the text of the active blocks' positions."""
        return self.block.unsqueeze(1) * self.size + torch.arange(self.size, device=self.block.device)

    def _clean(self) -> Tokens:
        """What is known of the active blocks: the prompt's tokens; of a finished block all."""
        return self.tokens.gather(1, self._place())

    def _given(self) -> Given:
        """Positions of the active blocks that the prompt has filled."""
        return self._place() < self.known.unsqueeze(1)

    def _fresh(self) -> SamplerState:
        """The active blocks at t = 1; keys of noise: a row's own, and its block above the low 32 bits."""
        noise = replace(self.noise, position=self.noise.position + (self.block << 32))
        table, clean = self.model.table(), self._clean()
        x = self.process.prior(torch.zeros_like(clean), table, noise)
        estimates = (torch.zeros_like(x),) if self.model.self_conditioning else ()
        state = SamplerState(x, torch.zeros_like(self.block), noise, table, estimates)
        return replace(state, x=_where(self._given(), self.process.encode(clean, table), x))

    def _start(self, rows: Bool[Tensor, "B"]) -> None:
        """Go on with the next block in these rows."""
        self.block = self.block + rows.long()
        self.taking_in = self.taking_in & ~rows
        fresh, old = self._fresh(), self.state
        estimates = tuple(_where(rows, a, b) for a, b in zip(fresh.estimates, old.estimates, strict=True))
        index, x = torch.where(rows, fresh.index, old.index), _where(rows, fresh.x, old.x)
        self.state = replace(fresh, x=x, index=index, estimates=estimates)

    def _named(self, rows: Bool[Tensor, "B"]) -> Bool[Tensor, "B"] | None:
        """The rows as the caches want them: None for all of them."""
        return None if bool(rows.all()) else rows

    def _denoise(self) -> None:
        """One step in the rows that denoise, or the drawing of tokens after the last one; others are taken in."""
        state, given, clean = self.state, self._given(), self._clean()
        ended, active = self.sampler.ended(state), ~(self.done | self.taking_in)
        said: list[Readout] = []
        use = self._use()

        def predict(state: SamplerState, t: Times) -> Guess:
            self.calls = self.calls + ~self.done
            said.append(self._network(state, torch.where(ended.unsqueeze(1), 0.0, t), use, clean, given))
            estimates = () if not state.estimates else (said[-1].estimate(state.table).to(state.x.dtype),)
            return Guess(said[-1], estimates)

        after = self.sampler.step(replace(state, index=state.index.masked_fill(ended, 0)), predict)
        if isinstance(use, Committing):
            self.cache = use.result(self.size)
        stepped = active & ~ended
        x = _where(given, self.process.encode(clean, state.table), _where(stepped, after.x, state.x))
        estimates = tuple(_where(stepped, a, b) for a, b in zip(after.estimates, state.estimates, strict=True))
        self.state = replace(state, x=x, index=torch.where(stepped, after.index, state.index), estimates=estimates)
        finished = stepped & self.process.holds_tokens(x, self.sampler.times(self.state)[0])
        drawn = active & ended
        tokens = clean if x.is_floating_point() else x
        if bool(drawn.any()):
            tokens = _where(drawn, self.process.decode(x, said[-1], state.noise.at(state.index)), tokens)
        self._finish(finished | drawn, tokens.where(~given, clean))

    def _use(self) -> CacheUse:
        """Look at the cache, and take in what is to be taken in."""
        if not bool(self.taking_in.any()):
            return Denoising(cache=self.cache)
        return Committing(cache=self.cache, rows=self.taking_in)

    def _network(self, state: SamplerState, t: Times, use: CacheUse, clean: Tokens, given: Given) -> Readout:
        """What the model says of the active blocks; those that are taken in it sees clean, and nothing else."""
        taken = self.taking_in
        x = _where(taken, self.process.encode(clean, state.table), state.x)
        level = self.process.noise_level(t).masked_fill(taken.unsqueeze(1), 0.0)
        estimate = _where(taken, torch.zeros_like(x), state.estimates[0]) if state.estimates else None
        marked = given & ~taken.unsqueeze(1) if self.prompted else None
        return self.model(Noisy(x, level, marked, estimate, cache=use))

    def _finish(self, rows: Bool[Tensor, "B"], tokens: Tokens) -> None:
        """Write finished blocks down; a row with its end in it, or at the text's length, is done."""
        place = self._place()
        self.tokens = self.tokens.scatter(1, place, _where(rows, tokens, self.tokens.gather(1, place)))
        if self.stop is not None:
            stops = (tokens == self.stop) & (place >= self.known.unsqueeze(1)) & rows.unsqueeze(1)
            first = place.masked_fill(~stops, self.length).amin(1)
            self.ends = torch.minimum(self.ends, first)
        over = rows & ((place[:, -1] + 1 >= self.length) | (self.ends < self.length))
        self.done, self.taking_in = self.done | over, self.taking_in | (rows & ~over)


def _where(rows: Bool[Tensor, "B *n"], a: State, b: State) -> State:
    """torch.where of rows, or of positions, of states."""
    return torch.where(rows.view(*rows.shape, *(1,) * (a.dim() - rows.dim())), a, b)
