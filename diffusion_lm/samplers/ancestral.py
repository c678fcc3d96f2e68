"""ancestral: draw x_s from the process's own reverse distribution p(x_s | x_t), step by step."""

from dataclasses import dataclass, replace

from diffusion_lm.samplers.base import Predict, Sampler, SamplerState, check_steps


@dataclass(kw_only=True, slots=True)
class AncestralConfig:
    num_steps: int = 128
    """Intervals of the time grid."""

    def __post_init__(self) -> None:
        check_steps(self.num_steps)


class Ancestral(Sampler):
    """The reverse chain (Ho et al., arXiv 2006.11239, algorithm 2; MDLM, arXiv 2406.07524, equation 7)."""

    processes = ("masked", "uniform", "mask_uniform", "gaussian")

    def step(self, state: SamplerState, predict: Predict) -> SamplerState:
        t, s = self.times(state)
        step = self.process.reverse(state.x, predict(state.x, t), t, s, state.table)
        noise = state.noise.at(state.index)
        return replace(state, x=step.sample(noise), index=state.index + 1)
