"""Documents in packed rows: segments numbered along a row, and where they begin.

Of segments only neighbouring ones need to differ; padding is a document like any other.
"""

import torch

from diffusion_lm.shapes import Bool, Int, Segment, Tensor


def begins(segment: Segment) -> Bool[Tensor, "B L"]:
    """Whether a position is the first of its document."""
    return torch.nn.functional.pad(segment[:, 1:] != segment[:, :-1], (1, 0), value=True)


def documents(segment: Segment) -> Int[Tensor, "B L"]:
    """0, 1, 2, ... along a row: the number of an earlier document never comes back."""
    return begins(segment).cumsum(1) - 1


def starts(document: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Where the document of each position begins."""
    place = torch.arange(document.shape[1], device=document.device).expand_as(document)
    return torch.where(begins(document), place, 0).cummax(1).values
