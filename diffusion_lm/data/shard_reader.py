"""What readers of local or fetched shards have in common: an index of the split, a few shards open, side files."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_lm.data.files import Files, LocalFiles
from diffusion_lm.data.info import DatasetInfo
from diffusion_lm.data.manifest import Shard
from diffusion_lm.data.reader import TokenReader
from diffusion_lm.data.shard_index import Recent, ShardIndex, check_sizes, renew


class ShardReader(TokenReader):
    """The sequences of one split of a dataset that is made of shards, each with a side file.

    Opening checks that every shard is there and has the manifest's size (with `on_damage` ``skip`` what is gone is left
    out). A few shards are open at a time. Raises `UserError` for a shard that is missing or cut.
    """

    def __init__(self, info: DatasetInfo, shards: list[Shard], split: str, on_damage: str, files: Files | None):
        self.info, self.split, self.on_damage = info, split, on_damage
        self.index = ShardIndex(shards, [self._side_bytes(shard) for shard in shards])
        self.files = files or LocalFiles(info.path, info.root)
        if on_damage == "error" and not self.files.remote:
            check_sizes(self.files, self.index, self._lost_from)
        self._open = Recent()
        self._side_checked: set[int] = set()

    @staticmethod
    @abstractmethod
    def _side_bytes(shard: Shard) -> int:
        """Size of a shard's side file."""

    @abstractmethod
    def _lost_from(self, number: int, size: int) -> str:
        """The first place of a shard of which `size` bytes are left that is not there whole, "" where all are."""

    @abstractmethod
    def _map(self, number: int) -> Any:
        """A shard, opened, or why it cannot be."""

    @abstractmethod
    def _lost(self, number: int) -> bool:
        """Whether nothing of a shard can be read."""

    def __len__(self) -> int:
        return len(self.index)

    def _shard(self, number: int) -> Any:
        return self._open.get(number, self._map)

    def after(self, index: int) -> int:
        """Past the whole shard where nothing of it can be read."""
        number = int(self.index.shards_of(np.array([index]))[0])
        return int(self.index.starts[number + 1] if self._lost(number) else index + 1) % len(self)

    def prefetch(self, indices: Sequence[int]) -> None:
        """See the contract."""
        self.files.prefetch(self.index.wanted_for(indices))

    def renew(self, indices: np.ndarray) -> bool:
        """See the contract."""
        return renew(self.files, self.index, indices, self._open, self._side_checked)
