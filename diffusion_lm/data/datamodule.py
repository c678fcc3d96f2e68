"""Shards to batches, for Lightning: an endless training loader that starts where the optimiser stands, and a fixed
validation set. The only state is the optimiser's step."""

import signal
from collections.abc import Iterator

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig, data_facts
from diffusion_lm.data.order import TrainingOrder, spread_evenly
from diffusion_lm.data.segments import document_ends, segments
from diffusion_lm.errors import UserError

Key = tuple[int, int]  # (position, index of the sequence in its split)


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


def open_split(config: TokenDataConfig, split: str) -> ShardedTokens:
    """The sequences of a split. Raises `UserError` when a shard is missing or cut, or there is no sequence."""
    tokens = ShardedTokens(config.path, split)
    if not len(tokens):
        raise UserError(f"{config.path}: no {split} sequences; make shards with another --val-fraction")
    return tokens


class TokenDataModule(lightning.LightningDataModule):
    """Batches ``{"tokens": int64 [b, L], "position": int64 [b]}`` with b = `micro_batch`; where documents are isolated
    also ``"segment": int64 [b, L]``, the document of each position, counted from 1.

    `global_batch` is the number of sequences per optimiser step over all devices. Optimiser step k uses the positions
    k * global_batch .. (k + 1) * global_batch - 1 of the training order; rank r of W takes the r-th W-th of them. In
    validation, position is the sequence's index in the split. Needs a Trainer with `use_distributed_sampler=False`;
    without a Trainer it serves rank 0 of 1 from step 0. `start_position` overrides where training starts.
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

    def train_dataloader(self) -> DataLoader:
        """Endless; has no length, so that Lightning counts steps only."""
        rank, world_size = self._place()
        accumulation_steps(self.global_batch, self.micro_batch, world_size)
        return self._loader("train", _TrainBatches(self, rank, world_size, len(open_split(self.config, "train"))))

    def val_dataloader(self) -> DataLoader:
        """The same sequences in the same order at every call. With several ranks, rank r gets every W-th from r on;
        up to W - 1 of the last are left out so that all ranks have equally many, none twice."""
        rank, world_size = self._place()
        n = len(open_split(self.config, "val"))
        count = min(self.config.val_sequences or n, n)
        chosen = spread_evenly(count, n)
        mine = chosen[rank::world_size][: count // world_size].tolist()
        if not mine:
            raise UserError(f"{self.config.path}: {count} validation sequences are too few for {world_size} devices")
        keys = [(index, index) for index in mine]
        batches = [keys[i : i + self.micro_batch] for i in range(0, len(keys), self.micro_batch)]
        return self._loader("val", batches)

    @property
    def position(self) -> int:
        """Where in the training order the next optimiser step begins."""
        if self.start_position is not None:
            return self.start_position
        return (self.trainer.global_step if self.trainer else 0) * self.global_batch

    def state_dict(self) -> dict:
        """What a checkpoint needs in order to refuse another order; the place itself follows from the step."""
        return {**self._identity(), "consumed": self.position}

    def load_state_dict(self, state: dict) -> None:
        """Raise `UserError` when the checkpoint was trained on another corpus, seed or global batch."""
        for name, expected in self._identity().items():
            if state[name] != expected:
                raise UserError(
                    f"data: the checkpoint was trained with {name}={state[name]}, this run has {name}={expected}; "
                    "resuming would repeat or leave out sequences: start another run"
                )

    def _identity(self) -> dict:
        return {"corpus_hash": self.info.corpus_hash, "seed": self.seed, "global_batch": self.global_batch}

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, batches) -> DataLoader:
        return DataLoader(
            _Rows(open_split(self.config, split), self.ends),
            batch_sampler=batches,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_the_trainer,
            num_workers=self.config.num_workers,
            persistent_workers=self.config.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each new iterator draws from the global one
        )


class _TrainBatches:
    """The keys of one rank's micro-batches, for ever. No `__len__`. PyTorch hands whole batches to its reading
    processes in turn and returns them in order, so their number changes nothing."""

    def __init__(self, module: TokenDataModule, rank: int, world_size: int, n: int):
        self._module = module
        self._rank = rank
        self._per_rank = module.global_batch // world_size
        self._order = TrainingOrder(n, module.seed)

    def __iter__(self) -> Iterator[list[Key]]:
        micro = self._module.micro_batch
        # asked at each new iteration, not at construction: Lightning restores the step in between
        first = self._module.position + self._rank * self._per_rank
        while True:
            for start in range(first, first + self._per_rank, micro):
                yield [(position, self._order.index_at(position)) for position in range(start, start + micro)]
            first += self._module.global_batch


class _Rows:
    """A map-style dataset that is asked for whole batches; `ends` is the id that ends a document to be isolated."""

    def __init__(self, tokens: ShardedTokens, ends: int | None):
        self._tokens = tokens
        self._ends = ends

    def __getitems__(self, keys: list[Key]) -> dict[str, torch.Tensor]:
        rows = np.stack([self._tokens[index] for _, index in keys])
        batch = {"tokens": torch.from_numpy(rows), "position": torch.tensor([position for position, _ in keys])}
        return batch if self._ends is None else batch | {"segment": torch.from_numpy(segments(rows, self._ends))}


def _as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to the whole process group must not end the readers before the trainer has written its checkpoint.

    The second SIGTERM does: it may be the trainer's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
