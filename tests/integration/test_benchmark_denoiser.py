"""benchmark denoiser: equal sizes, every length, the files it writes, what it refuses."""

import csv
import json

import pytest
import torch

from diffusion_lm.benchmark import denoiser
from diffusion_lm.benchmark.denoiser import DenoiserTimesConfig

TINY = {"lengths": (32, 128), "layers": 4, "d_model": 128, "tokens": 128, "repeats": 1}


@pytest.fixture(scope="module")
def found():
    """A tiny measurement."""
    return denoiser.measure(DenoiserTimesConfig(**TINY, denoisers=("transformer", "mamba"), attention_limit=64))


def test_arms_have_equally_many_parameters():
    config = DenoiserTimesConfig(denoisers=("transformer", "mamba", "hybrid"), layers=8)
    sizes = {name: each.parameters(config.d_model) for name, each in denoiser.sizes(config).items()}
    assert max(sizes.values()) / min(sizes.values()) < 1.005
    with torch.device("meta"):
        for name, each in denoiser.sizes(config).items():
            built = denoiser.build(each, config.d_model)
            assert sum(p.numel() for p in built.parameters()) == sizes[name]


def test_times_are_per_token_and_ratios_are_to_the_first(found):
    rows = {(row["denoiser"], row["length"]): row for row in found["times"]}
    assert set(rows) == {("transformer", 32), ("mamba", 32), ("mamba", 128)}
    for (_, length), row in rows.items():
        assert row["rows"] == 128 // length
        assert row["microseconds_per_token"] == pytest.approx(1e6 * row["seconds"] / 128)
    one, other = rows["transformer", 32]["seconds"], rows["mamba", 32]["seconds"]
    assert found["times_faster"] == {"mamba": {32: pytest.approx(one / other)}}


def test_growth_is_over_lengths_at_which_all_were_run(found):
    assert found["growth"] == {"lengths": [32], "times": {"transformer": None, "mamba": None}}
    assert denoiser.table(found).splitlines()[-1].startswith("growth with the length: not measured")
    config = DenoiserTimesConfig(**{**TINY, "lengths": (128, 32, 64)}, attention_limit=64)
    found = denoiser.measure(config)
    token = {(row["denoiser"], row["length"]): row["microseconds_per_token"] for row in found["times"]}
    times = {name: token[name, 64] / token[name, 32] for name in ("transformer", "mamba")}
    assert found["growth"] == {"lengths": [32, 64], "times": pytest.approx(times)}
    last = denoiser.table(found).splitlines()[-1]
    assert last == (
        f"time per token at 64 over that at 32: transformer {times['transformer']:.2f}, mamba {times['mamba']:.2f}"
    )


def test_inputs_are_made_outside_of_what_is_timed(monkeypatch):
    config = DenoiserTimesConfig(**TINY, denoisers=("mamba",))
    step = denoiser.call(config, denoiser.build(denoiser.sizes(config)["mamba"], config.d_model), 32)
    for maker in ("randn", "zeros", "full"):
        monkeypatch.delattr(torch, maker)
    seen = []
    monkeypatch.setattr(denoiser.Denoiser, "__call__", lambda self, *inputs: seen.append(inputs) or inputs[0])
    step(0)
    step(1)
    (first, noisy), again = seen
    assert first.shape == (4, 32, 128) and first is again[0] and noisy is again[1]


def test_the_processors_clock_counts_where_it_is_asked_for():
    found = denoiser.measure(DenoiserTimesConfig(**TINY, clock="processor"))
    for row in found["times"]:
        assert row["microseconds_per_token"] == pytest.approx(1e6 * row["processor_seconds"] / 128)
        assert row["processor_seconds"] != row["seconds"]
    assert "(processor clock)" in denoiser.table(found)


def test_a_length_above_the_tokens_is_one_row():
    config = DenoiserTimesConfig(tokens=100)
    assert [config.rows(length) for length in (10, 60, 100, 1000)] == [10, 1, 1, 1]


def test_the_table_and_the_files_hold_the_numbers(found, tmp_path):
    denoiser.write({**found, "git": "abc"}, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    text = (folder / "table.md").read_text()
    assert "commit abc" in text and torch.__version__ in text and found["machine"] in text
    assert "| 128 | not run |" in text
    with (folder / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["denoiser"] for row in rows] == ["transformer", "mamba", "mamba"]
    assert float(rows[0]["seconds"]) == found["times"][0]["seconds"]
    assert json.loads((folder / "found.json").read_text())["growth"] == found["growth"]
    assert (folder / "times.png").read_bytes().startswith(b"\x89PNG")


def test_training_is_forward_and_backward():
    config = DenoiserTimesConfig(**TINY, mode="training", precision="bfloat16")
    torch.manual_seed(0)
    built = denoiser.build(denoiser.sizes(config)["mamba"], config.d_model)
    backward = []
    for parameter in built.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: backward.append(True))
    denoiser.call(config, built, 32)(0)
    assert len(backward) == len(list(built.parameters()))
    assert all(p.grad is None for p in built.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1024", "0"], "benchmark denoiser: lengths: got 0, expected at least 1"),
        (["--layers", "0"], "benchmark denoiser: layers: got 0, expected at least 1"),
        (["--denoisers", "transfomer"], "denoisers: no variant 'transfomer'; expected one of"),
        (
            ["--lengths", "64", "128", "--attention-limit", "32"],
            "benchmark denoiser: attention_limit: got 32, which leaves 'transformer' none of the lengths 64, 128; "
            "expected 64 at least, or 0",
        ),
        (
            ["--denoisers", "mamba", "--d-model", "100"],
            "benchmark denoiser: d_model: got 100: 'mamba' refuses: head_dim 64 and n_groups 1: expected expand",
        ),
        (["--d-model", "100"], "benchmark denoiser: d_model: got 100: 'transformer' refuses: head_dim: got 64"),
        (["--mode", "backward"], "argument --mode: invalid choice: 'backward'"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    assert message in place.refused("benchmark", "denoiser", *arguments)
