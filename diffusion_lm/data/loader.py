"""PyTorch's loader over a reader of sequences: whole batches, read in other processes; damage is told by this one."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from diffusion_lm.data.reader import DamagedData, TokenReader
from diffusion_lm.data.segments import segments
from diffusion_lm.errors import RunError, UserError

REFUSED, SKIPPED = "refused", "skipped"


@dataclass(frozen=True, slots=True)
class BatchKeys:
    """What a batch is: positions [b] and the sequences [b] that stand there; soon: a sequence of each shard that is
    wanted next, where that changed."""

    positions: np.ndarray
    indices: np.ndarray
    soon: tuple[int, ...] = ()


class Rows:
    """A map-style dataset that is asked for whole batches; `ends` is the id that ends a document to be isolated."""

    def __init__(self, tokens: TokenReader, ends: int | None):
        self._tokens = tokens
        self._ends = ends

    def __getitems__(self, keys: BatchKeys) -> dict[str, Any]:
        if keys.soon:
            self._tokens.prefetch(keys.soon)
        try:
            found = self._tokens.read(keys.indices)
        except (RunError, UserError) as error:
            return {REFUSED: str(error)}  # an exception would bring the reading process's traceback along
        batch = {"tokens": torch.from_numpy(found.rows), "position": torch.from_numpy(keys.positions)}
        if self._ends is not None:
            batch["segment"] = torch.from_numpy(segments(found.rows, self._ends))
        return batch | ({SKIPPED: found.skipped} if found.skipped else {})


class Loader(DataLoader):
    """Batches without what they say of damage: that is raised, or handed to `skipped` as {sequence: what was wrong}."""

    def __init__(self, *arguments: Any, skipped: Callable[[Mapping[int, str]], None], **options: Any):
        super().__init__(*arguments, **options)
        self._skipped = skipped

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in super().__iter__():
            if REFUSED in batch:
                raise DamagedData(batch[REFUSED])
            self._skipped(batch.pop(SKIPPED, {}))
            yield batch


def make_loader(
    tokens: TokenReader,
    batches: Iterable[BatchKeys],
    *,
    ends: int | None,
    seed: int,
    workers: int,
    skipped: Callable[[Mapping[int, str]], None],
) -> Loader:
    """A loader of `batches`, in their order."""
    return Loader(
        Rows(tokens, ends),
        skipped=skipped,
        batch_sampler=batches,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_the_trainer,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # else each new iterator draws from the global one
    )


def _as_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to the whole process group must not end the readers before the trainer has written its checkpoint.

    The second SIGTERM does: it may be the trainer's own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
