"""DIMBA's loss, anchored and literal, against formulas written here a second time; the vector readout."""

import math
from dataclasses import dataclass

import pytest
import torch

from diffusion_lm.config import config_class, from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig
from diffusion_lm.model import DenoisingModel, ModelConfig, model_parameters
from diffusion_lm.noisy import Batch, Noisy
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.objectives.dimba import Dimba, DimbaConfig
from diffusion_lm.objectives.dimba_literal import DimbaLiteral, DimbaLiteralConfig
from diffusion_lm.processes.gaussian import Gaussian, GaussianConfig
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.random import Noise, Stream
from diffusion_lm.readouts import Prediction, Vector
from diffusion_lm.schedules.cosine import Cosine, CosineConfig

V, D, ROWS, LENGTH = 5, 4, 8, 6
WIDE = (10.0, -20.0)
WHOLE = (30.0, -40.0)  # leaves out next to nothing of a schedule


def process_of(ends: tuple[float, float] = WIDE) -> Gaussian:
    return Gaussian(GaussianConfig(log_snr_max=ends[0], log_snr_min=ends[1]), Cosine(CosineConfig()), V)


def made(kind: type, config, ends: tuple[float, float] = WIDE, **prompt):
    """An objective, without prompts unless they are asked for."""
    return kind(config, process_of(ends), PromptConfig(**{"fraction": 0.0, **prompt}), TrainingNoise(0, ROWS))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BATCH = Batch(random(ROWS, LENGTH).argsort(1) % V, torch.arange(ROWS))


