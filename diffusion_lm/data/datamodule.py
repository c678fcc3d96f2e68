"""Shards to batches, for Lightning: an endless training loader that starts where the optimiser stands, and a fixed
validation set. The only state is the optimiser's step."""

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import lightning
import numpy as np
from torch.utils.data import DataLoader

from diffusion_lm.data.info import TokenDataConfig, data_facts
from diffusion_lm.data.loader import BatchKeys, make_loader
from diffusion_lm.data.open import open_order, open_tokens
from diffusion_lm.data.order import Order, spread_evenly
from diffusion_lm.data.reader import TokenReader
from diffusion_lm.data.segments import document_ends
from diffusion_lm.errors import UserError


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Forward passes per optimiser step on each of `world_size` devices. Raises `UserError` when not a whole number."""
    if global_batch < 1 or micro_batch < 1:
        raise UserError(f"global batch {global_batch} and micro-batch {micro_batch} must be 1 or more")
    steps, rest = divmod(global_batch, micro_batch * world_size)
    if rest or not steps:
        raise UserError(
            f"global batch {global_batch} cannot be cut into micro-batches: it must be a multiple of "
            f"devices x micro-batch = {world_size} x {micro_batch} = {world_size * micro_batch}"
        )
    return steps


def check_batches(state: Mapping[str, Any], new: int) -> None:
    """Refuse, by `UserError`, to go on from a data module's `state` with a global batch of `new` sequences."""
    old, consumed = state["global_batch"], state["consumed"]
    if (old % new and new % old) or consumed % new:
        raise UserError(
            f"data: the checkpoint was trained with a batch of {old} sequences and has consumed {consumed}, this run "
            f"has one of {new}; expected a multiple or a divisor of {old} that divides {consumed}"
        )


def open_split(config: TokenDataConfig, split: str) -> TokenReader:
    """The sequences of a split. Raises `UserError` when a shard is missing or cut, or there is no sequence."""
    tokens = open_tokens(config, split)
    if not len(tokens):
        raise UserError(f"{tokens.info.path}: no {split} sequences; make shards with another --val-fraction")
    return tokens


