"""benchmark blocks: a step in blocks over one of whole texts, the files, what it refuses."""

import csv
import json

import pytest
import torch

from diffusion_lm.benchmark import blocks
from diffusion_lm.benchmark.blocks import BlocksConfig
from diffusion_lm.benchmark.models import causal, model_of
from diffusion_lm.config import config_class, variants

TINY = {
    "denoisers": ("transformer", "mamba"),
    "block_sizes": (16, 4),
    "length": 32,
    "batch": 2,
    "layers": 4,
    "d_model": 128,
    "vocabulary": 20,
    "repeats": 1,
}


@pytest.fixture(scope="module")
def found():
    """A tiny measurement."""
    return blocks.measure(BlocksConfig(**TINY))


def test_ratios_are_to_the_whole_texts_of_the_same_denoiser(found):
    seconds = {(row["denoiser"], row["block_size"]): row["seconds"] for row in found["times"]}
    assert set(seconds) == {(name, size) for name in ("transformer", "mamba") for size in (0, 16, 4)}
    for row in found["times"]:
        assert row["ratio"] == row["seconds"] / seconds[row["denoiser"], 0]
    sizes = [row["parameters"] for row in found["times"]]
    assert max(sizes) / min(sizes) < 1.005


def test_a_step_is_forward_and_backward_of_the_same_tokens_beside_the_clean_ones():
    """In blocks the trunk is called on the clean blocks and the noisy ones. Every parameter gets its gradient, and none
    keeps it: nothing is updated."""
    config = BlocksConfig(**TINY)
    model = model_of(config_class("denoisers", "transformer")(n_layers=1), "masked", 128, 20, "cpu").train()
    shapes, reached = [], []
    model.denoiser.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    for parameter in model.denoiser.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: reached.append(True))
    steps = [blocks.step(config, model, size) for size in (0, 16)]
    assert not shapes
    for step in steps:
        step(0)
    assert shapes == [(2, 32, 128), (2 * 2 * 2, 16, 128)]
    assert len(reached) == 2 * len(list(model.denoiser.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_the_table_and_the_files_hold_the_numbers(found, tmp_path):
    blocks.write({**found, "git": "abc"}, tmp_path / "new")
    text = (tmp_path / "new" / "table.md").read_text()
    assert "| denoiser | whole texts, s | blocks of 4 | blocks of 16 |" in text
    row = {(row["denoiser"], row["block_size"]): row for row in found["times"]}
    cells = f"{row['mamba', 0]['seconds']:.3f} | {row['mamba', 4]['ratio']:.2f} | {row['mamba', 16]['ratio']:.2f}"
    assert f"| mamba | {cells} |" in text
    for word in ("2 x 32 tokens", "commit abc", torch.__version__, found["machine"], "median of 1"):
        assert word in text
    with (tmp_path / "new" / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == blocks.COLUMNS and len(rows) == 6
    assert json.loads((tmp_path / "new" / "found.json").read_text())["times"] == found["times"]
    assert (tmp_path / "new" / "times.png").read_bytes().startswith(b"\x89PNG")


def test_denoisers_are_made_causal():
    names = [name for name in variants("denoisers") if name != "dimba"]  # its prompt encoder sees the whole prompt
    for name in names:
        denoiser = config_class("denoisers", name)()
        assert not denoiser.is_causal()
        made = causal(denoiser)
        assert made.is_causal() and type(made) is type(denoiser)
        assert [m.family() for m in made.mixers()] == [m.family() for m in denoiser.mixers()]


def test_the_command_writes_where_it_is_told(place):
    done = place.command(
        *("benchmark", "blocks", "--denoisers", "mamba", "--block-sizes", 8, "--length", 16, "--batch", 1),
        *("--layers", 1, "--d-model", 64, "--vocabulary", 20, "--repeats", 1, "--precision", "bfloat16"),
        *("--out", "there"),
    )
    assert done.code == 0, done.err
    assert done.out == (place.folder / "there" / "table.md").read_text()
    assert "| denoiser | whole texts, s | blocks of 8 |" in done.out and ", bfloat16, " in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block-sizes", "7"], "benchmark blocks: block_sizes: got 7, expected divisors of length 1024, each once"),
        (["--block-sizes", "4", "4"], "benchmark blocks: block_sizes: got 4, expected divisors of length 1024"),
        (["--block-sizes", "0"], "benchmark blocks: block_sizes: got 0, expected at least 1"),
        (["--batch", "0"], "benchmark blocks: batch: got 0, expected at least 1"),
        (["--denoisers", "dimba"], "benchmark blocks: denoisers: got dimba, which tells every block of the whole"),
        (["--d-model", "64", "--layers", "2"], " with 6 blocks; expected more --layers, another --d-model, or a "),
        (["--d-model", "100"], "benchmark: d_model: got 100: 'transformer' refuses: head_dim: got 64"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    assert message in place.refused("benchmark", "blocks", *arguments)
