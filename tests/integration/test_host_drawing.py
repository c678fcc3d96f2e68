"""Training noise is drawn on the host, before the batch goes to the device; validation draws on the device."""

from dataclasses import fields

import lightning
import pytest
import torch

from diffusion_lm.config import from_tree
from diffusion_lm.data.datamodule import TokenDataModule
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.lightning_module import DiffusionModule
from diffusion_lm.noisy import Batch, Corrupted


class Seen(DiffusionModule):
    """Keeps what its steps are handed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        self.trained.append(batch)
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.validated.append(batch)


@pytest.fixture(scope="module")
def seen(shards, tmp_path_factory):
    """A module after two steps of two micro-batches each, and a validation."""
    tree = {
        "data": {"path": str(shards()), "length": 32, "val_sequences": 4},
        "model": {"d_model": 32},
        "denoiser": {"name": "transformer", "n_layers": 1, "mixer": {"head_dim": 16}},
        "prompt": {"fraction": 0.5},
        "training": {"batch_size": 8, "micro_batch": 4, "steps": 2},
    }
    config = from_tree(ExperimentConfig, tree)
    data = TokenDataModule(config.data, seed=config.seed, global_batch=8, micro_batch=4)
    torch.manual_seed(0)
    module = Seen(config, data.info)
    module.on_validation_epoch_end = lambda: None
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, accumulate_grad_batches=2, val_check_interval=4, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path_factory.mktemp("root"),
    )  # fmt: skip
    trainer.fit(module, data)
    return module


def test_training_steps_get_the_drawn_noise_and_validation_the_text(seen):
    assert len(seen.trained) == 4 and all(isinstance(batch, Corrupted) for batch in seen.trained)
    assert seen.validated and all(set(batch) == {"tokens", "position"} for batch in seen.validated)


def test_the_drawn_batches_are_those_of_the_training_order(seen):
    for number, drawn in enumerate(seen.trained):
        position = torch.arange(4 * number, 4 * number + 4)
        again = seen.objective.draw(Batch(drawn.tokens, position))
        for field in fields(Corrupted):
            a, b = getattr(drawn, field.name), getattr(again, field.name)
            assert a is b is None or torch.equal(a, b), field.name
        at_once = seen.objective(seen.model, Batch(drawn.tokens, position)).loss
        assert torch.equal(seen.objective(seen.model, drawn).loss, at_once)


def test_rows_name_the_masked_positions(seen):
    for drawn in seen.trained:
        masked = (drawn.x_t == seen.model.process.mask_id).flatten()
        assert drawn.rows[drawn.rows >= 0].tolist() == [place for place, is_masked in enumerate(masked) if is_masked]
        assert len(drawn.rows) == 256  # 128 positions at most


def test_a_drawn_batch_goes_to_the_device_whole(seen):
    moved = seen.transfer_batch_to_device(seen.trained[0], torch.device("meta"), 0)
    assert isinstance(moved, Corrupted)
    for field in fields(Corrupted):
        value = getattr(moved, field.name)
        assert value is None or value.device.type == "meta", field.name