class TokenDataModule(lightning.LightningDataModule):
    """Batches ``{"tokens": int64 [b, L], "position": int64 [b]}`` with b = `micro_batch`; where documents are isolated
    also ``"segment": int64 [b, L]``, the document of each position, counted from 1.

    `global_batch` is the number of sequences per optimiser step over all devices. Optimiser step k uses the positions
    k * global_batch .. (k + 1) * global_batch - 1 of the training order; rank r of W takes the r-th W-th of them. In
    validation, position is the sequence's index in the split. Needs a Trainer with `use_distributed_sampler=False`;
    without a Trainer it serves rank 0 of 1 from step 0. `start_position` overrides where training starts.

    A checkpoint keeps how many sequences were consumed; it goes on with any number of devices and reading processes,
    and with another `global_batch` where one of the two is a multiple of the other and what was consumed is whole
    batches of the new one. `skipped` has the sequences that were left out for damage, by split and index.
    Raises `UserError` when the dataset is not what `config` says, or the batches cannot be cut as asked.
    """

    def __init__(self, config: TokenDataConfig, *, seed: int, global_batch: int, micro_batch: int):
        super().__init__()
        accumulation_steps(global_batch, micro_batch, 1)
        if seed < 0:
            raise UserError(f"seed {seed} must be 0 or more")
        self.config = config
        self.info = data_facts(config)
        self.ends = document_ends(config, self.info)
        self.seed = seed
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.start_position: int | None = None
        self.skipped: dict[tuple[str, int], str] = {}
        self._resumed = (0, 0)  # the optimiser's step, and the sequences that were consumed by then

    def train_dataloader(self) -> DataLoader:
        """Endless; has no length, so that Lightning counts steps only."""
        rank, world_size = self._place()
        accumulation_steps(self.global_batch, self.micro_batch, world_size)
        tokens = open_split(self.config, "train")
        order = open_order(self.config, tokens, self.seed)
        return self._loader(tokens, _TrainBatches(self, order, rank, world_size))

    def val_dataloader(self) -> DataLoader:
        """The same sequences in the same order at every call. With several ranks, rank r gets every W-th from r on;
        up to W - 1 of the last are left out so that all ranks have equally many, none twice."""
        rank, world_size = self._place()
        tokens = open_split(self.config, "val")
        n = len(tokens)
        count = min(self.config.val_sequences or n, n)
        chosen = spread_evenly(count, n)
        mine = chosen[rank::world_size][: count // world_size]
        if not len(mine):
            raise UserError(f"{tokens.info.path}: {count} validation sequences are too few for {world_size} devices")
        parts = [mine[i : i + self.micro_batch] for i in range(0, len(mine), self.micro_batch)]
        return self._loader(tokens, [BatchKeys(part, part) for part in parts])

    @property
    def position(self) -> int:
        """Where in the training order the next optimiser step begins."""
        if self.start_position is not None:
            return self.start_position
        step, consumed = self._resumed
        return consumed + ((self.trainer.global_step if self.trainer else 0) - step) * self.global_batch

    def state_dict(self) -> dict:
        """What was consumed, at which step, and what a checkpoint needs in order to refuse another order."""
        step = self.trainer.global_step if self.trainer else 0
        return {**self._identity(), "global_batch": self.global_batch, "consumed": self.position, "step": step}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was made. Raise `UserError` when it is of another corpus, seed or order, or when its
        place does not lie between two of this run's global batches."""
        for name, expected in self._identity().items():
            if state.get(name, expected) != expected:
                raise UserError(
                    f"data: the checkpoint was trained with {name}={state[name]}, this run has {name}={expected}; "
                    "resuming would repeat or leave out sequences: start another run"
                )
        check_batches(state, self.global_batch)
        self._resumed = (state.get("step", state["consumed"] // state["global_batch"]), state["consumed"])

    def teardown(self, stage: str) -> None:
        """Tell how many sequences were left out."""
        if self.skipped:
            print(f"data: {len(self.skipped)} damaged sequences were left out on this device", file=sys.stderr)

    def _identity(self) -> dict:
        blocks = f"blocks of {self.config.block_shards} shards"
        order = blocks if self.config.shuffle == "blocks" else self.config.shuffle
        return {"corpus_hash": self.info.corpus_hash, "seed": self.seed, "order": order}

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _note(self, split: str, skipped: Mapping[int, str]) -> None:
        for index, why in skipped.items():
            if (split, index) not in self.skipped:
                self.skipped[split, index] = why
                print(f"data: left out {why}", file=sys.stderr, flush=True)
        logger = getattr(self.trainer, "logger", None)
        if skipped and logger is not None:
            logger.log_metrics({"data/skipped_sequences": len(self.skipped)}, self.trainer.global_step)

    def _loader(self, tokens: TokenReader, batches) -> DataLoader:
        return make_loader(
            tokens, batches, ends=self.ends, seed=self.seed, workers=self.config.num_workers,
            skipped=partial(self._note, tokens.split),
        )  # fmt: skip


class _TrainBatches:
    """The keys of one rank's micro-batches, for ever. No `__len__`. PyTorch hands whole batches to its reading
    processes in turn and returns them in order, so their number changes nothing."""

    def __init__(self, module: TokenDataModule, order: Order, rank: int, world_size: int):
        self._module = module
        self._rank = rank
        self._per_rank = module.global_batch // world_size
        self._order = order

    def __iter__(self) -> Iterator[BatchKeys]:
        micro, told = self._module.micro_batch, ()
        # asked at each new iteration, not at construction: Lightning restores the step in between
        first = self._module.position + self._rank * self._per_rank
        while True:
            for start in range(first, first + self._per_rank, micro):
                positions = np.arange(start, start + micro)
                soon = tuple(self._order.soon(start))
                yield BatchKeys(positions, self._order.indices_at(positions), soon if soon != told else ())
                told = soon
            first += self._module.global_batch
