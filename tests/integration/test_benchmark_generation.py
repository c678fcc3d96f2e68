"""benchmark generation: equal sizes, what is timed, caches, growth and crossovers, the files, what it refuses."""

import csv
import json
import math

import pytest
import torch

from diffusion_lm.benchmark import decoders, generation
from diffusion_lm.benchmark.generation import GenerationConfig

TINY = {
    "denoisers": ("transformer", "mamba"),
    "autoregressive": ("transformer", "mamba"),
    "lengths": (16, 32),
    "block_size": 8,
    "steps": 2,
    "full_limit": 16,
    "whole_limit": 16,
    "layers": 4,
    "d_model": 128,
    "vocabulary": 20,
    "rows": 2,
    "repeats": 1,
}
FEW = {"denoisers": ("mamba",), "autoregressive": (), "lengths": (16,), "whole_limit": 0}
ARMS = [
    "transformer, blocks",
    "mamba, blocks",
    "transformer, autoregressive",
    "mamba, autoregressive",
    "transformer, whole text",
    "mamba, whole text",
]


@pytest.fixture(scope="module")
def found():
    """A tiny measurement."""
    return generation.measure(GenerationConfig(**TINY))


@pytest.fixture(scope="module")
def by_case(found):
    """Its rows."""
    return {(row["arm"], row["length"]): row for row in found["times"]}


@pytest.mark.slow
def test_every_arm_is_measured_at_every_length_that_it_is_meant_for(found, by_case):
    assert found["arms"] == ARMS
    lengths = {arm: [length for name, length in by_case if name == arm] for arm in ARMS}
    assert lengths == {arm: [16] if arm.endswith("whole text") else [16, 32] for arm in ARMS}
    sizes = [row["parameters"] for row in found["times"]]
    assert max(sizes) / min(sizes) < 1.005


def test_time_per_token_is_of_the_tokens_that_are_written(by_case):
    """With a cache a stretch of 8 tokens in each of 2 rows; at once a step, of which the text of L takes 2 L / 8."""
    for (arm, length), row in by_case.items():
        tokens = 2 * length / (2 * length / 8) if arm.endswith("whole text") else 2 * 8
        assert row["tokens_timed"] == pytest.approx(tokens)
        assert row["milliseconds_per_token"] == pytest.approx(1000 * row["seconds_timed"] / tokens)
        written = length == 16 and not arm.endswith("whole text")
        assert (row["whole_milliseconds_per_token"] is not None) == written


def test_the_processors_clock_counts_where_it_is_asked_for():
    found = generation.measure(GenerationConfig(**{**TINY, **FEW}, clock="processor"))
    for row in found["times"]:
        per_token = 1000 * row["processor_seconds_timed"] / row["tokens_timed"]
        assert row["milliseconds_per_token"] == pytest.approx(per_token)
        assert row["processor_seconds_timed"] != row["seconds_timed"]
    assert "(processor clock)" in generation.table(found)


def test_calls_are_those_of_a_text(by_case):
    """A block takes 2 steps and a pass that takes it in, but for the last."""
    calls = {arm: by_case[arm, 16]["calls"] for arm in ARMS}
    assert calls == {
        "transformer, blocks": 2 * 3 - 1,
        "mamba, blocks": 2 * 3 - 1,
        "transformer, autoregressive": 16,
        "mamba, autoregressive": 16,
        "transformer, whole text": 2 * 2,
        "mamba, whole text": 2 * 2,
    }


@pytest.mark.slow
def test_calls_are_really_made():
    """Of the trunk: what is timed, and a whole text of 16 tokens."""
    config, made = GenerationConfig(**{**TINY, "lengths": (16,)}), []
    arms = generation.arms(config)
    for model in {arm.model for arm in arms.values()}:  # a model writes in two ways
        model.denoiser.register_forward_hook(lambda module, inputs, output: made.append(output.shape[1]))
    for (name, _), timed in generation.cases(config, arms).items():
        timed.ready()
        made.clear()
        timed(0)
        writer, tokens = arms[name].writer, name.endswith("autoregressive")
        assert made == ([16] if writer is None else [1] * 8 if tokens else [8] * 3)
        if writer is not None:
            made.clear()
            writer.whole(2, 16, "cpu")
            assert made == ([1] * 16 if tokens else [8] * 5)
            assert len(made) == writer.calls(16)


