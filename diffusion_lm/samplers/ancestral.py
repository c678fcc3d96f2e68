"""ancestral: draw x_s from the process's own reverse distribution p(x_s | x_t), step by step."""

from dataclasses import dataclass, replace

from diffusion_lm.samplers.base import Predict, Sampler, SamplerConfig, SamplerState


@dataclass(kw_only=True, slots=True)
class AncestralConfig(SamplerConfig):
    """The number of steps and the guidance."""


class Ancestral(Sampler):
    """The reverse chain (Ho et al., arXiv 2006.11239, algorithm 2; MDLM, arXiv 2406.07524, equation 7)."""

    processes = ("masked", "uniform", "mask_uniform", "gaussian")

    def step(self, state: SamplerState, predict: Predict) -> SamplerState:
        t, s = self.times(state)
        guess = predict(state, t)
        x_s = self.process.reverse(state.x, guess.prediction, t, s, state.table).sample(state.noise.at(state.index))
        return replace(state, x=x_s, index=state.index + 1, estimates=guess.estimates)

    def ahead(self, state: SamplerState) -> SamplerState:
        under_way = ~self.process.holds_tokens(state.x, self.times(state)[0])
        while True:
            idle = self.process.idle(state.x, *self.times(state), state.noise.at(state.index))
            idle &= under_way & ~self.ended(state)
            if not bool(idle.any()):
                return state
            state = replace(state, index=state.index + idle.long())
