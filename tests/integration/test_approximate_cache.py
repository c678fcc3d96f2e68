"""A run whose cache is an approximation says so wherever its numbers and texts are shown; one block is no block."""

import pytest

FULL = [
    "denoiser={name: mamba, n_layers: 1, mixer: {reverse_scan: full, inner: {head_dim: 16, d_state: 8}}}",
    "block_size=8",
    "training.steps=2",
]
SAID = (
    "the cache is approximate (reverse_scan: full): the likelihood is of the model without it, text is written with it"
)


@pytest.fixture(scope="module")
def runs(shared):
    """A run with a full reverse scan, and one without."""
    shared.train("full", *FULL)
    shared.train("inside", *FULL, "denoiser.mixer.reverse_scan=block")
    return "full", "inside"


def test_evaluate_says_it_of_the_run_and_of_a_difference(shared, runs):
    full, inside = runs
    out = shared.command("evaluate", full).out
    assert "; block_size 8; cache approximate (reverse_scan: full)\n" in out and f"  caution     {SAID}\n" in out
    assert "approximate" not in shared.command("evaluate", inside).out
    found = shared.json("evaluate", full, inside)["manifest"]
    assert found["difference"]["comparable"] and found["difference"]["caution"] == SAID
    kinds = [run["kind"]["depends_on"].get("cache") for run in found["runs"]]
    assert kinds == ["approximate (reverse_scan: full)", None]
    assert shared.result(full)["kind"] == found["runs"][0]["kind"]


def test_generate_says_it(shared, runs):
    full, inside = runs
    done = shared.command("generate", full)
    assert done.code == 0 and done.err.startswith(f"{SAID}\n") and SAID not in done.out
    assert SAID not in shared.command("generate", inside).err
    caches = [shared.json("generate", run, "--length", 75)["cache"] for run in runs]
    assert caches == ["approximate (reverse_scan: full)", "exact"]
    assert "cache" not in shared.json("generate", "run")


def test_describe_says_it_and_counts_what_it_costs(shared):
    inside, full = (
        shared.json("describe", "tiny.yaml", *FULL, *more) for more in (["denoiser.mixer.reverse_scan=block"], [])
    )
    assert (inside["cache"], full["cache"]) == ("exact", "approximate (reverse_scan: full)")
    assert full["FLOPs per token, forward"] > inside["FLOPs per token, forward"]
    assert "cache" not in shared.json("describe", "tiny.yaml")


def test_the_card_names_the_blocks_and_says_it(shared, runs):
    rows = [f"| blocks | 8 tokens each, left to right; {what} |" for what in (SAID, "the cache is exact")]
    for run, row in zip(runs, rows, strict=True):
        assert shared.command("convert", "run", run, "--out", f"card-of-{run}").code == 0
        assert row in (shared.folder / f"card-of-{run}" / "README.md").read_text()
    assert shared.command("convert", "run", "run", "--out", "card-of-run").code == 0
    assert "| blocks |" not in (shared.folder / "card-of-run" / "README.md").read_text()


@pytest.mark.parametrize("more", [[], [*FULL[:1]]])
def test_one_block_is_refused(shared, more):
    line = shared.refused("train", "tiny.yaml", "run=one", *more, "block_size=32")
    assert "block_size: got 32, which is data.length: one block is the whole text" in line
    assert "expected a smaller divisor, or 0 for the whole text at once" in line
