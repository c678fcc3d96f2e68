"""Prepares a model's blocks for training: compiled, or computed again in the backward pass, as the config says."""

from torch import nn

from diffusion_lm.errors import UserError
from diffusion_lm.layers.execution import Execution
from diffusion_lm.layers.stack import Block, Stack
from diffusion_lm.training.config import TrainingConfig

VARIANTS = 32
"""Pieces of code for one block: with and without gradients, given positions, documents, rows of a kind. More than that
is a value that changes from call to call and is compiled anew for each, which is an error."""


def prepare_blocks(model: nn.Module, training: TrainingConfig) -> None:
    """Set how the blocks of `model` are run. In place; parameters keep their names."""
    for stack in model.modules():
        if isinstance(stack, Stack):
            stack.execution = Execution(compiled=training.compile, recompute=training.checkpoint_activations)
            for block in stack.blocks if training.compile else ():
                block.compile(fullgraph=True, backend=training.compile_backend, recompile_limit=VARIANTS)


def check_compiler(training: TrainingConfig) -> None:
    """Refuse to compile where it cannot work. Raises `UserError`."""
    if not training.compile:
        return
    if hasattr(Block.forward, "__wrapped__"):
        raise UserError(
            "training.compile: got true where jaxtyping checks the shapes of every call, which no graph holds; start "
            "the program without the import hook"
        )
    if training.compile_backend == "inductor" and (missing := _missing(training.accelerator)):
        raise UserError(f"training.compile: got true, but {missing}; install it, or set training.compile=false")


def _missing(accelerator: str) -> str | None:
    """What the code generator lacks on this machine."""
    if accelerator == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "package 'triton', which CUDA code is made with, is not there or sees no GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (g++, or the one that CXX names)"
    return None
