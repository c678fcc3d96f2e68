"""Sizes: the written rule by hand, arms that agree within half a percent, overrides that make them, refusals."""

import json
import shlex

import pytest

from diffusion_lm.__main__ import main
from diffusion_lm.commands.describe import describe, match
from diffusion_lm.config import config_class, from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, with_overrides
from diffusion_lm.sizing import arm_of, mlp_unit, parse_size, width_for

ARMS = ("transformer", "mamba", "hybrid", "dimba")
CAUSAL = {"name": "mamba", "mixer": "mamba2"}
NON_EMBEDDING, FLOPS = "parameters, non-embedding", "FLOPs per token, forward"


def experiment(**parts) -> ExperimentConfig:
    return from_tree(ExperimentConfig, {"data": {"tokenizer": "gpt2", "length": 1024}} | parts)


@pytest.mark.parametrize(
    ("text", "size"),
    [("240M", 240 * 10**6), ("0.5B", 5 * 10**8), ("1.3b", 13 * 10**8), ("12k", 12_000), ("2e6", 2 * 10**6), ("7", 7)],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "240 MB", "1.2.3M", "-5M", "0", "nan", "1e999", "240Mi"])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError) as refusal:
        parse_size(text)
    assert str(refusal.value) == f"--match: got '{text}', expected a number of parameters like 240M, 0.5B or 1200000"


def test_the_rules_numbers():
    """(64 N / 12)^(1/3) is 1085.8, 1386.7, 1906.8 and 174.7; units change at 100M and at 1B."""
    assert [width_for(size) for size in (240 * 10**6, 500 * 10**6, 1300 * 10**6, 10**6)] == [1024, 1408, 1920, 192]
    assert width_for(1000) == 64
    assert [mlp_unit(size) for size in (10**8 - 1, 10**8, 10**9 - 1, 10**9)] == [8, 32, 32, 64]


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("size", [20 * 10**6, 240 * 10**6, 1300 * 10**6])
def test_arms_agree_within_half_a_percent(size, mlp):
    found = match(experiment(denoiser={"name": "transformer", "mlp": mlp}), size, ARMS)
    assert tuple(arm["arm"] for arm in found) == ARMS
    counts = [arm[NON_EMBEDDING] for arm in found]
    assert max(counts) / min(counts) < 1.005
    assert all(abs(count / size - 1) <= 0.0025 for count in counts)
    assert len({arm["d_model"] for arm in found}) == 1
    assert len({arm["parameters"] - arm[NON_EMBEDDING] for arm in found}) == 1
    assert all(arm["mlp_width"] % mlp_unit(size) == 0 and arm["mlp_width"] > 0 for arm in found)
    hybrid = found[ARMS.index("hybrid")]
    assert hybrid["n_layers"] % 6 == 0  # whole groups of five Mamba blocks and an attention block


def test_no_other_depth_has_a_width_nearer_to_the_expansion():
    """The Transformer of 20 M by hand: every depth, every width, from the count of its parts."""
    size, d = 20_000_000, width_for(20_000_000)
    (found,) = match(experiment(), size)
    embedding = 64 * 128 + 128 + 128 * 128 + 128
    per_block, last = 4 * d * d + 2 * d + 6 * d * 129, 2 * d
    fitting = [
        (abs(width / d - 4) / 4 if width > 4 * d else abs(4 * d / width - 1), n, width)
        for n in range(1, 40)
        for width in range(8, 20 * d, 8)
        if abs((n * (per_block + 2 * d * width) + embedding + last) / size - 1) <= 0.0025
    ]
    _, n_layers, _ = min(fitting)
    assert found["n_layers"] == n_layers
    widths = [width for _, n, width in fitting if n == n_layers]
    assert found["mlp_width"] in widths
    count = n_layers * (per_block + 2 * d * found["mlp_width"]) + embedding + last
    assert found[NON_EMBEDDING] == count
    step = n_layers * 2 * d * 8
    assert abs(count - size) <= step / 2


def test_by_operations_the_others_have_those_of_the_first():
    found = match(experiment(), 240 * 10**6, ("transformer", "mamba", "dimba"), "flops")
    assert abs(found[0][NON_EMBEDDING] / (240 * 10**6) - 1) <= 0.0025
    head = 2 * 1024 * 50264  # 50,257 ids and the mask's, padded to a multiple of 8
    trunks = [arm[FLOPS] - head for arm in found]
    assert max(trunks) / min(trunks) < 1.005
    assert found[1][NON_EMBEDDING] / found[0][NON_EMBEDDING] > 1.005


def test_the_overrides_make_what_was_found():
    options = {"name": "mamba", "mlp": "swiglu", "mixer": {"inner": {"d_state": 128}}}
    config = experiment(denoiser=options)
    for arm in match(config, 50 * 10**6, ARMS):
        made = with_overrides(config, arm["overrides"])
        facts = describe(made)
        assert (facts["denoiser"], facts["d_model"]) == (arm["arm"], arm["d_model"])
        assert facts[NON_EMBEDDING] == arm[NON_EMBEDDING]
        assert made.denoiser.mlp == "swiglu"
        places = [text.partition("=")[0] for text in arm["overrides"]]
        assert {"model.d_model", "denoiser.n_layers", "denoiser.mlp_width"} <= set(places)
        scans = [mixer.inner.d_state for mixer in made.denoiser.mixers() if mixer.family() == "mamba"]
        assert set(scans) <= {128} and bool(scans) == (arm["arm"] != "transformer")


