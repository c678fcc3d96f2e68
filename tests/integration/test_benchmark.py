"""The benchmark command: what it measures, how, and what it prints."""

import pytest
import torch

from diffusion_lm.benchmark import head, measure
from diffusion_lm.benchmark.head import HeadConfig

TINY = {"layers": 1, "d_model": 64, "batch": 4, "length": 128, "vocabulary": 2000, "repeats": 2}


@pytest.fixture
def found(monkeypatch):
    """A tiny measurement, memory of this process."""
    monkeypatch.setattr(head, "in_own_process", lambda function, *arguments: function(*arguments))
    return head.measure(HeadConfig(**TINY, threads=1))


def test_head_is_measured_against_all_rows(found):
    assert found["positions"] == 4 * 128
    assert 0.2 * 512 < found["rows"] < 0.8 * 512
    assert list(found["variants"]) == ["all rows", "all rows, in chunks", "scored rows"]
    first = found["variants"]["all rows"]
    for one in found["variants"].values():
        assert one["seconds"] > 0
        assert one["times_faster"] == first["seconds"] / one["seconds"]
        assert one["share_of_peak"] == one["peak_bytes"] / first["peak_bytes"]


def test_variants_train_alike():
    """All of them make the same step: only time and memory differ."""
    weights = {}
    for name in head.VARIANTS:
        training = head.Training(HeadConfig(**TINY))
        for number in range(2):
            training.step(name, training.batch(number))
        weights[name] = training.model.head.weight.detach()
    assert weights["all rows"].abs().max() > 0
    for one in weights.values():
        torch.testing.assert_close(one, weights["all rows"], rtol=1e-3, atol=1e-6)


def test_the_table_holds_the_numbers_and_what_they_depend_on(found):
    text = head.table({**found, "git": "abc"})
    scored = found["variants"]["scored rows"]
    assert f"| scored rows | {scored['seconds']:.3f} | {scored['times_faster']:.2f} |" in text
    for word in (found["machine"], torch.__version__, "1 threads", "commit abc", "precision float32", "VmHWM"):
        assert word in text


def test_rounds_are_interleaved_and_the_median_counts(monkeypatch):
    clock, ran = [0.0], []
    seconds = {"a": [100.0, 1.0, 7.0, 3.0], "b": [100.0, 5.0, 4.0, 6.0]}

    def step(name):
        def run(number):
            ran.append((number, name))
            clock[0] += seconds[name][number]

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    assert measure.interleaved({"a": step("a"), "b": step("b")}, 3, "cpu") == {"a": 3.0, "b": 5.0}
    assert ran == [(number, name) for number in range(4) for name in "ab"]
    ran.clear()
    assert measure.interleaved({"a": step("a"), "b": step("b")}, {"a": 1, "b": 3}.get, "cpu") == {"a": 1.0, "b": 5.0}
    assert ran == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "b"), (3, "b")]


def test_both_clocks_leave_uncounted_rounds_out_and_what_is_made_ready(monkeypatch):
    """A step takes 1, 2 and 5 s on the wall and half of that of the processor; making ready takes 100."""
    clock, ready, lengths = [0.0], [], iter([50.0, 1.0, 5.0, 2.0])

    def make_ready(name):
        ready.append(name)
        clock[0] += 100

    def step(number):
        clock[0] += next(lengths)

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0] / 2)
    assert measure.both_clocks({"a": step}, 3, "cpu", ready=make_ready) == {"wall": {"a": 2.0}, "processor": {"a": 1.0}}
    assert ready == ["a"] * 4


def peak_of(mebibytes: int) -> int:
    memory = measure.PeakMemory("cpu")
    torch.ones(mebibytes, 1 << 18).sum()
    return memory.bytes()


@pytest.mark.slow
def test_peak_memory_is_what_was_taken():
    """In a process of its own, whatever this one has taken before."""
    big = torch.ones(1 << 28)  # 1 GiB
    for mebibytes in (100, 300):
        assert 0.99 < measure.in_own_process(peak_of, mebibytes) / (mebibytes << 20) < 1.15
    del big


@pytest.mark.slow
def test_the_command(place):
    sizes = [text for name, value in TINY.items() for text in (f"--{name.replace('_', '-')}", value)]
    done = place.cold("benchmark", "head", *sizes, "--precision", "bfloat16")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "vocabulary 2000" in lines[0] and "precision bfloat16" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[-3:]] == list(head.VARIANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head", "--batch", "0"], "benchmark head: batch: got 0, expected at least 1"),
        (["head", "--threads", "-1"], "benchmark head: threads: got -1, expected at least 0"),
        (["head", "--device", "cuda"], "benchmark head: device: got cuda, but torch finds no GPU here; choose cpu"),
        (["head", "--precision", "float16"], "argument --precision: invalid choice: 'float16'"),
        (["heads"], "argument THING: invalid choice: 'heads'"),
        ([], "the following arguments are required: THING"),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert message in place.refused("benchmark", *arguments)
