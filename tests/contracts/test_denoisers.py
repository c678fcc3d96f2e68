"""Every denoiser under every conditioning that it allows: counts, what the noise level reaches, and that it learns."""

from dataclasses import fields

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.config import build, config_class, variants
from diffusion_lm.layers.stack import Residual
from diffusion_lm.noisy import Noisy

D_MODEL, ROWS = 64, 2


def allowed() -> list[tuple[str, str]]:
    """(denoiser, conditioning) of every pair that is not refused."""
    pairs = []
    for denoiser in variants("denoisers"):
        for conditioning in variants("conditioning"):
            try:
                config_class("denoisers", denoiser)(conditioning=config_class("conditioning", conditioning)())
            except ValueError:
                continue
            pairs.append((denoiser, conditioning))
    return pairs


PAIRS = allowed()


def gates(conditioning: str) -> bool:
    """Whether branches are shifted, scaled and gated."""
    return config_class("conditioning", conditioning).parts == 3


def modulates(conditioning: str) -> bool:
    """Whether the blocks are told the noise level position by position."""
    return bool(config_class("conditioning", conditioning).parts)


MODULATING = [c for c in variants("conditioning") if modulates(c)]
TELLING = [c for c in variants("conditioning") if modulates(c) or config_class("conditioning", c).positions]


def config_of(denoiser: str, conditioning: str, least: int = 1, **changes):
    """A config with as few layers as the variant takes."""
    cls = config_class("denoisers", denoiser)
    for n_layers in range(least, 20):
        try:
            return cls(n_layers=n_layers, conditioning=config_class("conditioning", conditioning)(), **changes)
        except ValueError:
            continue
    raise AssertionError(f"{denoiser} takes no number of layers up to 20")


def denoiser_of(config, seed: int = 0):
    torch.manual_seed(seed)
    return build(config, D_MODEL)


def noisy_of(level: float, length: int = 9, given: torch.Tensor | None = None, blocks: int = 1) -> Noisy:
    x = torch.zeros(ROWS, length, dtype=torch.long)
    return Noisy(x, torch.full((ROWS, blocks), level, dtype=torch.float64), given)


def hidden(length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, length, D_MODEL, generator=torch.Generator().manual_seed(seed))


def test_every_denoiser_and_every_conditioning_is_used():
    assert {d for d, _ in PAIRS} == set(variants("denoisers"))
    assert {c for _, c in PAIRS} == set(variants("conditioning"))


@pytest.mark.parametrize(("denoiser", "conditioning"), PAIRS)
@pytest.mark.parametrize("mlp_expansion", [0.0, 0.05, 1.0, 2.7])
def test_parameters_are_predicted(denoiser, conditioning, mlp_expansion):
    config = config_of(denoiser, conditioning, mlp_expansion=mlp_expansion)
    assert config.parameters(D_MODEL) == sum(p.numel() for p in denoiser_of(config).parameters())


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "conditioning"), PAIRS)
def test_operations_are_predicted_up_to_a_cost_per_row(denoiser, conditioning):
    """Matrix products: per position exactly, and per row (the conditioning's) at most two uses of each weight."""
    config = config_of(denoiser, conditioning)
    trunk, rest = denoiser_of(config), {}
    for extended in (64, 192):  # whole chunks of the scan, which fills the last one up
        length = extended - config.conditioning.positions
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            trunk(hidden(length), noisy_of(0.5, length))
        rest[extended] = counter.get_total_flops() - round(ROWS * length * config.flops_per_token(D_MODEL, length))
    mixers = {id(p) for m in trunk.modules() if isinstance(m, Residual) for p in m.inner.parameters()}
    outside = sum(p.numel() for p in trunk.parameters() if id(p) not in mixers)
    assert rest[64] == rest[192]
    assert 0 <= rest[64] <= ROWS * 2 * 2 * outside
    if conditioning == "none":
        assert rest[64] == 0


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "conditioning"), PAIRS)
@pytest.mark.parametrize("length", [1, 7, 17])
def test_shapes_of_odd_lengths(tools, denoiser, conditioning, length):
    trunk = tools.shaken(denoiser_of(config_of(denoiser, conditioning)))
    y = trunk(hidden(length), noisy_of(0.5, length))
    assert y.shape == (ROWS, length, D_MODEL)
    assert y.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "conditioning"), PAIRS)
