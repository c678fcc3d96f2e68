"""benchmark scan: what it measures, how, and what it prints."""

import sys
from importlib.util import find_spec

import pytest
import torch

from diffusion_lm.benchmark import scan
from diffusion_lm.benchmark.scan import ScanConfig

TINY = {"batch": 1, "length": 64, "heads": 2, "head_dim": 16, "d_state": 8, "chunk_size": 16, "repeats": 1}
NAMES = [scan.REFERENCE, scan.OWN, scan.HALF, "causal", "causal block", "bidirectional", "bidirectional block"]


def test_every_variant_is_measured_and_the_ratios_are_of_the_seconds():
    found = scan.measure(ScanConfig(**TINY, threads=1))
    names = NAMES if find_spec("mamba_ssm") else NAMES[1:]
    for key in ("forward", "forward and backward"):
        seconds, ratios = found["seconds"][key], found["ratios"][key]
        assert list(seconds) == names
        assert all(value > 0 for value in seconds.values())
        assert ratios["bfloat16 over float32"] == seconds["scan"] / seconds["scan, bfloat16"]
        assert ratios["bidirectional over causal"] == seconds["bidirectional"] / seconds["causal"]
    text = scan.table({**found, "git": "abc"})
    both = found["seconds"]["forward and backward"]["scan"]
    assert f"| scan | {found['seconds']['forward']['scan']:.4f} | {both:.4f} |" in text
    for word in (found["machine"], torch.__version__, "1 threads", "commit abc", "kernel torch"):
        assert word in text


@pytest.mark.mamba_ssm
@pytest.mark.parametrize("groups", [1, 2])
def test_both_scans_compute_the_same(groups):
    if find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed: make mamba-ssm")
    before = set(sys.modules)
    found = scan.variants(ScanConfig(**TINY, n_groups=groups))
    assert not {name for name in set(sys.modules) - before if name.startswith(("mamba_ssm", "selective_scan"))}
    theirs, own, half = (found[name][0]() for name in NAMES[:3])
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    assert (half.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "0"], "benchmark scan: heads: got 0, expected at least 1"),
        (["--length", "100"], "benchmark scan: length: got 100, expected a multiple of chunk_size 64"),
        (["--n-groups", "3"], "benchmark scan: heads: got 16 of 64 channels in 3 groups, expected a multiple"),
        (["--kernel", "mamba_ssm"], "benchmark scan: kernel: got mamba_ssm, but "),
    ],
)
def test_bad_input_is_one_line(place, arguments, message):
    assert message in place.refused("benchmark", "scan", *arguments)
