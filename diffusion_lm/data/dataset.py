"""Random access to the token sequences of a split, by memory-mapping its shards."""

from pathlib import Path

import numpy as np

from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import ROWS_PER_RECORD, SPLITS, Shard, corpus_hash, read_manifest
from diffusion_lm.errors import UserError, unknown


class ShardedTokens:
    """The sequences of one split: ``tokens[i] -> int64 [L]``, ``len(tokens)``.

    Opening checks that every shard is there and has the manifest's size; content is checked by `python -m data_prep
    verify`. Maps are opened when first needed and are not pickled, so that an instance may go to reading processes.
    Raises `UserError` for a folder that is no whole dataset, an unknown split, and a shard that is missing or cut.
    """

    def __init__(self, path: str | Path, split: str):
        self.info = DatasetInfo.load(path)
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        self.split = split
        shards = read_manifest(self.info.path)
        if corpus_hash(self.info.content_facts(), shards) != self.info.corpus_hash:
            raise UserError(f"{path}: manifest.jsonl and dataset.json do not belong together; make the shards again")
        self._shards = [shard for shard in shards if shard.split == split]
        for shard in self._shards:
            check_shard(self.info.path, shard)
        self._starts = np.cumsum([0, *(shard.num_sequences for shard in self._shards)])
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index` as int64 [L], a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        record, row = divmod(int(index - self._starts[number]), ROWS_PER_RECORD)
        width = self.info.length * np.dtype(self.info.dtype).itemsize
        start = self._shards[number].offsets[record] + row * width
        return self._map(number)[start : start + width].view(self.info.dtype).astype(np.int64)

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = np.memmap(self.info.path / self._shards[number].shard, dtype=np.uint8, mode="r")
        return self._maps[number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_maps": {}}


def check_shard(folder: Path, shard: Shard) -> None:
    """Raise `UserError` when a shard is missing or has not the manifest's size."""
    path = folder / shard.shard
    again = "make the shards again in an empty folder, or copy that file again"
    if not path.is_file():
        raise UserError(f"{path}: shard is missing; {again}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(f"{path}: shard has {size} bytes, the manifest says {shard.bytes}; {again}")
