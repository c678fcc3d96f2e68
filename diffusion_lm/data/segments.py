"""Which document each position of a packed window belongs to, read off the end-of-text ids."""

import numpy as np

from diffusion_lm.data.info import MARKED, DatasetInfo, TokenDataConfig
from diffusion_lm.errors import UserError


def segments(tokens: np.ndarray, eot_id: int) -> np.ndarray:
    """Documents of `tokens` [B, L], int64 [B, L]: 1, 2, ... along a row; an end-of-text id ends its own document."""
    ends = tokens == eot_id
    return 1 + np.cumsum(ends, 1) - ends


def document_ends(config: TokenDataConfig, info: DatasetInfo) -> int | None:
    """The id that ends a document where documents are to be isolated, else None.

    Raises `UserError` where they are and nothing marks them.
    """
    if not config.isolate_documents:
        return None
    if MARKED not in info.packing or not 0 <= info.eot_id < info.vocab_size:
        raise UserError(
            f"data.isolate_documents: got true, but nothing marks the documents of {config.path} (packing: "
            f"'{info.packing}', end-of-text id {info.eot_id}); expected {MARKED}; set data.isolate_documents=false"
        )
    return info.eot_id
