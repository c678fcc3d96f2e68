"""Guidance by the prompt: its formula, the law of whole chains by enumeration, its network calls, and its refusals.

The world is two tokens with a joint distribution: the first is the prompt, the second is drawn. Everything that the
guided chain does with the second is a product of 3 x 3 (or 4 x 4) matrices, written down here anew.
"""

import math

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.errors import UserError
from diffusion_lm.model import DenoisingModel
from diffusion_lm.noisy import Noisy
from diffusion_lm.random import Noise
from diffusion_lm.readouts import Prediction, Scores, Vector
from diffusion_lm.samplers.base import Network, SamplerState, generate

V, PROMPT, EPS = 3, 1, 1e-3
JOINT = torch.tensor([[0.20, 0.05, 0.05], [0.06, 0.15, 0.09], [0.02, 0.08, 0.30]], dtype=torch.float64)
DISCRETE = ["masked", "uniform", "mask_uniform"]


def process_of(name: str, schedule: str = "log_linear"):
    return build(config_class("processes", name)(), build(config_class("schedules", schedule)()), V)


def kept_and_noise(name: str, t: float) -> tuple[float, torch.Tensor]:
    """alpha_t and the noise's mass on every state, the mask last: the papers' formulas over a = 1 - (1 - eps) t."""
    a = 1 - (1 - EPS) * t
    c = 2 * 0.1 / 0.9 * math.sqrt(max(a * (1 - a), 0.0))  # GIDD with p_u = 0.1, gamma = 1
    alpha, mask, token = {
        "masked": (a, 1 - a, 0.0),
        "uniform": (a, 0.0, (1 - a) / V),
        "mask_uniform": (a / (1 + c), (1 - a) / (1 + c), c / (1 + c) / V),
    }[name]
    return alpha, torch.tensor([token] * V + [mask], dtype=torch.float64)


def forward_matrix(name: str, t: float) -> torch.Tensor:
    """q_t(z | v). [V, V + 1]"""
    alpha, noise = kept_and_noise(name, t)
    return alpha * torch.eye(V, V + 1, dtype=torch.float64) + noise


def between_matrix(name: str, s: float, t: float) -> torch.Tensor:
    """q(z_t | z_s). [V + 1, V + 1]"""
    (a_s, b_s), (a_t, b_t) = kept_and_noise(name, s), kept_and_noise(name, t)
    return a_t / a_s * torch.eye(V + 1, dtype=torch.float64) + b_t - a_t / a_s * b_s


def guided(name: str, weight: float, t: float) -> list[tuple[float, torch.Tensor]]:
    """(probability of a hidden prompt c', p(v | c)^(1 + w) / p(v | c')^w) for every c' at time t."""
    shown = JOINT[PROMPT] / JOINT[PROMPT].sum()
    hidden = forward_matrix(name, t)
    found = []
    for z in range(V + 1):
        free = (JOINT * hidden[:, z : z + 1]).sum(0)
        if hidden[PROMPT, z] > 0:
            tilted = shown ** (1 + weight) / (free / free.sum()) ** weight
            found.append((float(hidden[PROMPT, z]), tilted / tilted.sum()))
    return found


def law_of_the_chain(name: str, weight: float, steps: int) -> torch.Tensor:
    """The distribution of the second token after `steps` guided reverse steps and the decoding."""
    _, noise = kept_and_noise(name, 1.0)
    state = noise / noise.sum()
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        after = torch.zeros(V + 1, dtype=torch.float64)
        for chance, p in guided(name, weight, t):
            joint = (p @ forward_matrix(name, s)).unsqueeze(1) * between_matrix(name, s, t)  # [x_s, x_t]
            after += chance * (joint / joint.sum(0).clamp(min=1e-300)) @ state
        state = after
    tokens = torch.zeros(V, dtype=torch.float64)
    for chance, p in guided(name, weight, 0.0):
        joint = p.unsqueeze(1) * forward_matrix(name, 0.0)
        tokens += chance * (joint / joint.sum(0).clamp(min=1e-300)) @ state
    return tokens