def test_an_untrained_conditioning_changes_nothing(denoiser, conditioning):
    """Modulations start at zero: the identity where they gate, the plain trunk where they do not.

    A position that is put in is there from the start, but the same for every noise level.
    """
    trunk = denoiser_of(config_of(denoiser, conditioning))
    x = hidden()
    y = trunk(x, noisy_of(0.3))
    assert torch.equal(trunk(x, noisy_of(0.8)), y)
    if gates(conditioning):
        assert torch.equal(y, torch.nn.functional.layer_norm(x, x.shape[-1:]) if trunk.normalises else x)
        return
    extra = config_class("conditioning", conditioning).positions
    if extra:
        x = torch.cat((trunk.conditioning.project.bias.expand(ROWS, extra, -1), x), 1)
    for block in trunk.stack.blocks:
        for residual in filter(None, (block.mixer, block.mlp)):
            x = x + residual.inner(residual.norm(x))
    torch.testing.assert_close(y, x[:, extra:])


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "conditioning"), [p for p in PAIRS if p[1] in TELLING])
def test_the_noise_level_reaches_the_output(tools, denoiser, conditioning):
    trunk, x = tools.shaken(denoiser_of(config_of(denoiser, conditioning))), hidden()
    assert not torch.allclose(trunk(x, noisy_of(0.2)), trunk(x, noisy_of(0.9)), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("denoiser", "conditioning"), [p for p in PAIRS if p[1] in MODULATING])
def test_given_positions_are_conditioned_on_level_0(tools, denoiser, conditioning):
    trunk, x = tools.shaken(denoiser_of(config_of(denoiser, conditioning))), hidden()
    everything = torch.ones(ROWS, 9, dtype=torch.bool)
    y = trunk(x, noisy_of(0.2, given=everything))
    assert torch.equal(trunk(x, noisy_of(0.9, given=everything)), y)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", MODULATING)
def test_given_positions_are_told_what_a_clean_row_is_told(tools, conditioning):
    """Position by position: a branch without mixing sees level 0 where given, the row's own elsewhere."""
    part = build(config_class("conditioning", conditioning)(), D_MODEL)
    branch, inner = part.branch(), torch.nn.Linear(D_MODEL, D_MODEL)
    for module in (part, branch):
        tools.shaken(module)
    given = torch.tensor([[True, False, False, True], [False, True, False, False]])
    x = hidden(4)
    mixed = branch(inner, x, part.signal(noisy_of(0.7, 4, given)))
    clean, own = (branch(inner, x, part.signal(noisy_of(level, 4))) for level in (0.0, 0.7))
    torch.testing.assert_close(mixed, torch.where(given.unsqueeze(-1), clean, own))
    assert not torch.allclose(clean, own, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("conditioning", MODULATING)
def test_levels_of_blocks_reach_their_own_positions(tools, conditioning):
    part = build(config_class("conditioning", conditioning)(), D_MODEL)
    branch, inner = part.branch(), torch.nn.Identity()
    for module in (part, branch):
        tools.shaken(module)
    x, noisy = hidden(6), noisy_of(0.2, 6, blocks=2)
    noisy.noise_level[:, 1] = 0.9
    low, high = (branch(inner, x, part.signal(noisy_of(level, 6))) for level in (0.2, 0.9))
    torch.testing.assert_close(branch(inner, x, part.signal(noisy)), torch.cat((low[:, :3], high[:, 3:]), 1))


@torch.no_grad()
@pytest.mark.parametrize("conditioning", MODULATING)
def test_a_prompts_vector_reaches_the_branches(tools, conditioning):
    config = config_class("conditioning", conditioning)()
    part = build(config, D_MODEL)
    branch = part.branch()
    for module in (part, branch):
        tools.shaken(module)
    prompt = torch.randn(ROWS, config.channels, generator=torch.Generator().manual_seed(3))
    told = branch(torch.nn.Identity(), hidden(), part.signal(noisy_of(0.5), prompt))
    assert not torch.allclose(told, branch(torch.nn.Identity(), hidden(), part.signal(noisy_of(0.5))), atol=1e-3)
    nothing = branch(torch.nn.Identity(), hidden(), part.signal(noisy_of(0.5), torch.zeros_like(prompt)))
    torch.testing.assert_close(nothing, branch(torch.nn.Identity(), hidden(), part.signal(noisy_of(0.5))))


@torch.no_grad()
def test_dimbas_prompt_encoder_sees_given_positions_alone(tools):
    encoder = tools.shaken(denoiser_of(config_of("dimba", "film"))).prompt_encoder
    given = torch.tensor([[True, True, False, False], [False] * 4])
    x = hidden(4)
    other = x + (~given).unsqueeze(-1) * hidden(4, seed=5)
    torch.testing.assert_close(encoder(other, given), encoder(x, given))
    torch.testing.assert_close(encoder(x, given)[1], encoder.nothing)
    alone = encoder.out(torch.nn.functional.silu(encoder.hidden(x[0, :2])).mean(0))
    torch.testing.assert_close(encoder(x, given)[0], alone)


def steps_to_learn(tools, denoiser: str, conditioning: str, most: int = 300) -> int:
    """Adam steps until the hidden half of one small batch is known by heart: from ln 7 = 1.95 nats to below 0.05.

    Where the noise level shifts the last norm, 129 weights that all push one vector make Adam's steps there long.
    """
    process = tools.process_of("masked", "log_linear", 7)
    config = config_of(denoiser, conditioning, least=2)
    model = tools.small_model(process, denoiser, n_layers=config.n_layers, conditioning=config.conditioning)
    tokens = torch.randint(7, (4, 8), generator=torch.Generator().manual_seed(0))
    masked = torch.arange(8).expand(4, -1) % 2 == 1
    noisy = Noisy(tokens.masked_fill(masked, process.mask_id), torch.full((4, 1), 0.5, dtype=torch.float64))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4 if model.denoiser.normalises else 2e-3)
    for step in range(most):
        loss = torch.nn.functional.cross_entropy(model(noisy).logits[..., :7][masked], tokens[masked])
        if loss.item() < 0.05:
            return step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return most