def test_an_arm_keeps_its_own_where_the_experiment_sets_nothing():
    own = config_class("denoisers", "transformer")()
    for name in ARMS:
        assert arm_of(name, own) == (own if name == "transformer" else config_class("denoisers", name)())
    dimba = config_class("denoisers", "dimba")()
    assert arm_of("mamba", dimba).conditioning == config_class("conditioning", "adaln")()
    assert arm_of("dimba", dimba) == dimba


@pytest.mark.parametrize(
    ("own", "name", "channels"), [("transformer", "film", 128), ("dimba", "film", 32), ("mamba", "additive", 64)]
)
def test_every_arm_has_the_conditioning_that_the_experiment_sets(own, name, channels):
    conditioning = {"name": name, "channels": channels}
    config = experiment(denoiser={"name": own, "conditioning": conditioning})
    for arm in match(config, 50 * 10**6, (own, *(other for other in ARMS if other != own))):
        made = with_overrides(config, arm["overrides"]).denoiser.conditioning
        assert (type(made), made.channels) == (config_class("conditioning", name), channels)
        assert describe(with_overrides(config, arm["overrides"]))["conditioning"] == name


def test_an_arm_without_conditioning_stands_beside_others_without():
    config = experiment(denoiser={"name": "transformer", "conditioning": "none"})
    for arm in match(config, 50 * 10**6, ("transformer", "mamba", "hybrid")):
        assert describe(with_overrides(config, arm["overrides"]))["conditioning"] == "none"


def test_d_model_may_be_chosen():
    for arm in match(experiment(), 10**6, ("transformer", "mamba"), d_model=128):
        assert arm["d_model"] == 128
        assert abs(arm[NON_EMBEDDING] / 10**6 - 1) <= 0.0025


@pytest.mark.parametrize(
    ("parts", "arguments", "line"),
    [
        (
            {"denoiser": {"name": "hybrid"}},
            (10**6,),
            "denoiser 'hybrid': at d_model 192 no MLP width (multiples of 8) comes within 0.25% of 1,000,000; its ",
        ),
        (
            {"denoiser": {"name": "mamba", "mlp_expansion": 0}},
            (10**6,),
            "denoiser 'mamba': mlp_expansion 0 leaves no MLP whose width could be solved for; set it to ",
        ),
        (
            {"denoiser": {"name": "transformer", "conditioning": "none"}},
            (10**7, ("transformer", "dimba")),
            "--arms: got 'dimba' beside 'transformer', whose options it is to have: conditioning: got 'none', which ",
        ),
        (
            {"denoiser": {"name": "mamba", "conditioning": "film"}},
            (10**7, ("mamba", "dit")),
            "--arms: got 'dit' beside 'mamba', whose options it is to have: conditioning: got 'film'; dit shifts, ",
        ),
        ({}, (10**6, ("transformer", "mambo")), "denoisers: no variant 'mambo'"),
        ({"name": "odd"}, (10**6, (), "parameters", 100), "odd: head_dim: got 64, expected a divisor of d_model 100"),
        (
            {"objective": "autoregressive", "sampler": "left_to_right", "denoiser": CAUSAL},
            (10**7, ("mamba", "transformer")),
            "objective 'autoregressive' needs a causal denoiser, and 'transformer' sees later positions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(parts, arguments, line):
    with pytest.raises(UserError) as refusal:
        match(experiment(**parts), *arguments)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)


def test_the_command_prints_lines_that_can_be_pasted(capsys):
    command = ["describe", "quickstart", "--match", "1M", "--d-model", "128"]
    assert main([*command, "--arms", "transformer,mamba", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["size"], said["counts"], said["by"]) == (10**6, "non-embedding parameters", "parameters")
    assert [arm["arm"] for arm in said["arms"]] == ["transformer", "mamba"]
    assert main([*command, "denoiser=mamba"]) == 0
    title, names, numbers, line = capsys.readouterr().out.splitlines()
    assert title == "1,000,000 parameters without token table and head: every arm, within 0.25%"
    assert names.split()[:2] == ["arm", "d_model"] and numbers.split()[:2] == ["mamba", "128"]
    name, _, overrides = line.partition(": ")
    assert name == "mamba"
    assert main(["describe", "quickstart", "denoiser=mamba", *shlex.split(overrides), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[NON_EMBEDDING] == said["arms"][1][NON_EMBEDDING]


def test_options_of_the_match_alone_are_refused():
    with pytest.raises(UserError, match=r"got --arms, --d-model or --match-by without a size; expected --match SIZE"):
        main(["describe", "quickstart", "--arms", "mamba"])
    with pytest.raises(UserError, match=r"--match-by flops: got 1 --arms, expected two at least; the first has"):
        main(["describe", "quickstart", "--match", "1M", "--match-by", "flops", "--arms", "mamba"])
