"""How the devices of a run share its work: Lightning's strategies, and FSDP2 as the runs here need it.

Fully sharded (Zhao et al., arXiv 2304.11277, here PyTorch's `fully_shard`): each device holds a share of every
parameter, of its gradient, of the optimiser's state and of the averages. A block's parameters are gathered while it
runs; the others (embedding, conditioning, head) while a training or validation step runs. Parameters and gradients
travel in float32 and autocast narrows them where they are used, so that bfloat16 means what it means on one device.

A checkpoint is the one that a single device writes, with the same names and numbers in one file: any number of devices
under any strategy goes on from it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from diffusion_lm.errors import UserError
from diffusion_lm.layers.stack import Stack
from diffusion_lm.training.averaging import Average
from diffusion_lm.training.config import TrainingConfig

STEPS = ("training_step", "validation_step", "draw_texts")
"""Methods of the LightningModule that need its parameters whole."""


def make_strategy(training: TrainingConfig) -> str | Strategy:
    """What Lightning's Trainer takes."""
    world = training.devices * training.num_nodes
    if world == 1:
        return "auto"
    if training.strategy == "fsdp":
        return FullyShard(world)
    # a step without prompts leaves out the parameters that only prompts use
    return "ddp_find_unused_parameters_true"


def check_shares(module: nn.Module, training: TrainingConfig) -> None:
    """Refuse to share out what has no parts. Raises `UserError`."""
    single = [name for name, parameter in module.named_parameters() if not parameter.dim()]
    if training.strategy == "fsdp" and single:
        raise UserError(
            f"training.strategy: got fsdp, but {single[0]} is a single number, which cannot be shared out; set "
            "training.strategy=ddp"
        )


class FullyShard(ModelParallelStrategy):
    """FSDP2 over all devices.

    The model is sharded here and not in the module's `configure_model`, which the averaging callback calls before it
    copies the module: sharded modules cannot be copied.
    """

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup(self, trainer: Trainer) -> None:
        self.accelerator.setup(trainer)
        if not isinstance(self.model, FSDPModule):
            self.model = self.precision_plugin.convert_module(self.model)
            self.model_to_device()
            self._shard(trainer)
        self.barrier()
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _shard(self, trainer: Trainer) -> None:
        """Shard the model, then the averages of it."""
        mesh = self.device_mesh["data_parallel"]
        stacks = [part for part in self.model.modules() if isinstance(part, Stack)]
        for block in (block for stack in stacks for block in stack.blocks):
            fully_shard(block, mesh=mesh)
        # gathered again in the backward pass: between steps nothing but shares is there, for averages and checkpoints
        fully_shard(self.model, mesh=mesh, reshard_after_forward=True)
        for name in STEPS:
            register_fsdp_forward_method(self.model, name)
        share = self._share_of()
        for callback in trainer.callbacks:
            if isinstance(callback, Average):
                callback.place(share)

    def _share_of(self) -> Callable[[str, Tensor], Tensor]:
        """A function of a parameter's name and of numbers of its shape, which gives this device's share of them."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))  # a tied weight by all of its names

        def share(name: str, value: Tensor) -> Tensor:
            parameter = parameters.get(name)
            return value if parameter is None else share_like(value, parameter)

        return share

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return super(ParallelStrategy, self).optimizer_state(optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather on all devices, one tensor after the other, and let the first write."""
        whole = tree_map(self._whole, checkpoint)
        super(ParallelStrategy, self).save_checkpoint(whole, filepath, storage_options)

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, with this device's shares wherever it holds a parameter's numbers under its name."""
        checkpoint = torch.load(Path(checkpoint_path), map_location="cpu", mmap=True, weights_only=weights_only)
        return _with_shares(checkpoint, self._share_of())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        super(ParallelStrategy, self).load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_optimizer_shares(saved, optimizer))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True


def share_like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This device's share of a tensor that all devices have whole, cut as `parameter` is."""
    whole = value.detach().to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _with_shares(tree: Any, share: Callable[[str, Tensor], Tensor]) -> Any:
    """A tree of mappings with every tensor that stands under a parameter's name replaced by its share."""
    if not isinstance(tree, Mapping):
        return tree
    return {
        key: share(key, value) if isinstance(value, Tensor) else _with_shares(value, share)
        for key, value in tree.items()
    }


def _optimizer_shares(saved: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's saved state with moments cut as their parameters are; numbers stand in the order of the groups."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Any, parameter: nn.Parameter) -> Any:
        moment = isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
        return share_like(value, parameter) if moment else value

    state = {
        number: {name: cut(value, parameter) for name, value in saved["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in saved["state"]
    }
    return {**saved, "state": state}
