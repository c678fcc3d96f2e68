"""Batches: the same global batches whatever the number of devices and reading processes, and an exact resume."""

import itertools
from collections import Counter

import lightning
import numpy as np
import pytest
import torch

from diffusion_lm.data.datamodule import TokenDataModule, accumulation_steps
from diffusion_lm.data.dataset import ShardedTokens
from diffusion_lm.data.info import TokenDataConfig, data_facts
from diffusion_lm.errors import UserError, run_command

GLOBAL, MICRO = 16, 4


@pytest.fixture
def folder(make_shards, texts):
    return make_shards(texts, records_per_shard=2)


def global_batch(make_module, folder, step, world=1, steps=1, **options):
    """{position: row} of `steps` optimiser steps from `step` on, gathered over the devices of a world."""
    seen = {}
    for rank in range(world):
        module = make_module(folder, step=step, rank=rank, world=world, **options)
        take = steps * accumulation_steps(GLOBAL, MICRO, world)
        for batch in itertools.islice(iter(module.train_dataloader()), take):
            assert batch["tokens"].dtype == batch["position"].dtype == torch.int64
            assert batch["tokens"].shape == (MICRO, 32)
            for position, row in zip(batch["position"].tolist(), batch["tokens"]):
                assert position not in seen
                seen[position] = row.tolist()
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_same_global_batches_for_any_world_after_a_resume(make_module, folder, world, workers):
    wanted = global_batch(make_module, folder, step=0, steps=9)
    assert set(wanted) == set(range(9 * GLOBAL))
    for step in (0, 5):
        got = global_batch(make_module, folder, step=step, world=world, workers=workers, steps=4)
        assert got == {position: wanted[position] for position in range(step * GLOBAL, (step + 4) * GLOBAL)}


def test_each_step_takes_one_slice_of_the_order(make_module, folder):
    for rank in range(2):
        module = make_module(folder, step=7, rank=rank, world=2)
        batches = itertools.islice(iter(module.train_dataloader()), 2 * 2)
        positions = [batch["position"].tolist() for batch in batches]
        first = 7 * GLOBAL + rank * 8
        assert positions == [list(range(first + at, first + at + MICRO)) for at in (0, 4, GLOBAL, GLOBAL + 4)]


def test_every_sequence_once_per_epoch(make_module, folder):
    tokens = ShardedTokens(folder, "train")
    rows = Counter(tuple(tokens[index].tolist()) for index in range(len(tokens)))
    steps = 2 * len(tokens) // GLOBAL + 1
    seen = global_batch(make_module, folder, step=0, steps=steps)
    for epoch in range(2):
        positions = range(epoch * len(tokens), (epoch + 1) * len(tokens))
        assert Counter(tuple(seen[position]) for position in positions) == rows
    assert [seen[position] for position in range(50)] != [seen[len(tokens) + position] for position in range(50)]


def test_the_loader_has_no_length_and_leaves_the_global_generator_alone(make_module, folder):
    loader = make_module(folder).train_dataloader()
    with pytest.raises(TypeError):
        len(loader)
    before = torch.get_rng_state()
    next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_trainer_and_from_a_given_position(folder):
    config = TokenDataConfig(path=str(folder), length=32)
    module = TokenDataModule(config, seed=3, global_batch=GLOBAL, micro_batch=MICRO)
    assert next(iter(module.train_dataloader()))["position"].tolist() == [0, 1, 2, 3]
    module.start_position = 1000
    assert next(iter(module.train_dataloader()))["position"].tolist() == [1000, 1001, 1002, 1003]
    assert len(list(module.val_dataloader())) > 0


def validation(make_module, folder, **options):
    batches = list(make_module(folder, **options).val_dataloader())
    rows = torch.cat([batch["tokens"] for batch in batches]).tolist()
    return dict(zip(torch.cat([batch["position"] for batch in batches]).tolist(), rows, strict=True))


def test_validation_is_fixed_and_spread_evenly(make_module, folder):
    tokens = ShardedTokens(folder, "val")
    everything = validation(make_module, folder, val_sequences=0)
    assert everything == {index: tokens[index].tolist() for index in range(len(tokens))}
    some = validation(make_module, folder, val_sequences=7, seed=9, step=5, workers=2)
    assert len(some) == 7 and some.items() <= everything.items()
    gaps = np.diff(sorted(some))
    assert gaps.max() - gaps.min() <= 1 and gaps.max() >= len(tokens) // 7
    assert validation(make_module, folder, val_sequences=len(tokens) + 1) == everything