FEW = sorted({(d, next(c for e, c in PAIRS if e == d)) for d, _ in PAIRS})


@pytest.mark.parametrize(("denoiser", "conditioning"), FEW)
def test_overfits_one_batch(tools, denoiser, conditioning):
    assert 1 < steps_to_learn(tools, denoiser, conditioning) < 300


@pytest.mark.slow
@pytest.mark.parametrize(
    ("denoiser", "conditioning"),
    [
        pytest.param(*pair, marks=pytest.mark.long if pair[0] != "mamba" else ())
        for pair in sorted(set(PAIRS) - set(FEW))
    ],
)
def test_overfits_one_batch_under_every_other_conditioning(tools, denoiser, conditioning):
    assert 1 < steps_to_learn(tools, denoiser, conditioning) < 300


def test_impossible_trunks_are_refused():
    hybrid, adaln = config_class("denoisers", "hybrid"), config_class("conditioning", "adaln")
    with pytest.raises(ValueError, match="pattern: got 'MMX', expected a string of M and A"):
        hybrid(pattern="MMX")
    with pytest.raises(ValueError, match="'MMMMMA' over 5 layers gives 'MMMMM', expected at least one Mamba"):
        hybrid(n_layers=5)
    with pytest.raises(ValueError, match="conditioning: got 'none', which leaves the prompt encoder no way in"):
        config_class("denoisers", "dimba")(conditioning=config_class("conditioning", "none")())
    for name in variants("denoisers"):
        with pytest.raises(ValueError, match="n_layers: got 0, expected at least 1"):
            config_class("denoisers", name)(n_layers=0)
        with pytest.raises(ValueError, match=r"mlp_expansion: got -1\.0, expected 0 or more"):
            config_class("denoisers", name)(mlp_expansion=-1.0)
    with pytest.raises(ValueError, match="channels: got 0, expected at least 1"):
        adaln(channels=0)


def test_an_empty_pattern_is_refused():
    with pytest.raises(ValueError, match="pattern: "):
        config_class("denoisers", "hybrid")(pattern="")


@pytest.mark.parametrize("name", variants("denoisers"))
def test_the_mixers_are_one_per_layer(name):
    config = config_class("denoisers", name)()
    assert len(config.mixers()) == config.n_layers == len(denoiser_of(config).stack.blocks)
    assert {"n_layers", "mlp_expansion", "conditioning"} <= {f.name for f in fields(config)}