class Says(DenoisingModel):
    """A model that says what it was told to, and keeps what it was shown."""

    def __init__(self, said, vectors: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.said, self.vectors, self.seen, self.self_conditioning = said, vectors, [], 0.0

    def table(self) -> torch.Tensor:
        return self.vectors

    def forward(self, noisy: Noisy):
        self.seen.append(noisy)
        return self.said


@dataclass(frozen=True)
class Fixed:
    """Training noise at times and with weights that a test chose."""

    t: torch.Tensor
    weight: torch.Tensor

    def times(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.t, self.weight

    def noise(self, position: torch.Tensor) -> Noise:
        return Noise(0, position)

    def mean_of_step(self, position, value):
        """As if the rows were a global batch."""
        return value(position).mean().expand(len(position))


def at_fixed_times(objective):
    """The objective, at the times of `fixed`."""
    objective.training_noise = fixed()
    return objective


def fixed() -> Fixed:
    t = (torch.arange(ROWS, dtype=torch.float64).unsqueeze(1) + 0.25) / ROWS
    return Fixed(t, 1 + t)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_the_anchored_loss_is_squared_error_and_cross_entropy(anchor):
    logits, vectors = random(ROWS, LENGTH, V, seed=1), random(V, D, seed=2)
    objective = at_fixed_times(made(Dimba, DimbaConfig(cross_entropy=anchor)))
    loss = objective(Says(Prediction(logits), vectors), BATCH)
    p = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
    estimate = torch.einsum("blv,vd->bld", p, vectors.double())
    wanted = 0.0
    for row in range(ROWS):
        for place, token in enumerate(BATCH.tokens[row].tolist()):
            error = ((vectors[token].double() - estimate[row, place]) ** 2).sum() / D
            entropy = -p[row, place, token].log()
            wanted += float((error + anchor * entropy) * (1 + fixed().t[row, 0])) / (ROWS * LENGTH)
    assert float(loss.loss) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_the_literal_loss_is_squared_error_and_its_anchor_a_softmax_of_distances(anchor):
    said, vectors = random(ROWS, LENGTH, D, seed=1), random(V, D, seed=2)
    objective = at_fixed_times(made(DimbaLiteral, DimbaLiteralConfig(cross_entropy=anchor)))
    loss = objective(Says(Vector(said, vectors), vectors), BATCH)
    apart = ((said.double().unsqueeze(2) - vectors.double()) ** 2).sum(-1)
    log_p = torch.log_softmax(-apart / 2, -1)
    own = BATCH.tokens.unsqueeze(-1)
    each = apart.gather(-1, own).squeeze(-1) / D - anchor * log_p.gather(-1, own).squeeze(-1)
    wanted = (each * (1 + fixed().t)).mean()
    assert float(loss.loss) == pytest.approx(float(wanted), rel=1e-5)


def abar(steps: int) -> list[float]:
    """Nichol and Dhariwal's, with beta clipped at 0.999: the product written out, from the whole cosine."""
    f = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    product, found = 1.0, []
    for k in range(1, steps + 1):
        product *= 1 - min(1 - f[k] / f[k - 1], 0.999)
        found.append(product)
    return found


def test_the_literal_form_has_whole_steps_and_clips_beta_once():
    """The last step would take all signal away."""
    objective = made(DimbaLiteral, DimbaLiteralConfig(), WHOLE)
    t = torch.tensor([[0.0], [0.0009], [0.0011], [0.5], [0.9985], [0.9995]], dtype=torch.float64)
    wanted = [abar(1000)[k - 1] for k in (1, 1, 2, 500, 999, 1000)]
    assert wanted[-1] == pytest.approx(2.4e-9, rel=0.05)
    found = torch.sigmoid(objective.log_snr_of_step(t)).squeeze(1)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=2e-5, atol=0)


def test_the_literal_form_shows_states_of_these_steps():
    vectors = random(V, D, seed=2)
    model = Says(Vector(random(ROWS, LENGTH, D), vectors), vectors)
    objective = at_fixed_times(made(DimbaLiteral, DimbaLiteralConfig(timesteps=10), WHOLE))
    objective(model, BATCH)
    a = torch.tensor([abar(10)[math.ceil(float(t) * 10) - 1] for t in fixed().t])[:, None, None]
    eps = Noise(0, BATCH.position).normal(Stream.CORRUPT, LENGTH, D)
    wanted = a.sqrt() * vectors[BATCH.tokens] + (1 - a).sqrt() * eps
    torch.testing.assert_close(model.seen[0].x.double(), wanted.double(), rtol=1e-5, atol=1e-5)


def test_a_vector_is_rounded_to_the_nearest_token():
    said, vectors = random(ROWS, LENGTH, D, seed=3), 2 * random(V, D, seed=4)
    nearest = torch.cdist(said.flatten(0, 1), vectors).argmin(1).view(ROWS, LENGTH)
    assert len(nearest.unique()) > 2
    decoded = process_of().decode(said, Vector(said, vectors), Noise(0, torch.arange(ROWS)))
    assert torch.equal(decoded, nearest)


def test_what_is_reported_instead_of_a_bound():
    vectors = random(V, D, seed=4)
    said = vectors[BATCH.tokens].clone()
    said[:, :2] = vectors[(BATCH.tokens[:, :2] + 1) % V]
    objective = made(DimbaLiteral, DimbaLiteralConfig(), fraction=1.0)
    model, noise = Says(Vector(said, vectors), vectors), Noise(1, BATCH.position)
    assert objective.bound(model, BATCH, noise, 2) is None
    found = objective.measures(model, BATCH, noise, 2)
    assert len(model.seen) == 2
    assert all(noisy.given is None and noisy.answer is None for noisy in model.seen)
    torch.testing.assert_close(found["rounding_accuracy"], torch.full((ROWS,), 1 - 2 / LENGTH))
    apart = (vectors[BATCH.tokens] - said).square().sum(-1).mean(1) / D
    torch.testing.assert_close(found["mse"], apart)
    for row, spread in zip(BATCH.tokens, found["embedding_spread"], strict=True):
        own = vectors[row]
        torch.testing.assert_close(spread, ((own - own.mean(0)) ** 2).mean().sqrt())


def real(readout: str = "vector", **config) -> DenoisingModel:
    torch.manual_seed(0)
    denoiser = config_class("denoisers", "dimba")(n_layers=1)
    return DenoisingModel(ModelConfig(d_model=64, embedding_dim=D, **config), denoiser, process_of(), readout)


def shaken(model: DenoisingModel) -> DenoisingModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def test_the_vector_model_says_a_vector_and_counts_as_predicted():
    model = shaken(real())
    said = model(Noisy(random(ROWS, LENGTH, D), torch.full((ROWS, 1), 0.5)))
    assert said.x_0.shape == (ROWS, LENGTH, D)
    assert torch.equal(said.table, model.table())
    predicted = model_parameters(model.config, model.denoiser.config, model.process, "vector")
    assert model.count()["total"] == predicted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("fixed_norm", "norms"), [(True, [2.0] * V), (False, [1.0, 2.0, 3.0, 4.0, 5.0])])
