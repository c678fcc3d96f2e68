"""The studies that the project ships: they are read, their designs are whole, their cells build and have the size that
the header claims, the header says what a person has to know, and a small trial of each is trained.
"""

import re
from itertools import product
from math import prod
from pathlib import Path

import pytest
import yaml

from sweeps.definition import design, study

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").rglob("*.yaml"))
IDS = [str(path.relative_to(ROOT / "sweeps").with_suffix("")) for path in FILES]
HEADINGS = ("Question", "Known", "Matched", "Cost", "Run")
PEAK, SHARE = 989e12, 0.40  # FLOP/s of an H100 in dense bfloat16 (NVIDIA's data sheet), and the share that is reached
UNITS = {"thousand": 1e3, "M": 1e6, "B": 1e9}
every_study = pytest.mark.parametrize("path", FILES, ids=IDS)


def header(path):
    """{heading: text} of the comment that a study begins with: ``# Heading: text``, more lines indented by two."""
    found = {}
    for line in path.read_text().splitlines():
        if not line.startswith("# "):
            break
        if begins := re.match(r"# ([A-Z][a-z]+): (.*)", line):
            heading, text = begins.groups()
            found[heading] = text
        else:
            assert line.startswith("#   "), f"{path}: {line}"
            found[heading] += " " + line[2:].strip()
    return found


def raw(path):
    """The file over the one that it extends, as far as a count of cells needs: arms and space by key, seeds whole."""
    tree = yaml.safe_load(path.read_text())
    if "extends" not in tree:
        return tree
    below = raw((path.parent / tree["extends"]).resolve())
    for key in ("arms", "space"):
        both = {**(below.get(key) or {}), **(tree.get(key) or {})}
        tree[key] = {name: value for name, value in both.items() if value is not None}
    return {**below, **tree}


def cells(config):
    """The parameters of every cell, each once."""
    found = []
    for row in design.rows(config):
        if row.params not in found:
            found.append(row.params)
    return found


@every_study
def test_the_header_says_what_is_asked_known_matched_and_how_it_is_run(path):
    said = header(path)
    assert set(HEADINGS) <= set(said), f"{path}: missing {set(HEADINGS) - set(said)}"
    assert "?" in said["Question"] or path.parent.name == "paper"
    assert f"SLURM/sweep.sh sweeps/{path.relative_to(ROOT / 'sweeps')}" in said["Run"]


@every_study
def test_every_combination_of_arms_choices_and_seeds_is_one_trial(path):
    tree = raw(path)
    axes = [tree.get("arms") or [None], *(tree.get("space") or {}).values(), tree.get("seeds") or [None]]
    rows = design.rows(study.load(path))
    assert len(rows) == prod(map(len, axes))
    assert int(re.match(r"(\d+) trials", header(path)["Cost"])[1]) == len(rows)
    seen = {(tuple(row.params.values()), row.seed) for row in rows}
    first = len(tree.get("arms") or {}) > 0
    axes = axes if first else axes[1:]
    assert seen == {(values[:-1], values[-1]) for values in product(*map(tuple, axes))}


def test_the_paper_sizes_have_the_same_arms_and_factors_as_the_small_ones():
    for path in FILES:
        if path.parent.name != "paper":
            continue
        small, large = study.load(ROOT / "sweeps" / path.name), study.load(path)
        assert set(small.arms) <= set(large.arms) and list(small.space) == list(large.space), path
        assert small.name != large.name and large.experiment.startswith("diffumamba/")


def test_the_table_in_the_docs_has_every_study():
    table = (ROOT / "docs" / "ablations.md").read_text()
    for path, name in zip(FILES, IDS, strict=True):
        if path.parent.name != "paper":
            assert f"`{name}`" in table, name
        trials = header(path)["Cost"].split()[0]
        assert re.search(rf"sweeps/{name}\.yaml.*\| {trials} \|", table), f"{name}: its {trials} trials"


@pytest.mark.slow
@every_study
def test_every_cell_builds_and_has_the_size_and_the_cost_of_the_header(path):
    from diffusion_lm.commands.describe import describe
    from diffusion_lm.experiment import load

    config, said = study.load(path), header(path)
    found = [describe(load(config.experiment, design.overrides(config, params, 0))) for params in cells(config)]
    counts = [facts["parameters, non-embedding"] for facts in found]
    if claimed := re.match(r"([\d.]+) (M|thousand) parameters", said["Matched"]):
        size = float(claimed[1]) * UNITS[claimed[2]]
        assert max(abs(count / size - 1) for count in counts) < 0.005
        assert "within 0.5 %" in said["Matched"]
    assert max(counts) / min(counts) < 1.005
    times = len(design.rows(config)) // len(found)
    flops = times * sum(facts["FLOPs planned"] for facts in found)
    number, unit, cost = re.match(r"\d+ trials of ([\d.]+) (\w+) tokens, ([\d.e+]+) FLOPs", said["Cost"]).groups()
    for facts in found:
        assert facts["tokens planned"] == pytest.approx(float(number) * UNITS[unit], rel=0.01)
    assert float(cost) == pytest.approx(flops, rel=0.01)
    if path.parent.name == "paper":
        hours = float(re.search(r"([\d,.]+) H100 hours", said["Cost"])[1].replace(",", ""))
        assert hours == pytest.approx(flops / (PEAK * SHARE) / 3600, abs=0.5)
    else:
        assert re.search(r"\d+ minutes of one CPU core", said["Cost"])
