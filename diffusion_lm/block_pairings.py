"""What has a meaning in blocks. Everything else is refused when a config is read, in one sentence."""

from typing import Any

from diffusion_lm.config import name_of, part_class
from diffusion_lm.errors import UserError


def refuse_one_block(config: Any) -> None:
    """Refuse to train texts that are one block each: the same model as without blocks, at twice the cost."""
    if config.block_size == config.data.length:
        raise UserError(
            f"block_size: got {config.block_size}, which is data.length: one block is the whole text, and the clean "
            "copy beside it is read by nothing; expected a smaller divisor, or 0 for the whole text at once"
        )


def check_blocks(config: Any) -> None:
    """Raise `ValueError` for an `ExperimentConfig` with a block size that its other parts have no meaning for."""
    size, length = config.block_size, config.data.length
    if size < 0 or size > length or length % size:
        raise ValueError(
            f"block_size: got {size}, expected a divisor of data.length {length}, or 0 for the whole text at once"
        )
    refusals = (
        (not part_class(config.objective).blockwise, f"objective '{name_of(config.objective)}'", "has no blocks"),
        (
            config.denoiser.conditioning.positions > 0,
            f"conditioning '{name_of(config.denoiser.conditioning)}'",
            "puts the noise level into the sequence, and what is cached must not depend on noise; expected adaln, "
            "film, additive or none",
        ),
        (
            part_class(config.denoiser).encodes_prompts,
            f"denoiser '{name_of(config.denoiser)}'",
            "tells every block of the whole prompt; expected transformer, mamba, hybrid or dit",
        ),
        (config.data.isolate_documents, "data.isolate_documents", "and blocks do not go together yet; set it false"),
        (config.sampler.guidance > 0, "sampler.guidance", "has no meaning in blocks yet; set it to 0"),
    )
    for refused, what, why in refusals:
        if refused:
            raise ValueError(f"block_size: got {size}, but {what} {why}")
    for mixer in config.denoiser.mixers():
        why = mixer.block_refusal()
        if why:
            raise ValueError(f"block_size: got {size}, but mixer '{name_of(mixer)}' {why}")