def test_embeddings_have_a_fixed_norm_unless_they_are_free(fixed_norm, norms):
    model = real(normalise_embeddings=fixed_norm)
    with torch.no_grad():
        model.embed.weight.copy_(torch.nn.functional.normalize(random(V, D)) * torch.arange(1, V + 1).unsqueeze(1))
    torch.testing.assert_close(model.table().norm(dim=1), torch.tensor(norms))


@pytest.mark.parametrize("leak", [False, True])
def test_a_leaking_prompt_encoder_tells_each_position_its_answer_in_training_alone(leak):
    model = shaken(real())
    objective = made(DimbaLiteral, DimbaLiteralConfig(), leak=leak)
    noise, x_0 = Noise(0, BATCH.position), model.table()[BATCH.tokens].detach()
    other = x_0.clone()
    other[:, 3] += 1.0
    log_snr = torch.zeros(ROWS, 1, dtype=torch.float64)
    state = Noisy(random(ROWS, LENGTH, D), objective.process.level_of(log_snr))
    first, second = (model(Noisy(state.x, state.noise_level, answer=answer)).x_0 for answer in (x_0, other))
    assert not torch.allclose(first[:, 3], second[:, 3], atol=1e-3)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    objective(model, BATCH)
    objective.measures(model, BATCH, noise, 1)
    assert (seen[0].answer is not None) == leak
    assert not leak or torch.equal(seen[0].answer, x_0)
    assert seen[1].answer is None


@pytest.mark.parametrize(
    "tree",
    [
        {"objective": "dimba_literal", "denoiser": "transformer"},
        {"objective": "masked", "denoiser": "dimba"},
    ],
)
def test_a_leak_needs_a_prompt_encoder_and_a_gaussian_objective(tree):
    with pytest.raises(UserError) as refused:
        from_tree(ExperimentConfig, {**tree, "prompt": {"leak": True}})
    assert str(refused.value) == (
        f"prompt.leak: got true for denoiser '{tree['denoiser']}' and objective '{tree['objective']}'; expected a "
        "prompt encoder (dimba) and a Gaussian objective, or false"
    )


@pytest.mark.parametrize("level", [1.0, 0.0])
def test_recoverable_share_counts_times_above_the_recoverability_point(level):
    """V = 5 vectors of squared norm R^2 = 4: the point is a signal-to-noise ratio of 2 ln 5 / 4, a log of -0.217."""
    vectors = torch.nn.functional.normalize(random(V, D)) * 2
    objective = at_fixed_times(made(Dimba, DimbaConfig(), (level, level - 2.0)))
    loss = objective(Says(Prediction(random(ROWS, LENGTH, V)), vectors), BATCH)
    log_snr = objective.process.log_snr(fixed().t)
    share = (log_snr > math.log(2 * math.log(5) / 4)).double().mean()
    assert 0 < float(share) < 1
    assert float(loss.terms["recoverable_share"]) == pytest.approx(float(share))
