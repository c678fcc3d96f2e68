"""What training draws for its rows, by rank: the data module's own batches, through the objective that a run builds.

As a script, `ranks.py WORLD MICRO SHARDS OUT` spawns WORLD processes joined by gloo, and the first of them saves what
all have drawn. {arm: {position: tensors}}
"""

import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from diffusion_lm.config import from_tree
from diffusion_lm.data.datamodule import TokenDataModule, accumulation_steps
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.noisy import Batch, Corrupted

GLOBAL, FIRST_STEP, STEPS = 8, 5, 3
ARMS = {
    "masked": {"objective": "masked", "times": "stratified"},
    "fixed_count": {"objective": {"name": "masked", "estimator": "fixed_count"}, "times": "antithetic"},
    "uniform": {"objective": "uniform", "times": {"name": "stratified", "low": 0.2}},
    "gidd": {"objective": "gidd", "times": "importance", "schedule": "half_cosine"},
    "gaussian": {"objective": "gaussian", "sampler": "ancestral"},
}


def rows_of(rank: int, world: int, micro: int, shards: str) -> dict[str, dict[int, list[torch.Tensor]]]:
    """What a rank draws in some optimiser steps in the middle of training."""
    found = {}
    for arm, parts in ARMS.items():
        config = from_tree(
            ExperimentConfig,
            {
                "seed": 3,
                "data": {"path": shards, "length": 32},
                "model": {"d_model": 64},
                "denoiser": {"name": "transformer", "n_layers": 1},
                "prompt": {"fraction": 0.5},
                "training": {"batch_size": GLOBAL},
                **parts,
            },
        )
        data = TokenDataModule(config.data, seed=config.seed, global_batch=GLOBAL, micro_batch=micro)
        data.trainer = SimpleNamespace(global_step=FIRST_STEP, global_rank=rank, world_size=world)
        torch.manual_seed(config.seed)
        module = DiffusionModule(config, data.info)
        batches = islice(iter(data.train_dataloader()), STEPS * accumulation_steps(GLOBAL, micro, world))
        found[arm] = {}
        for batch in batches:
            for position, row in zip(batch["position"].tolist(), zip(*drawn(module, Batch(**batch)))):
                assert position not in found[arm]
                found[arm][position] = list(row)
    return found


@torch.no_grad()
def drawn(module: DiffusionModule, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Corrupted state, time or noise level, weight where there is one, given positions."""
    corrupted = module.objective.draw(batch)
    if isinstance(corrupted, Corrupted):
        return corrupted.x_t, corrupted.t, corrupted.weight, corrupted.given
    seen = []
    handle = module.model.register_forward_pre_hook(lambda model, arguments: seen.append(arguments[0]))
    module.objective(module.model, corrupted)
    handle.remove()
    return seen[-1].x, seen[-1].noise_level, seen[-1].given


def work(rank: int, world: int, micro: int, shards: str, out: str) -> None:
    """One process of the world."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(out).with_suffix(".meet").resolve().as_uri(), rank=rank,
                            world_size=world)  # fmt: skip
    everything = [None] * world
    dist.all_gather_object(everything, rows_of(dist.get_rank(), dist.get_world_size(), micro, shards))
    if rank == 0:
        torch.save({arm: [part[arm] for part in everything] for arm in ARMS}, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    world, micro, shards, out = sys.argv[1:]
    torch.multiprocessing.spawn(work, (int(world), int(micro), shards, out), nprocs=int(world))
