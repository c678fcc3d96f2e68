"""The denoising model: embed the state, run the denoiser, read out logits or, for the readout `vector`, x_0_hat itself.

Discrete states look their embedding up; Gaussian states are vectors already and are projected to the trunk's width. A
Gaussian model's token table has rows of norm sqrt(D), so that the schedule's signal-to-noise ratio means something and
the embeddings cannot collapse; its logits start from the token evidence that the noisy vector itself carries.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from diffusion_lm.blocks import fold
from diffusion_lm.cache import Cache, CacheUse, Committing, Denoising, Prefilling, Reading
from diffusion_lm.config import build, name_of, part_class
from diffusion_lm.denoisers.base import Denoiser
from diffusion_lm.layers.documents import begins
from diffusion_lm.layers.norm import NORMS
from diffusion_lm.layers.row_cross_entropy import row_cross_entropy
from diffusion_lm.noisy import Noisy
from diffusion_lm.precision import wide
from diffusion_lm.processes.base import Process
from diffusion_lm.readouts import READOUTS, Readout
from diffusion_lm.shapes import Bool, Float, Hidden, Int, Logits, Tensor, Tokens


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    d_model: int = 256
    """Width of the residual stream, the same for every denoiser."""
    token_std: float = 0.02
    """Ids: standard deviation of the token vectors at the start."""
    embedding_dim: int = 16
    """Dimensions D of a Gaussian process's token embeddings."""
    normalise_embeddings: bool = True
    """Gaussian: token vectors of norm sqrt(D); free ones start near it and may shrink together."""
    output_prior: bool = True
    """Gaussian: add ln q(x_t | token) to the logits, if the readout has any (Plaid, arXiv 2305.18619, section 3.3)."""
    local_estimate: bool = True
    """Gaussian: show the trunk, beside x_t, what x_t alone says of x_0: softmax(ln q(x_t | token) + bias) @ table."""
    self_conditioning: float = 0.0
    """Gaussian: share of the training rows that see the model's own first estimate of x_0; above 0 the bound and the
    samplers always show it one (`self_conditioning`)."""
    pad_vocabulary_to: int = 8
    """Logits are padded to a multiple of this; the padding has probability 0."""
    tie_head: bool = False
    """The head's matrix is the token table: logits = h E^T + bias. Gaussian: (W h) E^T + bias, from vectors of D."""

    def __post_init__(self) -> None:
        for name in ("d_model", "embedding_dim", "pad_vocabulary_to"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.token_std < math.inf:
            raise ValueError(f"token_std: got {self.token_std}, expected a positive number")
        if not 0 <= self.self_conditioning < 1:
            raise ValueError(
                f"self_conditioning: got {self.self_conditioning}, expected 0 or more and less than 1: the rows that "
                "see no estimate train the network to make the first one"
            )

    def unused(self, experiment: Any) -> dict[str, str]:
        """Keys of Gaussian models, where the states are ids; the prior of logits, where there are none."""
        if part_class(experiment.process).discrete:
            why = f"the states of process '{name_of(experiment.process)}' are ids; it is a key of Gaussian models"
            names = ("embedding_dim", "normalise_embeddings", "output_prior", "local_estimate")
            return {f"model.{name}": why for name in names}
        process = name_of(experiment.process)
        dead = {"model.token_std": f"process '{process}' starts with token vectors of norm sqrt(embedding_dim)"}
        if not READOUTS[part_class(experiment.objective).readout].over_tokens:
            dead["model.output_prior"] = f"the last layer of objective '{name_of(experiment.objective)}' has no logits"
        return dead

    def check_readout(self, readout: str) -> None:
        """Refuse a tied head where there is no output per token to tie."""
        if self.tie_head and not READOUTS[readout].over_tokens:
            raise ValueError(
                f"model.tie_head: got true with readout '{readout}', whose last layer is x_0_hat and has no output per "
                "token; expected false, or an objective over tokens (objective=gaussian)"
            )


def padded(symbols: int, multiple: int) -> int:
    """`symbols` rounded up to a multiple."""
    return -(-symbols // multiple) * multiple


class TokenLookup(nn.Module):
    """Discrete states: ids to vectors of the trunk's width. They carry no evidence beyond themselves."""

    def __init__(self, config: ModelConfig, process: Process) -> None:
        super().__init__()
        self.symbols = process.symbols
        rows = padded(process.symbols, config.pad_vocabulary_to) if config.tie_head else process.symbols
        self.weight = nn.Parameter(torch.randn(rows, config.d_model) * config.token_std)
        self.begin = process.mask_id if process.shifted else None

    def table(self) -> Float[Tensor, "V D"]:
        """The vectors."""
        return self.weight[: self.symbols]

    def forward(self, noisy: Noisy, bias: Float[Tensor, "V"]) -> tuple[Hidden, None]:
        """The trunk's input and no evidence."""
        ids = noisy.x
        if self.begin is not None:
            ids = nn.functional.pad(ids[:, :-1], (1, 0), value=self.begin)
            if noisy.segment is not None:  # the last token of the document before says nothing about this one
                ids = ids.masked_fill(begins(noisy.segment), self.begin)
        return self.look_up(ids), None

    def look_up(self, ids: Tokens) -> Hidden:
        """Their vectors."""
        return nn.functional.embedding(ids, self.weight)


class TokenVectors(nn.Module):
    """Gaussian states: a token table, with rows of norm sqrt(D) or free, and the vectors' way into the trunk."""

    def __init__(self, config: ModelConfig, process: Process) -> None:
        super().__init__()
        self.config, self.process = config, process
        self.weight = nn.Parameter(torch.randn(process.symbols, config.embedding_dim))
        self.project = nn.Linear((2 if config.local_estimate else 1) * config.embedding_dim, config.d_model)
        conditioned = config.embedding_dim if config.self_conditioning else 0
        self.own_estimate = nn.Parameter(torch.zeros(conditioned, config.d_model)) if conditioned else None

    def table(self) -> Float[Tensor, "V D"]:
        """The vectors, float32 or better."""
        if not self.config.normalise_embeddings:
            return wide(self.weight)
        return nn.functional.normalize(wide(self.weight), dim=1) * math.sqrt(self.weight.shape[1])

    def forward(self, noisy: Noisy, bias: Float[Tensor, "V"]) -> tuple[Hidden, Logits]:
        """The trunk's input, and ln q(x_t | token) up to a constant [B, L, V]. `bias` is the head's: token log-odds."""
        table = self.table()
        level = noisy.noise_level if noisy.given is None else noisy.noise_level.where(~noisy.given, 0.0)
        evidence = self.process.token_evidence(noisy.x, level, table)
        state = noisy.x
        if self.config.local_estimate:
            local = torch.softmax(evidence + wide(bias), -1) @ table
            state = torch.cat((state, local.to(state.dtype)), -1)
        hidden = wide(self.project(state))
        if self.own_estimate is None:
            return hidden, evidence
        estimate = torch.zeros_like(noisy.x) if noisy.self_condition is None else noisy.self_condition
        return hidden + estimate @ self.own_estimate, evidence


class Head(nn.Module):
    """The last layer's kernel and bias, zero at the start.

    Outputs are logits or x_0_hat, or, for the tied head of a Gaussian state, a vector that is compared with the token
    table. The tied kernel of a discrete state is the token table itself.
    """

    def __init__(self, config: ModelConfig, process: Process, readout: str) -> None:
        super().__init__()
        outputs = head_outputs(config, process, readout)
        self.to_vectors = config.tie_head and not process.discrete
        rows = config.embedding_dim if self.to_vectors else outputs
        self.weight = nn.Parameter(torch.zeros(rows, config.d_model))
        self.bias = nn.Parameter(torch.zeros(outputs))


class DenoisingModel(nn.Module):
    """What objectives and samplers see: `Noisy` in, a readout's prediction out."""

    self_conditioning: float = 0.0
    """Share of the training rows that see an estimate of the model's own; 0: it is never shown one."""

    def __init__(self, config: ModelConfig, denoiser: Any, process: Process, readout: str = "posterior") -> None:
        super().__init__()
        config.check_readout(readout)
        self.readout = READOUTS[readout]
        self.config = config
        self.self_conditioning = config.self_conditioning
        self.process = process
        self.vocabulary = process.vocabulary
        self.embed = (TokenLookup if process.discrete else TokenVectors)(config, process)
        self.given = nn.Parameter(torch.zeros(config.d_model))
        self.denoiser: Denoiser = build(denoiser, config.d_model)
        self.norm = nn.Identity() if self.denoiser.normalises else NORMS[denoiser.norm](config.d_model)
        self.head = Head(config, process, readout)
        if config.tie_head and process.discrete:
            self.head.weight = self.embed.weight

    def table(self) -> Float[Tensor, "V D"]:
        """The token embeddings, handed to the process."""
        return self.embed.table()

    def forward(self, noisy: Noisy) -> Readout:
        hidden, evidence = self._trunk(noisy)
        logits = self._read_out(self.norm(hidden))
        if not self.readout.over_tokens:
            return self.readout(logits, self.table())
        if self.config.output_prior and evidence is not None:
            logits = logits + nn.functional.pad(evidence, (0, logits.shape[-1] - evidence.shape[-1]))
        return self._of_tokens(logits)

    def _of_tokens(self, logits: Logits) -> Readout:
        """The readout of logits, in which the mask id and padding are impossible."""
        allowed = torch.arange(logits.shape[-1], device=logits.device) < self.vocabulary
        return self.readout(logits.masked_fill(~allowed, -torch.inf))

    def weighted_cross_entropy(
        self, noisy: Noisy, tokens: Tokens, weight: Float[Tensor, "B L"], rows: Int[Tensor, "R"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "B L"]]:
        """sum of weight * -ln p(token), and -ln p(token) without gradient, 0 outside `rows`; of scores their loss.

        rows: flat places of the positions with a weight, -1 where there is none (see `Corrupted`). The norm, the head
        and the softmax run on them alone. The readout is a `posterior`, or a `score` at masked positions, and the state
        has no evidence to add.
        """
        hidden, evidence = self._trunk(noisy)
        if evidence is not None:
            raise TypeError("weighted_cross_entropy: a Gaussian state's evidence belongs to the logits; call the model")
        scored, places = rows >= 0, rows.clamp(min=0)
        hidden = self.norm(hidden.flatten(0, 1).index_select(0, places))
        loss, losses = row_cross_entropy(
            hidden.to(self._head_precision(hidden)),
            self.head,
            tokens.flatten().index_select(0, places),
            weight.flatten().index_select(0, places) * scored,
            self.vocabulary,
            self.readout.normalised,
        )
        # the fills go to a place of their own behind the last position
        everywhere = losses.new_zeros(tokens.numel() + 1).scatter(0, rows.where(scored, tokens.numel()), losses)
        return loss, everywhere[:-1].view(tokens.shape)

    def _trunk(self, noisy: Noisy) -> tuple[Hidden, Logits | None]:
        """What the denoiser says, before the last norm, and the state's own evidence of its tokens."""
        hidden, evidence = self._embedded(noisy)
        if noisy.answer is not None:
            clean = replace(noisy, x=noisy.answer, noise_level=torch.zeros_like(noisy.noise_level))
            noisy = replace(noisy, answer=self._embedded(clean)[0])
        if noisy.given is not None and not self.process.shifted:  # there every prefix is a prompt
            hidden = hidden + noisy.given.unsqueeze(-1) * self.given
        if noisy.blocks is None:
            return self.denoiser(hidden, noisy), evidence
        clean = self._clean(noisy.blocks.tokens)
        both = self.denoiser(torch.cat((clean, hidden)), _beside_clean(noisy))
        return both[len(clean) :], evidence

    def _embedded(self, noisy: Noisy) -> tuple[Hidden, Logits | None]:
        """The trunk's input, and the state's evidence; the head's bias tells how frequent tokens are."""
        bias = self.head.bias if self.readout.over_tokens else self.head.bias.new_zeros(self.vocabulary)
        return self.embed(noisy, bias[: self.vocabulary])

    def _clean(self, tokens: Tokens) -> Hidden:
        """The trunk's input for clean tokens, at noise level 0."""
        return self._embedded(Noisy(self.process.encode(tokens, self.table()), _clean_level(tokens)))[0]

    def prefill(self, tokens: Tokens, lengths: Int[Tensor, "B"], block_size: int) -> Cache:
        """The cache of the first `lengths` tokens of some texts, whole blocks of them, in one pass. [B, T]"""
        rows, keep = fold(tokens, block_size), lengths // block_size
        use = Prefilling(count=tokens.shape[1] // block_size, keep=keep)
        self._take_in(rows, use)
        return use.result(block_size)

    def commit(self, block: Tokens, cache: Cache, rows: Bool[Tensor, "B"] | None = None) -> Cache:
        """The cache with a clean block [B, S] in the rows that are named (None: in all of them)."""
        use = Committing(cache=cache, rows=rows)
        self._take_in(block, use)
        return use.result(block.shape[1])

    def denoise(self, block: Noisy, cache: Cache) -> Readout:
        """What is said of a noisy block that follows what is cached. The cache stays as it is."""
        return self(replace(block, cache=Denoising(cache=cache)))

    def read(self, inputs: Tokens, lengths: Int[Tensor, "B"]) -> tuple[Readout, Cache]:
        """What a next-token model says of the token after the first `lengths` inputs of each text [B, 1, V], and the
        cache with those, in one pass. inputs: as `advance` has them, at least one of every text."""
        use, rows = Reading(keep=lengths), torch.arange(len(inputs), device=inputs.device)
        hidden = self._of_inputs(inputs, use)[rows, lengths - 1].unsqueeze(1)
        return self._of_tokens(self._read_out(self.norm(hidden))), use.result()

    def advance(self, inputs: Tokens, cache: Cache, rows: Bool[Tensor, "B"] | None = None) -> tuple[Readout, Cache]:
        """What a next-token model says of the token after its last input [B, 1, V], and the cache with all of them, in
        the rows that are named (None: in all of them).

        inputs: as they are, not shifted; those of a text are `process.mask_id`, which begins it, and its tokens.
        """
        use = Committing(cache=cache, rows=rows)
        hidden = self._of_inputs(inputs, use)[:, -1:]
        return self._of_tokens(self._read_out(self.norm(hidden))), use.result(inputs.shape[1])

    def _of_inputs(self, inputs: Tokens, use: CacheUse) -> Hidden:
        return self.denoiser(self.embed.look_up(inputs), Noisy(inputs, _clean_level(inputs), cache=use))

    def _take_in(self, tokens: Tokens, use: CacheUse) -> None:
        self.denoiser(self._clean(tokens), Noisy(tokens, _clean_level(tokens), cache=use))

    def _read_out(self, hidden: Hidden) -> Logits:
        """Logits, float32 or better."""
        precision = self._head_precision(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            kernel, bias = self.head.weight.to(precision), self.head.bias.to(precision)
            hidden = hidden.to(precision)
            if self.head.to_vectors:
                table = self.table().to(precision)
                hidden = nn.functional.linear(hidden, kernel)
                kernel = nn.functional.pad(table, (0, 0, 0, len(bias) - len(table)))
            logits = nn.functional.linear(hidden, kernel, bias)
        return logits.to(torch.promote_types(precision, torch.float32))

    def _head_precision(self, hidden: Float[Tensor, "*n D"]) -> torch.dtype:
        """Of the head's products: the network's in training; outside it the head's own, whatever the network's."""
        device = hidden.device.type
        narrow = self.training and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if narrow else self.head.weight.dtype

    def count(self) -> dict[str, int]:
        """Parameters of the network, without a learned schedule's: total, embedding (token table, its projection and
        head), non_embedding."""
        learned = {id(p) for p in self.process.parameters()}
        total = sum(p.numel() for p in self.parameters() if id(p) not in learned)
        sides = {id(p): p for part in (self.embed, self.head) for p in part.parameters() if id(p) not in learned}
        outside = sum(p.numel() for p in sides.values())
        return {"total": total, "embedding": outside, "non_embedding": total - outside}


def _clean_level(tokens: Tokens) -> Float[Tensor, "B 1"]:
    """Noise level 0 of every row."""
    return torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)


def _beside_clean(noisy: Noisy) -> Noisy:
    """What the trunk is told of clean rows, at noise level 0, followed by as many noisy ones."""
    level, given = noisy.noise_level, noisy.given
    level = torch.cat((torch.zeros_like(level), level))
    given = None if given is None else torch.cat((torch.zeros_like(given), given))
    return Noisy(torch.cat((noisy.x, noisy.x)), level, given, blocks=noisy.blocks)


def head_outputs(config: ModelConfig, process: Process, readout: str) -> int:
    """Outputs of the last layer: padded logits, or x_0_hat."""
    return (
        padded(process.symbols, config.pad_vocabulary_to)
        if READOUTS[readout].over_tokens
        else config.embedding_dim
    )


def embedding_parameters(config: ModelConfig, process: Process, readout: str = "posterior") -> int:
    """Parameters of the token table, its projection and the head, as `DenoisingModel.count` finds them."""
    outputs = head_outputs(config, process, readout)
    if process.discrete:
        return outputs + (outputs + (0 if config.tie_head else process.symbols)) * config.d_model
    head = outputs + (config.embedding_dim if config.tie_head else outputs) * config.d_model
    return head + process.symbols * config.embedding_dim + (_state_width(config) + 1) * config.d_model


def model_parameters(config: ModelConfig, denoiser: Any, process: Process, readout: str = "posterior") -> int:
    """All parameters, predicted from the configs: trunk, embedding side, marker of given positions, last norm."""
    vectors = 1 if part_class(denoiser).normalises else 2
    outside = embedding_parameters(config, process, readout) + vectors * config.d_model
    return denoiser.parameters(config.d_model) + outside


def model_flops_per_token(
    config: ModelConfig, denoiser: Any, process: Process, length: int, readout: str = "posterior", block_size: int = 0
) -> float:
    """Floating-point operations of a forward pass per position, in matrix products (a multiply-add is two).

    With blocks of a training step's pass: embedding and trunk also have the clean text, the head has not.
    """
    outputs = head_outputs(config, process, readout)
    vectors = config.embedding_dim if config.tie_head and not process.discrete else 0
    head = 2 * (vectors * (config.d_model + outputs) if vectors else config.d_model * outputs)
    flops = denoiser.flops_per_token(config.d_model, length, block_size) + head
    if process.discrete:
        return flops
    evidence = (2 if config.local_estimate else 1) * 2 * config.embedding_dim * process.symbols
    return flops + (2 if block_size else 1) * (2 * _state_width(config) * config.d_model + evidence)


def training_flops_per_token(
    config: ModelConfig, denoiser: Any, process: Process, length: int, readout: str = "posterior", block_size: int = 0
) -> float:
    """Of a training step: a forward pass, twice that for the gradients, and a forward pass of the rows that see an
    estimate of the model's own; with blocks, whose texts come whole, of all rows."""
    shown = float(config.self_conditioning > 0) if block_size else config.self_conditioning
    return (3 + shown) * model_flops_per_token(config, denoiser, process, length, readout, block_size)


def _state_width(config: ModelConfig) -> int:
    """Channels of a Gaussian state that are projected: x_t, the local estimate, the model's own."""
    return (1 + config.local_estimate + (config.self_conditioning > 0)) * config.embedding_dim