def test_validation_shares_are_equal_and_disjoint(make_module, folder):
    shares = [validation(make_module, folder, val_sequences=11, world=3, rank=rank) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert len(set().union(*shares)) == 9
    with pytest.raises(UserError, match="2 validation sequences are too few for 3 devices"):
        make_module(folder, val_sequences=2, world=3).val_dataloader()


def test_another_corpus_seed_or_batch_is_refused_on_resume(make_module, make_shards, folder, texts):
    module = make_module(folder, step=6)
    state = module.state_dict()
    hash_ = module.info.corpus_hash
    identity = {"corpus_hash": hash_, "seed": 3, "order": "sequences"}
    assert state == {**identity, "global_batch": 16, "consumed": 96, "step": 6}
    make_module(folder).load_state_dict(state)
    with pytest.raises(UserError, match=r"checkpoint was trained with seed=3, this run has seed=4; resuming would"):
        make_module(folder, seed=4).load_state_dict(state)
    wanted = "a batch of 16 sequences and has consumed 96, this run has one of {}; expected a multiple or a "
    for other in (24, 64):  # neither a factor of the other; 96 sequences are no whole batches
        with pytest.raises(UserError, match=wanted.format(other) + "divisor of 16 that divides 96"):
            make_module(folder, global_batch=other).load_state_dict(state)
    with pytest.raises(UserError, match="trained with order=sequences, this run has order=blocks of 2 shards"):
        make_module(folder, shuffle="blocks", block_shards=2).load_state_dict(state)
    other = make_module(make_shards(texts[:200], "other"))
    wanted = f"trained with corpus_hash={module.info.corpus_hash}, this run has corpus_hash={other.info.corpus_hash}"
    with pytest.raises(UserError, match=wanted):
        other.load_state_dict(state)


def test_batches_that_cannot_be_cut(make_module, folder):
    assert accumulation_steps(48, 4, 3) == 4
    wanted = r"global batch 16 cannot be cut .* must be a multiple of devices x micro-batch = 3 x 4 = 12"
    with pytest.raises(UserError, match=wanted):
        make_module(folder, world=3).train_dataloader()
    with pytest.raises(UserError, match=r"global batch 10 .* = 1 x 4 = 4"):
        make_module(folder, global_batch=10)
    with pytest.raises(UserError, match=r"global batch 0 and micro-batch 4 must be 1 or more"):
        make_module(folder, global_batch=0)
    with pytest.raises(UserError, match=r"data: num_workers=-1, val_sequences=256; both must be 0 or more"):
        make_module(folder, workers=-1)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"length": 64},
            "shards made with length=32, the experiment says data.length=64; set data.length=32, or make others and "
            "set data.path={path}_bytes_64: python -m data_prep shard --source {source} --out {path}_bytes_64 "
            "--tokenizer bytes --length 64",
        ),
        ({"tokenizer": "gpt2"}, "shards made with tokenizer=bytes, the experiment says data.tokenizer=gpt2"),
        (
            {"path": "nowhere", "length": 77},
            "nowhere: no such folder of shards; make it: "
            "python -m data_prep shard --source python-docs --out nowhere --tokenizer bytes --length 77",
        ),
    ],
)
def test_shards_that_are_not_the_experiment_s(folder, tmp_path, capsys, monkeypatch, config, text):
    class Gpt2:
        fingerprint = "0"

    monkeypatch.setattr("diffusion_lm.data.info.load_tokenizer", lambda name: Gpt2())
    config = TokenDataConfig(**{"path": str(folder), "length": 32, **config})
    assert run_command(lambda _: data_facts(config) and 0, []) == 2
    line = capsys.readouterr().err
    source = tmp_path / "shards.source" / "text.jsonl"
    assert text.format(path=folder, source=source) in line and line.count("\n") == 1


def test_another_vocabulary_under_the_same_name_is_refused(folder, monkeypatch):
    monkeypatch.setattr("diffusion_lm.data.tokenizers.bytes.Bytes.fingerprint", "another")
    with pytest.raises(UserError, match=r"tokenizer 'bytes' of fingerprint .*, the one installed has another"):
        data_facts(TokenDataConfig(path=str(folder), length=32))


class Recorder(lightning.LightningModule):
    """Notes which positions each optimiser step saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.trainer.global_step, batch["position"].tolist()))
        return self.weight * batch["tokens"].float().mean()

    def validation_step(self, batch, _):
        assert batch["tokens"].shape[1] == 32

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_where_it_stopped(folder, tmp_path):
    def fit(steps, **options):
        config = TokenDataConfig(path=str(folder), length=32)
        data = TokenDataModule(config, seed=3, global_batch=GLOBAL, micro_batch=MICRO)
        trainer = lightning.Trainer(
            max_steps=steps, max_epochs=-1, accumulate_grad_batches=4,
            val_check_interval=8, check_val_every_n_epoch=None, use_distributed_sampler=False,
            accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        model = Recorder()
        trainer.fit(model, data, **options)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        return model.seen

    whole = fit(7)
    assert whole == [(n // 4, list(range(n * MICRO, (n + 1) * MICRO))) for n in range(7 * 4)]
    assert fit(3) + fit(7, ckpt_path=tmp_path / "x.ckpt") == whole
