"""The denoising model over every process: probabilities, counts, precision, given positions."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lm.config import config_class, part_class, variants
from diffusion_lm.model import (
    DenoisingModel,
    ModelConfig,
    embedding_parameters,
    model_flops_per_token,
    model_parameters,
)
from diffusion_lm.noisy import Noisy

PROCESSES, LENGTH = variants("processes"), 8


def schedule_for(process: str) -> str:
    objectives = [part_class(config_class("objectives", name)()) for name in variants("objectives")]
    return next(o.default_schedule for o in objectives if process in o.processes)


@pytest.fixture(params=PROCESSES)
def process(request, tools):
    return tools.process_of(request.param, schedule_for(request.param), 11)


def noisy_batch(process, model, tools, t: float = 0.5, rows: int = 3, given: torch.Tensor | None = None) -> Noisy:
    tokens = torch.randint(process.vocabulary, (rows, LENGTH), generator=torch.Generator().manual_seed(2))
    times = torch.full((rows, 1), t, dtype=torch.float64)
    with torch.no_grad():
        x_0 = process.encode(tokens, model.table())
        x_t = process.corrupt(x_0, times, tools.rows_noise(rows))
    return Noisy(x_t, process.noise_level(times), given)


def configs() -> list[ModelConfig]:
    return [ModelConfig(d_model=64, embedding_dim=4, pad_vocabulary_to=padding) for padding in (1, 8)] + [
        ModelConfig(d_model=64, embedding_dim=6, output_prior=False),
        ModelConfig(d_model=64, local_estimate=False),
        ModelConfig(d_model=64, self_conditioning=0.25),
        ModelConfig(d_model=64, embedding_dim=4, tie_head=True),
        ModelConfig(d_model=64, embedding_dim=6, tie_head=True, pad_vocabulary_to=1),
    ]


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_mask_and_padded_ids_have_probability_0(process, tools, t):
    model = tools.shaken(tools.small_model(process), size=1.0)
    prediction = model(noisy_batch(process, model, tools, t))
    assert prediction.logits.dtype == torch.float32
    assert prediction.logits.shape[-1] % model.config.pad_vocabulary_to == 0
    assert prediction.logits.shape[-1] > process.vocabulary
    assert (prediction.probabilities()[..., process.vocabulary :] == 0).all()
    assert (prediction.logits[..., process.vocabulary :] == -torch.inf).all()
    torch.testing.assert_close(prediction.probabilities().sum(-1), torch.ones(3, LENGTH))
    assert prediction.logits[..., : process.vocabulary].isfinite().all()


def test_the_token_table_covers_every_symbol_a_state_can_hold(process, tools):
    model = tools.shaken(tools.small_model(process), size=1.0)
    assert len(model.table()) == process.symbols
    if not process.discrete:
        norms = model.table().square().sum(1)
        torch.testing.assert_close(norms, torch.full_like(norms, model.table().shape[1]))


@pytest.mark.parametrize("denoiser", variants("denoisers"))
def test_parameters_are_predicted(process, denoiser):
    for config in configs():
        trunk = config_class("denoisers", denoiser)()
        count = DenoisingModel(config, trunk, process).count()
        assert count["total"] == count["embedding"] + count["non_embedding"]
        assert model_parameters(config, trunk, process) == count["total"]
        assert embedding_parameters(config, process) == count["embedding"]


def test_operations_outside_the_trunk_are_predicted(process, tools):
    """Matrix products of model minus trunk; the trunk's own are in test_denoisers."""
    for config in configs():
        trunk = config_class("denoisers", "transformer")(
            n_layers=1, conditioning=config_class("conditioning", "none")()
        )
        model = DenoisingModel(config, trunk, process)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(noisy_batch(process, model, tools, rows=1))
        assert counter.get_total_flops() == model_flops_per_token(config, trunk, process, LENGTH) * LENGTH


def test_bfloat16_moves_the_logits_by_its_own_error_only(process, tools):
    """Near t = 0 a Gaussian state's evidence for its token is a large number; in bfloat16 it would be wrong by nats."""
    model = tools.small_model(process)
    noisy = noisy_batch(process, model, tools, t=0.0)
    plain = model(noisy).probabilities().log()
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(noisy)
        logits = cast.probabilities().log()
    assert cast.logits.dtype == torch.float32
    allowed = slice(None, process.vocabulary)
    torch.testing.assert_close(logits[..., allowed], plain[..., allowed], rtol=1e-4, atol=1e-3)


def test_where_everything_is_given_the_noise_level_changes_nothing(process, tools):
    """Given positions are clean: their noise level is 0, whatever the row's."""
    model = tools.shaken(tools.small_model(process))
    given = torch.ones(3, LENGTH, dtype=torch.bool)
    clean = noisy_batch(process, model, tools, t=0.0, given=given)
    level = clean.noise_level
    low, high = (model(Noisy(clean.x, torch.full_like(level, v), given)).logits for v in (0.1, 0.9))
    torch.testing.assert_close(low, high)


def test_given_positions_are_marked(process, tools):
    model = tools.shaken(tools.small_model(process))
    given = torch.zeros(3, LENGTH, dtype=torch.bool)
    given[:, :2] = True
    noisy = noisy_batch(process, model, tools)
    marked = model(Noisy(noisy.x, noisy.noise_level, given)).logits
    if process.shifted:  # every prefix is a prompt there, and needs no marker
        assert torch.equal(marked, model(noisy).logits)
        return
    assert not torch.allclose(marked[:, 3:], model(noisy).logits[:, 3:])
    with torch.no_grad():
        model.given += 1.0
    assert not torch.allclose(model(Noisy(noisy.x, noisy.noise_level, given)).logits[:, :2], marked[:, :2], atol=1e-3)
    nothing = model(Noisy(noisy.x, noisy.noise_level, torch.zeros_like(given))).logits
    torch.testing.assert_close(nothing, model(noisy).logits)


def test_a_row_alone_is_the_row_in_the_batch(process, tools):
    model = tools.shaken(tools.small_model(process)).eval()
    noisy = noisy_batch(process, model, tools)
    alone = model(Noisy(noisy.x[1:2], noisy.noise_level[1:2])).logits
    torch.testing.assert_close(alone, model(noisy).logits[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", ["d_model", "embedding_dim", "pad_vocabulary_to"])
def test_sizes_below_1_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: got 0, expected at least 1"):
        ModelConfig(**{field: 0})


def test_token_vectors_start_at_the_size_that_the_config_says(tools):
    process = tools.process_of("masked", "log_linear", 400)
    for size in (0.02, 1.0):
        torch.manual_seed(0)
        denoiser = config_class("denoisers", "transformer")(n_layers=1)
        model = DenoisingModel(ModelConfig(d_model=64, token_std=size), denoiser, process)
        weight = model.embed.weight.detach()
        assert abs(float(weight.std()) / size - 1) < 4 / (2 * weight.numel()) ** 0.5
    with pytest.raises(ValueError, match=r"token_std: got 0\.0, expected a positive number"):
        ModelConfig(token_std=0.0)
