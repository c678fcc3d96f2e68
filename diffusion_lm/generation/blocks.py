"""Generation in blocks: a block is denoised beside the cache of the text before it, then taken into it, and so on.

Rows are on their own: each has its block, its place in the time grid of that block, and its end. A pass of the network
serves all of them at once: in some rows it denoises, in others it takes the finished block in, clean, at noise level 0
(`mixers/base.py`: a block's outputs are the same either way). So no row waits for another, and none knows of another:
noise is a function of (seed, row, block, step). Under absorbing noise a block is finished as soon as no mask is left,
and steps in which none would go are left out: the texts are those of the whole grid of times.

`num_steps` is that of every block. (Block diffusion: Arriola et al., arXiv 2503.09573, algorithm 2.)
"""

from dataclasses import replace

import torch

from diffusion_lm.cache import Cache, CacheUse, Committing, Denoising
from diffusion_lm.errors import UserError
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Readout
from diffusion_lm.samplers.base import Guess, Sample, Sampler, SamplerState
from diffusion_lm.shapes import Bool, Given, Int, State, Tensor, Times, Tokens


@torch.no_grad()
def generate_blocks(
    sampler: Sampler,
    model: DenoisingModel,
    noise: Noise,
    length: int,
    block_size: int,
    prompt: Tokens | None = None,
    given: Given | None = None,
    end: int | None = None,
) -> Sample:
    """Draw one text of `length` tokens per row key of `noise`, block by block; the last block is cut.

    prompt [B, L] holds the tokens of the given positions `given` [B, L], whose number may differ from row to row; whole
    blocks of them at the start are taken in at once. end: an id that ends the row that draws it; the other rows go on.
    Raises `UserError` for what has no meaning in blocks.
    """
    for name, value in (("length", length), ("block_size", block_size)):
        if value < 1:
            raise UserError(f"{name}: got {value}, expected at least 1")
    if sampler.config.guidance:
        raise UserError(f"guidance: got {sampler.config.guidance}, but it has no meaning in blocks yet; set it to 0")
    rows = Rows(sampler, model, noise, length, block_size, end)
    rows.begin(prompt, given)
    while not bool(rows.done.all()):
        rows.advance()
    tokens = rows.tokens[:, :length]
    if end is None:
        return Sample(tokens, rows.calls, None, rows.cache.nbytes())
    written = torch.arange(length, device=tokens.device) < rows.lengths.unsqueeze(1)
    return Sample(tokens.where(written, end), rows.calls, rows.lengths, rows.cache.nbytes())


class Rows:
    """The rows of a batch on their ways.

    tokens: the texts, whole blocks of them; given: what of them the prompt has filled. [B, T]
    block: the active one; taking_in: it is finished, and the next pass takes it in; done: nothing is left to do;
    lengths: tokens before the end; calls: passes that a row had a use for. [B]
    state: the sampler's, of the active blocks; cache: of the blocks before them.
    """

    def __init__(
        self,
        sampler: Sampler,
        model: DenoisingModel,
        noise: Noise,
        length: int,
        block_size: int,
        end: int | None,
    ) -> None:
        self.sampler, self.model, self.process = sampler, model, model.process
        self.noise, self.length, self.size, self.end = noise, length, block_size, end
        position = noise.position
        self.tokens = position.new_zeros(len(position), -(-length // block_size) * block_size)
        self.given = torch.zeros_like(self.tokens, dtype=torch.bool)
        self.cache, self.prompted = Cache.empty(len(position), position.device), False
        self.block = self.calls = torch.zeros_like(position)
        self.taking_in = self.done = torch.zeros_like(position, dtype=torch.bool)
        self.lengths = torch.full_like(position, length)

    def begin(self, prompt: Tokens | None, given: Given | None) -> None:
        """Put the prompts in place and their whole blocks into the cache; start the first blocks."""
        if prompt is not None and given is not None:
            self.prompted = True
            self.tokens[:, : self.length] = prompt.where(given, 0)
            self.given[:, : self.length] = given
            known = self.given.cumprod(1).sum(1).clamp(max=self.length - 1)  # something is left to be written
            whole = int(known.max()) // self.size * self.size
            if whole:
                self.cache = self.model.prefill(self.tokens[:, :whole], known, self.size)
            self.block = known // self.size
            self.calls = (self.block > 0).long()
        self.state = self._fresh()
        self._finish(self._shown().all(1), self._clean())

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

    def _place(self) -> Int[Tensor, "B S"]:
        """Places in the text of the active blocks' positions."""
        return self.block.unsqueeze(1) * self.size + torch.arange(self.size, device=self.block.device)

    def _clean(self) -> Tokens:
        """What is known of the active blocks: the prompt's tokens; of a finished block all."""
        return self.tokens.gather(1, self._place())

    def _shown(self) -> Given:
        """Positions of the active blocks that the prompt has filled."""
        return self.given.gather(1, self._place())

    def _fresh(self) -> SamplerState:
        """The active blocks at t = 1; keys of noise: a row's own, and its block above the low 32 bits."""
        noise = replace(self.noise, position=self.noise.position + (self.block << 32))
        table, clean = self.model.table(), self._clean()
        x = self.process.prior(torch.zeros_like(clean), table, noise)
        estimates = (torch.zeros_like(x),) if self.model.self_conditioning else ()
        state = SamplerState(x, torch.zeros_like(self.block), noise, table, estimates)
        return replace(state, x=_where(self._shown(), self.process.encode(clean, table), x))

    def _start(self, rows: Bool[Tensor, "B"]) -> None:
        """Go on with the next block in these rows."""
        self.block = self.block + rows.long()
        self.taking_in = self.taking_in & ~rows
        fresh, old = self._fresh(), self.state
        estimates = tuple(_where(rows, a, b) for a, b in zip(fresh.estimates, old.estimates, strict=True))
        index, x = torch.where(rows, fresh.index, old.index), _where(rows, fresh.x, old.x)
        self.state = replace(fresh, x=x, index=index, estimates=estimates)
        self._finish(rows & self._shown().all(1), self._clean())

    def _named(self, rows: Bool[Tensor, "B"]) -> Bool[Tensor, "B"] | None:
        """The rows as the caches want them: None for all of them."""
        return None if bool(rows.all()) else rows

    def _denoise(self) -> None:
        """One step in the rows that denoise, or the drawing of tokens after the last one; others are taken in."""
        state, given, clean = self.sampler.ahead(self.state), self._shown(), self._clean()
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
        if self.end is not None:
            ends = (tokens == self.end) & ~self._shown() & rows.unsqueeze(1)
            self.lengths = torch.minimum(self.lengths, place.masked_fill(~ends, self.length).amin(1))
        over = rows & ((place[:, -1] + 1 >= self.length) | (self.lengths < self.length))
        self.done, self.taking_in = self.done | over, self.taking_in | (rows & ~over)


def _where(rows: Bool[Tensor, "B *n"], a: State, b: State) -> State:
    """torch.where of rows, or of positions, of states."""
    return torch.where(rows.view(*rows.shape, *(1,) * (a.dim() - rows.dim())), a, b)
