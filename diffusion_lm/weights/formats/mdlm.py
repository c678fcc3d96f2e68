"""mdlm: masked diffusion language models of arXiv 2406.07524, `DIT` with the parameterisation SUBS.

A Lightning checkpoint, a folder as on the Hugging Face hub, or the state dict alone. The mask is the last row of the
token table, as it is where the tokenizer has no mask of its own (GPT-2); its logit is -inf, and a position that is not
masked is right, both of which the masked process brings in.
"""

from pathlib import Path
from typing import ClassVar

from diffusion_lm.config import from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, with_overrides
from diffusion_lm.weights import dit
from diffusion_lm.weights.checkpoint import Foreign, read_foreign
from diffusion_lm.weights.formats.base import Format, Options, Pretrained, vocabulary_of


def read_masked(source: Path, options: Options, what: str) -> Pretrained:
    """A masked model of theirs."""
    foreign = read_foreign(source)
    _check_parameterisation(foreign)
    sizes, theirs = dit.tensors(foreign, what, options.ema)
    tree = dit.experiment_tree(foreign, sizes, "masked", options.ema)
    config = with_overrides(from_tree(ExperimentConfig, tree), options.overrides)
    vocabulary = vocabulary_of(config, options, sizes.rows, extra=1, default=sizes.rows - 1)
    if vocabulary != sizes.rows - 1:
        raise UserError(
            f"{source}: the token table has {sizes.rows} rows, expected {vocabulary + 1}: the {vocabulary} ids of "
            f"tokenizer '{config.data.tokenizer}' and the mask as the last; set data.tokenizer to the one that the "
            "weights were trained with (one that has a mask among its own ids does not fit)"
        )
    state = dit.ours(theirs, sizes, vocabulary + 1, config.model.pad_vocabulary_to)
    return Pretrained(config, vocabulary, state, dit.facts(foreign, config.data.tokenizer, options.ema))


def _check_parameterisation(foreign: Foreign) -> None:
    found = foreign.setting("algo.parameterization", "parameterization")
    if found not in (None, "subs"):
        raise UserError(
            f"{foreign.source}: parameterization '{found}', expected 'subs': what its logits mean is another matter"
        )


class Mdlm(Format):
    """MDLM."""

    summary: ClassVar[str] = "MDLM: a Lightning checkpoint, a Hugging Face folder or a state dict"

    def read(self, source: Path, options: Options) -> Pretrained:
        return read_masked(source, options, "MDLM's transformer")
