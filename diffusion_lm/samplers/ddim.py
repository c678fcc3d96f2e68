"""ddim: the deterministic step of a Gaussian process (Song et al., arXiv 2010.02502, equation 12), stochastic with eta.

x_s = sqrt(alpha_s) x_0_hat + sqrt(1 - alpha_s - v) eps_hat + sqrt(v) noise, with eps_hat the noise that x_0_hat implies
and v = eta^2 (1 - alpha_s) / (1 - alpha_t) (1 - alpha_t / alpha_s). eta = 1 is the ancestral step.
"""

from dataclasses import dataclass, replace

from diffusion_lm.random import Stream
from diffusion_lm.samplers.base import Predict, Sampler, SamplerConfig, SamplerState


@dataclass(kw_only=True, slots=True)
class DdimConfig(SamplerConfig):
    num_steps: int = 64
    """Intervals of the time grid."""
    eta: float = 0.0
    """Share of the ancestral noise: 0 deterministic, 1 ancestral."""

    def __post_init__(self) -> None:
        SamplerConfig.__post_init__(self)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: got {self.eta}, expected 0 to 1")


class Ddim(Sampler):
    """Implicit sampling on the same trained model."""

    processes = ("gaussian",)

    def step(self, state: SamplerState, predict: Predict) -> SamplerState:
        t, s = self.times(state)
        alpha_t, alpha_s = (self.process.alpha(v).unsqueeze(-1) for v in (t, s))
        guess = predict(state, t)
        x_0 = guess.prediction.estimate(state.table).double()
        eps = (state.x.double() - alpha_t.sqrt() * x_0) / (1 - alpha_t).sqrt()
        variance = self.config.eta**2 * (1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)
        noise = state.noise.at(state.index).normal(Stream.CORRUPT, *state.x.shape[1:])
        x_s = alpha_s.sqrt() * x_0 + (1 - alpha_s - variance).clamp(min=0).sqrt() * eps + variance.sqrt() * noise
        return replace(state, x=x_s.to(state.x.dtype), index=state.index + 1, estimates=guess.estimates)
