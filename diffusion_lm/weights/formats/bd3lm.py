"""bd3lm: block diffusion language models of arXiv 2503.09573: MDLM's transformer under another attention mask.

The weights give their logits at block size = length, where every position sees every other: with one block the mask of
their training leaves the noisy half of its input to itself.
"""

from pathlib import Path
from typing import ClassVar

from diffusion_lm.weights.formats.base import Format, Options, Pretrained
from diffusion_lm.weights.formats.mdlm import read_masked

NOTE = "read as one block over the whole length; in blocks of another size these weights were trained, not used here"


class Bd3lm(Format):
    """BD3-LM."""

    summary: ClassVar[str] = "BD3-LM, as one block over the whole length: a checkpoint, folder or state dict"

    def read(self, source: Path, options: Options) -> Pretrained:
        found = read_masked(source, options, "BD3-LM's transformer")
        found.facts["notes"].append(NOTE)
        return found
