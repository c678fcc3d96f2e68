"""duo: uniform-state models of arXiv 2506.10892: the same transformer, told sigma, over the uniform process.

Their tokenizer counts an id for padding that no text holds (GPT-2: 50258 rows for 50257 ids). Rows beyond the
tokenizer's own ids are left out, so that what is predicted, and the uniform noise, is over ids that occur.
"""

from pathlib import Path
from typing import ClassVar

from diffusion_lm.config import from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, with_overrides
from diffusion_lm.weights import dit
from diffusion_lm.weights.checkpoint import read_foreign
from diffusion_lm.weights.formats.base import Format, Options, Pretrained, vocabulary_of

WHAT = "Duo's transformer"
MOST_EXTRA_ROWS = 8


class Duo(Format):
    """Duo."""

    summary: ClassVar[str] = "Duo: a Lightning checkpoint, a Hugging Face folder or a state dict"

    def read(self, source: Path, options: Options) -> Pretrained:
        foreign = read_foreign(source)
        sizes, theirs = dit.tensors(foreign, WHAT, options.ema)
        tree = dit.experiment_tree(foreign, sizes, "uniform", options.ema)
        config = with_overrides(from_tree(ExperimentConfig, tree), options.overrides)
        vocabulary = vocabulary_of(config, options, sizes.rows, extra=0, default=sizes.rows)
        extra = sizes.rows - vocabulary
        if extra > MOST_EXTRA_ROWS:
            raise UserError(
                f"{source}: the token table has {sizes.rows} rows, tokenizer '{config.data.tokenizer}' {vocabulary} "
                "ids; expected the same, or a few more rows: set data.tokenizer to the one it was trained with"
            )
        facts = dit.facts(foreign, config.data.tokenizer, options.ema)
        if extra:
            facts["notes"].append(f"{extra} row(s) of the token table beyond the tokenizer's ids are left out")
        state = dit.ours(theirs, sizes, vocabulary, config.model.pad_vocabulary_to)
        return Pretrained(config, vocabulary, state, facts)
