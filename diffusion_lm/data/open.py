"""From what an experiment says of its data to a reader and an order."""

import numpy as np

from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.dclm import DclmTokens
from diffusion_lm.data.fetch import is_remote
from diffusion_lm.data.files import CachedFiles, Files, LocalFiles
from diffusion_lm.data.info import DatasetInfo, TokenDataConfig, mixed_info
from diffusion_lm.data.mixture import ConcatTokens, MixtureOrder, period_counts
from diffusion_lm.data.order import BlockOrder, Order, TrainingOrder
from diffusion_lm.data.reader import TokenReader
from diffusion_lm.errors import UserError

READERS = {"records": ShardedTokens, "dclm": DclmTokens}
"""By the format that `dataset.json` tells."""
GB = 10**9


def open_tokens(config: TokenDataConfig, split: str) -> TokenReader:
    """The sequences of a split, of all sources. Raises `UserError` for what is missing, cut or too large."""
    readers = [_open(place, config, split) for place in config.places()]
    if not config.sources:
        return readers[0]
    return ConcatTokens(readers, mixed_info([reader.info for reader in readers], config.sources))


def open_order(config: TokenDataConfig, tokens: TokenReader, seed: int) -> Order:
    """The order in which training sees `tokens`."""
    if not config.sources:
        return _order(config, tokens, seed)
    empty = [reader for reader in tokens.readers if not len(reader)]
    if empty:
        raise UserError(f"data.sources: {empty[0].info.path} has no {tokens.split} sequences; leave it out")
    orders = [_order(config, reader, seed + number) for number, reader in enumerate(tokens.readers)]
    return MixtureOrder(orders, period_counts(list(config.sources.values())), seed)


def _order(config: TokenDataConfig, tokens: TokenReader, seed: int) -> Order:
    blocks = config.shuffle == "blocks"
    return BlockOrder(tokens.index.starts, config.block_shards, seed) if blocks else TrainingOrder(len(tokens), seed)


def _open(place: str, config: TokenDataConfig, split: str) -> TokenReader:
    info = DatasetInfo.load(place, tokenizer=config.tokenizer, length=config.length, cache=config.cache)
    reader = READERS.get(info.format)
    if reader is None:
        raise UserError(
            f"{place}: format '{info.format}'; expected one of {', '.join(READERS)}; it was made by a later version"
        )
    tokens = reader(info.path, split, config.on_damage, _files(place, info, config))
    if tokens.files.remote:
        _check_room(place, tokens, config)
    return tokens


def _files(place: str, info: DatasetInfo, config: TokenDataConfig) -> Files:
    if is_remote(place):
        return CachedFiles(place, info.path, config.cache_gb * GB)
    return LocalFiles(info.path, info.root)


def _check_room(place: str, tokens: TokenReader, config: TokenDataConfig) -> None:
    """Refuse a cache in which shards would be thrown out before they are used."""
    sizes = np.sort(tokens.index.bytes)[::-1]
    blocks = config.shuffle == "blocks"
    needed = sizes[: 2 * config.block_shards].sum() if blocks and tokens.split == "train" else sizes.sum()
    if needed > config.cache_gb * GB:
        fewer = "set data.block_shards lower" if blocks else "set data.shuffle=blocks"
        what = f"two blocks of {config.block_shards} shards take" if blocks else f"all {tokens.split} shards take"
        raise UserError(
            f"data.cache_gb: got {config.cache_gb}, but {what} {needed / GB:.3g} GB of {place}; {fewer}, or give the "
            "cache more"
        )