def test_attention_caches_keys_and_values_and_mamba_a_state(by_case, found):
    """Of every layer: 2 x L x 128 numbers a row; Mamba-2's state of 2 x 128 channels x d_state 64, and the last 3
    inputs of its convolution (2 x 128 channels, B and C of 64 each), whatever L is. 4 bytes each."""
    for length in (16, 32):
        for way in ("blocks", "autoregressive"):
            attention, mamba = by_case[f"transformer, {way}", length], by_case[f"mamba, {way}", length]
            assert attention["cache_bytes"] == 2 * 4 * attention["n_layers"] * 2 * length * 128
            assert mamba["cache_bytes"] == 2 * 4 * mamba["n_layers"] * (256 * 64 + 3 * (256 + 2 * 64))
    assert all(row["cache_bytes"] is None for row in found["times"] if row["arm"].endswith("whole text"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS[:4])
def test_a_filled_cache_is_that_of_the_text_written_before(name):
    """In one pass or one after the other: what follows is the same, at the places behind that text."""
    config = GenerationConfig(**TINY)
    arm, text = generation.arms(config)[name], generation.some_text(config, 16)
    torch.nn.init.normal_(arm.model.head.weight)
    with torch.no_grad():
        filled, slow = arm.writer.filled(text), arm.writer.filled(text[:, :0])
        if name.endswith("autoregressive"):
            for token in text.split(1, 1):
                slow = decoders.Written(arm.model.advance(slow.last, slow.cache)[1], token)
            assert torch.equal(filled.last, text[:, -1:])
        else:
            first = arm.model.commit(text[:, :8], slow.cache)
            slow = arm.writer.filled(text)
            slow.cache = arm.model.commit(text[:, 8:], first)
        assert filled.cache.length.tolist() == slow.cache.length.tolist() == [16, 16]
        after, expected = (arm.writer.go_on(arm.writer.forked(state)) for state in (filled, slow))
    assert after.cache.length.tolist() == [24, 24]
    written = [state.last if name.endswith("autoregressive") else state.tokens[:, 16:24] for state in (after, expected)]
    assert torch.equal(*written)


@pytest.mark.parametrize("name", ["transformer, blocks", "transformer, autoregressive"])
def test_every_round_starts_anew_and_none_copies_the_cache_on_the_clock(name):
    """Keys and values are added where they are, after a text that nothing has been added to yet."""
    config = GenerationConfig(**TINY)
    timed = generation.cases(config, {name: generation.arms(config)[name]})[name, 32]
    memory = []
    with torch.no_grad():
        for number in range(2):
            timed.ready()
            before = timed.fork.cache.layers[0].room
            timed(number)
            assert timed.fork.cache.layers[0].room is before
            assert timed.fork.cache.length.tolist() == [32, 32]
            memory.append(before)
    assert memory[0] is not memory[1] and timed.state.cache.length.tolist() == [24, 24]


def test_crossovers_by_hand():
    """a = L / 10 and b = 40: they meet at 400, on the lines of the logarithms. c is 80 and then 20, its line meets b in
    the middle of 100 and 1,000 on the scale of logarithms, and a at 80 (L / 100)^(log 1/4) = L / 10."""
    times = {"a": {100: 10.0, 1000: 100.0}, "b": {100: 40.0, 1000: 40.0}, "c": {100: 80.0, 1000: 20.0, 5: 1.0}}
    meets_a = 100 * 8 ** (1 / (1 + math.log10(4)))
    assert generation.crossovers(times) == [
        {"faster": "c", "slower": "b", "length": pytest.approx(math.sqrt(100 * 1000))},
        {"faster": "c", "slower": "a", "length": pytest.approx(meets_a)},
        {"faster": "b", "slower": "a", "length": pytest.approx(400)},
    ]
    assert generation.crossovers({"a": {1: 1.0, 2: 2.0}, "b": {4: 1.0}}) == []
    meeting = {"a": {1: 2.0, 2: 1.0, 4: 1.0}, "b": {1: 1.0, 2: 1.0, 4: 2.0}}
    assert generation.crossovers(meeting) == [{"faster": "a", "slower": "b", "length": pytest.approx(2)}]


def test_growth_is_the_largest_over_the_smallest():
    assert generation.growth({1: 3.0, 2: 2.0, 4: 5.0}) == 2.5
    assert generation.growth({1: 3.0}) is None


def test_the_table_and_the_files_hold_the_numbers(found, by_case, tmp_path):
    made = {**found, "git": "abc", "crossovers": [{"faster": "mamba, blocks", "slower": "x", "length": 1234.4}]}
    generation.write(made, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    text = (folder / "table.md").read_text()
    assert "(wall clock), blocks of 8, 2 steps per block, 2 texts at a time" in text and found["machine"] in text
    assert "commit abc" in text and torch.__version__ in text
    assert text.count("| length | " + " | ".join(ARMS) + " |") == 1
    assert text.count("| length | " + " | ".join(ARMS[:4]) + " |\n") == 2
    cells = [f"{by_case[arm, 32]['milliseconds_per_token']:.3f}" for arm in ARMS[:4]]
    assert "| 32 | " + " | ".join([*cells, "not run", "not run"]) + " |" in text
    assert f"| 32 | {by_case['transformer, blocks', 32]['cache_bytes']:,} |" in text
    assert "* mamba, blocks is faster than x from about 1,234 tokens on" in text
    assert f"mamba, blocks {found['growth']['mamba, blocks']:.2f}" in text
    with (folder / "times.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == generation.COLUMNS
    assert [(row["arm"], int(row["length"])) for row in rows] == list(by_case)
    assert json.loads((folder / "found.json").read_text())["crossovers"] == made["crossovers"]
    assert (folder / "times.png").read_bytes().startswith(b"\x89PNG")


def test_no_crossover_and_one_length_are_said():
    config = GenerationConfig(**{**TINY, **FEW})
    text = generation.table(generation.measure(config))
    assert "largest over smallest time per token: not measured, which takes two lengths" in text
    assert text.endswith("crossovers: none among these lengths")
    assert "The whole text written" not in text and "autoregressive" not in text


def test_the_command_writes_where_it_is_told(place):
    done = place.command(
        *("benchmark", "generation", "--denoisers", "mamba", "--autoregressive", "--lengths", 16, "--block-size", 8),
        *("--steps", 2, "--layers", 1, "--d-model", 64, "--vocabulary", 20, "--whole-limit", 0, "--repeats", 1),
        *("--precision", "bfloat16", "--out", "there"),
    )
    assert done.code == 0, done.err
    assert done.out == (place.folder / "there" / "table.md").read_text()
    assert "| length | mamba, blocks | mamba, whole text |" in done.out and ", bfloat16, " in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "256", "300"], "benchmark generation: lengths: got 300, expected a multiple of block_size 64"),
        (["--lengths", "64", "64"], "benchmark generation: lengths: got 64, 64, expected each length once"),
        (["--block-size", "0"], "benchmark generation: block_size: got 0, expected at least 1"),
        (["--full-repeats", "0"], "benchmark generation: full_repeats: got 0, expected at least 1"),
        (["--steps", "0"], "benchmark generation: steps: got 0, expected at least 1"),
        (["--denoisers", "mmba"], "denoisers: no variant 'mmba'; expected one of"),
        (["--denoisers", "mamba", "mamba"], "benchmark generation: denoisers: got mamba twice, expected each denoiser"),
        (["--denoisers", "dimba"], "denoisers: got dimba, which tells every block of the whole prompt; expected"),
        (["--autoregressive", "rnn"], "autoregressive: no variant 'rnn'; expected one of"),
        (["--full-limit", "100"], "full_limit: got 100, which leaves the whole-text arms none of the lengths 256, 512"),
        (["--d-model", "100"], "benchmark: d_model: got 100: 'transformer' refuses: head_dim: got 64"),
        (["--denoisers", "hybrid", "--layers", "3"], "benchmark: layers: got 3: 'hybrid' refuses: pattern: 'MMMMMA'"),
        (["--d-model", "64", "--layers", "3"], "'hybrid': at d_model 64 no MLP width (multiples of 8) comes within"),
        (["--d-model", "64", "--layers", "3"], " with 6 blocks; expected more --layers, another --d-model, or a "),
        (["--precision", "float16"], "argument --precision: invalid choice: 'float16'"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    assert message in place.refused("benchmark", "generation", *arguments)