class Joint(DenoisingModel):
    """Knows JOINT: of the second token what the first shows, clean if it is given, else at the noise of its level."""

    def __init__(self, process, told: bool = False) -> None:
        torch.nn.Module.__init__(self)
        self.process, self.seen = process, []
        self.self_conditioning = 0.25 if told else 0.0

    def table(self) -> torch.Tensor:
        angle = 2 * math.pi * torch.arange(V, dtype=torch.float64) / V
        return math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1)

    def forward(self, noisy: Noisy) -> Prediction:
        self.seen.append(noisy)
        if noisy.given is not None:
            weight = torch.nn.functional.one_hot(noisy.x[:, 0], V).double()
        else:
            assert len(noisy.noise_level.unique()) == 1
            weight = forward_matrix(self.name(), self.time_of(float(noisy.noise_level[0, 0]))).T[noisy.x[:, 0]]
        log_p = torch.log(weight @ JOINT)  # not normalised, as a network's logits
        return Prediction(torch.stack((torch.zeros_like(log_p), log_p), 1))

    def name(self) -> str:
        return type(self.process).__module__.rpartition(".")[2]

    def time_of(self, level: float) -> float:
        """The time of a noise level 1 - alpha, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if 1 - kept_and_noise(self.name(), middle)[0] < level else (low, middle)
        return high


@pytest.mark.parametrize("weight", [0.0, 1.5])
@pytest.mark.parametrize("name", DISCRETE)
def test_the_chain_has_the_law_of_its_formula(toy, name, weight):
    rows, steps, process = 3000, 3, process_of(name)
    sampler = build(config_class("samplers", "ancestral")(num_steps=steps, guidance=weight), process)
    prompt, given = torch.tensor([[PROMPT, 0]]).expand(rows, -1), torch.tensor([[True, False]]).expand(rows, -1)
    sample = generate(sampler, Joint(process), Noise(5, torch.arange(rows)), 2, prompt, given)
    counts = torch.bincount(sample.tokens[:, 1], minlength=V).double()
    law = law_of_the_chain(name, weight, steps)
    assert float(law.sum()) == pytest.approx(1.0)
    assert (sample.tokens[:, 0] == PROMPT).all()
    assert toy.chi_square(counts, law) > 1e-4
    if weight:
        assert toy.chi_square(counts, law_of_the_chain(name, 0.0, steps)) < 1e-6


def network_of(process, model, weight: float, rows: int) -> Network:
    sampler = build(config_class("samplers", "ancestral")(num_steps=4, guidance=weight), process)
    clean = process.encode(torch.tensor([[PROMPT, 0]]).expand(rows, -1), model.table())
    given = torch.tensor([[True, False]]).expand(rows, -1)
    return Network(sampler, model, Noise(3, torch.arange(rows)), clean, given)


def test_a_gaussian_prediction_is_tilted_by_what_the_prompt_adds():
    """The second token's own noisy vector speaks once in the mixture: it is in both predictions."""
    rows, weight, process = 50, 2.0, process_of("gaussian", "cosine")

    class Posterior(Joint):
        def forward(self, noisy: Noisy) -> Prediction:
            self.seen.append(noisy)
            alpha = torch.sigmoid(process.log_snr(torch.full((1, 1), 0.4, dtype=torch.float64)))
            far = torch.cdist(noisy.x, alpha.sqrt() * self.table()).square()
            each = -far / (2 * (1 - alpha))  # ln q(x_t^i | v), given or not: a clean vector is all but certain
            first = torch.log(torch.nn.functional.one_hot(torch.full((rows,), PROMPT), V).double())
            first = first if noisy.given is not None else each[:, 0]
            second = torch.logsumexp(first.unsqueeze(2) + JOINT.log(), 1) + each[:, 1]
            return Prediction(torch.stack((first, second), 1))

    model = Posterior(process)
    x = torch.randn(rows, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = SamplerState(x, torch.full((rows,), 2), Noise(3, torch.arange(rows)), model.table())
    t = torch.full((rows, 1), 0.4, dtype=torch.float64)
    found = network_of(process, model, weight, rows).predict(state, t).prediction.probabilities()[:, 1]
    shown, free = (model.seen[i].x for i in (0, 1))
    assert torch.equal(shown[:, 1], x[:, 1])
    assert torch.equal(free[:, 1], x[:, 1])

    alpha = float(torch.sigmoid(process.log_snr(t[:1])))

    def likelihood(vector: torch.Tensor) -> torch.Tensor:
        normal = torch.distributions.Normal(math.sqrt(alpha) * model.table(), math.sqrt(1 - alpha))
        return normal.log_prob(vector.unsqueeze(1)).sum(-1).exp()

    own = likelihood(x[:, 1])
    p_shown = JOINT[PROMPT] * own
    p_free = (likelihood(free[:, 0]) @ JOINT) * own
    p_shown, p_free = (p / p.sum(1, keepdim=True) for p in (p_shown, p_free))
    expected = p_shown ** (1 + weight) / p_free**weight
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("name", [*DISCRETE, "gaussian"])
def test_the_second_call_sees_the_prompt_as_training_noises_it(name):
    rows, process = 4000, process_of(name, "cosine" if name == "gaussian" else "log_linear")

    class Blind(Joint):
        def forward(self, noisy: Noisy) -> Prediction:
            self.seen.append(noisy)
            return Prediction(torch.zeros(rows, 2, V, dtype=torch.float64))

    model, t = Blind(process), torch.full((rows, 1), 0.6, dtype=torch.float64)
    network = network_of(process, model, 1.0, rows)
    noise, index = Noise(4, torch.arange(rows)), torch.zeros(rows, dtype=torch.long)
    x = process.prior(torch.zeros(rows, 2, dtype=torch.long), model.table(), noise)
    network.predict(SamplerState(x, index, noise, model.table()), t)
    shown, hidden = model.seen
    assert hidden.given is None
    assert torch.equal(shown.given[0], torch.tensor([True, False]))
    assert torch.equal(hidden.noise_level, process.noise_level(t))
    assert torch.equal(shown.x[:, 0], process.encode(torch.full((rows, 1), PROMPT), model.table())[:, 0])
    if process.discrete:
        law = forward_matrix(name, 0.6)[PROMPT]
        share = torch.bincount(hidden.x[:, 0], minlength=V + 1) / rows
        assert ((share - law).abs() <= 4 * (law * (1 - law) / rows).sqrt()).all()
        return
    alpha = torch.sigmoid(process.log_snr(t[:1]))
    off = (hidden.x[:, 0] - alpha.sqrt() * model.table()[PROMPT]) / (1 - alpha).sqrt()
    assert (off.mean(0).abs() < 4 / rows**0.5).all()
    assert ((off.var(0) - 1).abs() < 4 * (2 / rows) ** 0.5).all()


def test_readouts_are_mixed_in_their_own_space():
    shown, free = torch.tensor([[[0.2, 0.3, 0.5, 0.0]]]).double(), torch.tensor([[[0.5, 0.25, 0.25, 0.0]]]).double()
    found = Prediction(shown.log() + 3.0).guided(Prediction(free.log() - 1.0), 2.0).probabilities()
    expected = shown**3 / free.clamp(min=1e-9) ** 2
    torch.testing.assert_close(found, expected / expected.sum())
    ratios = Scores(shown.log()).guided(Scores(free.log()), 2.0).logits.exp()
    torch.testing.assert_close(ratios[..., :3], expected[..., :3])
    assert ratios[..., 3] == 0
    table = torch.eye(4).double()
    vector = Vector(shown, table).guided(Vector(free, table), 2.0)
    torch.testing.assert_close(vector.estimate(table), shown + 2 * (shown - free))


def test_a_token_that_only_the_prompt_allows_keeps_its_probability():
    shown, free = torch.tensor([[[0.4, 0.6]]]).log(), torch.tensor([[[0.0, 1.0]]]).log()
    assert Prediction(shown).guided(Prediction(free), 1.0).logits.isfinite().all()


@pytest.mark.parametrize(("weight", "calls"), [(0.0, 1), (0.5, 2)])
@pytest.mark.parametrize("name", ["masked", "gaussian"])
def test_calls_are_counted_per_row(name, weight, calls):
    process = process_of(name, "cosine" if name == "gaussian" else "log_linear")
    model = Joint(process)
    if name == "gaussian":
        model.forward = lambda noisy: model.seen.append(noisy) or Prediction(torch.zeros(5, 2, V, dtype=torch.float64))
    sampler = build(config_class("samplers", "ancestral")(num_steps=6, guidance=weight), process)
    prompt, given = torch.tensor([[PROMPT, 0]]).expand(5, -1), torch.tensor([[True, False]]).expand(5, -1)
    sample = generate(sampler, model, Noise(0, torch.arange(5)), 2, prompt, given)
    steps = 6 + (name == "gaussian")  # one more to decode vectors
    assert sample.calls.tolist() == [calls * steps] * 5
    assert len(model.seen) == calls * steps


def test_each_call_is_shown_its_own_estimate():
    """One that knows the prompt would tell it to the call that must not know."""
    process = process_of("gaussian", "cosine")

    class Teller(Joint):
        def forward(self, noisy: Noisy) -> Prediction:
            self.seen.append(noisy)
            logits = torch.full((2, 2, V), -torch.inf, dtype=torch.float64)
            logits[..., 0 if noisy.given is not None else 2] = 0.0
            return Prediction(logits)

    model = Teller(process, told=True)
    sampler = build(config_class("samplers", "ddim")(num_steps=3, guidance=1.0), process)
    prompt, given = torch.tensor([[PROMPT, 0]]).expand(2, -1), torch.tensor([[True, False]]).expand(2, -1)
    generate(sampler, model, Noise(0, torch.arange(2)), 2, prompt, given)
    assert [noisy.self_condition for noisy in model.seen[:2]] == [None, None]
    for noisy in model.seen[2:]:
        own = model.table()[0 if noisy.given is not None else 2]
        torch.testing.assert_close(noisy.self_condition, own.expand(2, 2, 2))


def test_a_guided_row_alone_is_the_row_in_the_batch():
    process = process_of("uniform")
    sampler = build(config_class("samplers", "ancestral")(num_steps=5, guidance=1.0), process)
    prompt, given = torch.tensor([[PROMPT, 0]]).expand(8, -1), torch.tensor([[True, False]]).expand(8, -1)
    whole = generate(sampler, Joint(process), Noise(1, torch.arange(8)), 2, prompt, given).tokens
    alone = generate(sampler, Joint(process), Noise(1, torch.tensor([6])), 2, prompt[:1], given[:1]).tokens
    assert torch.equal(alone[0], whole[6])


def test_guidance_without_a_prompt_is_refused():
    process = process_of("masked")
    sampler = build(config_class("samplers", "ancestral")(num_steps=2, guidance=1.5), process)
    with pytest.raises(UserError, match=r"guidance: got 1\.5 and no prompt to be guided by; give one, or leave it 0"):
        generate(sampler, Joint(process), Noise(0, torch.arange(2)), 2)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
@pytest.mark.parametrize("value", [-0.5, math.inf, math.nan])
def test_an_impossible_weight_is_refused(name, value):
    with pytest.raises(ValueError, match=f"guidance: got {value}, expected 0 or more"):
        config_class("samplers", name)(guidance=value)
