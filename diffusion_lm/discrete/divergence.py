"""How far a prediction is from the truth, in closed form, for every discrete process.

The bounds of discrete diffusion, in continuous time and in T steps, are sums of two quantities: the Kullback-Leibler
divergence between the true and the predicted marginal of a time, and the log-ratio of the two at the present state.

In continuous time the rate of loss at state z is

    r_t(z) / q_t(z | x_0) (kl + rho - ln rho - 1),   rho = q_t(z | x_0) / q_t(z | prediction)

(GIDD, arXiv 2503.04482, theorem on the likelihood bound; for masked noise it is MDLM's weighted cross-entropy, for
uniform noise the bound of UDLM and Duo). In one step from t to s, with b the noise's mass that comes in between,

    KL(q(x_s | x_t, x_0) || p(x_s | x_t))
        = (alpha_t / alpha_s q_s(z | x_0) ln rho_s(z) + b(z) kl_s) / q_t(z | x_0) - ln rho_t(z),

because q(z | x_s) is a factor of both posteriors and cancels.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from diffusion_lm.discrete.process import SMALLEST, DiscreteProcess, Masses
from diffusion_lm.readouts import Prediction
from diffusion_lm.shapes import Float, Tensor, Times, Tokens


@dataclass(frozen=True)
class Surprise:
    """How far a prediction's marginal at some time is from the true one, per position. [B, L] float64 each

    kl: KL(q_t(. | x_0) || q_t(. | prediction)). log_ratio: ln q_t(z | x_0) - ln q_t(z | prediction) at the state z.
    """

    kl: Float[Tensor, "B L"]
    log_ratio: Float[Tensor, "B L"]


def surprise(
    masses: Masses, log_p: Float[Tensor, "B L V"], z: Tokens, x_0: Tokens, mask_id: int, vocabulary: int
) -> Surprise:
    """`Surprise` at the masses of a time, from ln p over the vocabulary; one pass over V, no one-hots.

    With beta = alpha / token, kl = (alpha + token) ln(1 + beta) - alpha ln(1 + beta p(x_0)) - token sum_v ln(1 + beta
    p(v)); Duo (arXiv 2506.10892, appendix) writes the uniform bound with the same sums. ln(1 + beta p) is
    softplus(ln beta + ln p): exact also where p has underflowed.
    """
    alpha, token = masses.alpha.clamp(min=SMALLEST), masses.token.clamp(min=SMALLEST)
    log_beta = torch.log(alpha) - torch.log(token)
    log_p = log_p[..., :vocabulary]
    masked = z == mask_id

    def grown(log_q: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        return softplus(log_beta + log_q.double(), threshold=40)

    of_x = grown(log_p.gather(-1, x_0.unsqueeze(-1)).squeeze(-1))
    of_z = grown(log_p.gather(-1, z.masked_fill(masked, 0).unsqueeze(-1)).squeeze(-1))
    everything = softplus(log_beta.to(log_p.dtype).unsqueeze(-1) + log_p, threshold=40).sum(-1).double()
    whole = softplus(log_beta, threshold=40)
    kl = (alpha + token) * whole - alpha * of_x - token * everything
    log_ratio = whole * (z == x_0) - of_z
    return Surprise(kl, log_ratio.masked_fill(masked, 0.0))


def jump_divergence(
    process: DiscreteProcess, posterior: Prediction, x_0: Tokens, x_t: Tokens, t: Times
) -> Float[Tensor, "B L"]:
    """kl + rho - ln rho - 1 at time t: what a jump into x_t costs, in nats. Never below 0; float64."""
    found = _surprise(process, posterior, process.masses(t), x_t, x_0)
    return found.kl + torch.expm1(found.log_ratio) - found.log_ratio


def jump_weight(process: DiscreteProcess, x_0: Tokens, x_t: Tokens, t: Times) -> Float[Tensor, "B L"]:
    """r_t(x_t) / q_t(x_t | x_0): jumps per unit of t into the state, given that one is in it. float64"""
    masses, (to_mask, to_token) = process.masses(t), process.rates(t)
    masked = process.is_masked(x_t)
    here = masses.of(x_t, process.mask_id) + masses.alpha * (x_t == x_0)
    return torch.where(masked, to_mask, to_token) / here.clamp(min=SMALLEST)


def step_divergence(
    process: DiscreteProcess, posterior: Prediction, x_0: Tokens, x_t: Tokens, t: Times, s: Times
) -> Float[Tensor, "B L"]:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) per position, float64."""
    later, earlier, between = process.masses(t), process.masses(s), process.between(t, s)
    at_s = _surprise(process, posterior, earlier, x_t, x_0)
    at_t = _surprise(process, posterior, later, x_t, x_0)
    same = x_t == x_0
    stays = between.alpha * (earlier.of(x_t, process.mask_id) + earlier.alpha * same)
    came = between.of(x_t, process.mask_id)
    here = later.of(x_t, process.mask_id) + later.alpha * same
    return (stays * at_s.log_ratio + came * at_s.kl) / here.clamp(min=SMALLEST) - at_t.log_ratio


def prior_divergence(masses: Masses, vocabulary: int) -> Float[Tensor, "B L"]:
    """KL(q(. | x_0) || p) of one position, the same for all tokens: p has alpha spread evenly over the vocabulary."""
    of_x, spread = masses.alpha + masses.token, (masses.alpha / vocabulary + masses.token).clamp(min=1e-300)
    of_others = (vocabulary - 1) * torch.xlogy(masses.token, masses.token / spread)
    return torch.xlogy(of_x, of_x / spread) + of_others


def _surprise(process: DiscreteProcess, posterior: Prediction, masses: Masses, z: Tokens, x_0: Tokens) -> Surprise:
    log_p = torch.log_softmax(posterior.logits, -1)
    return surprise(masses, log_p, z, x_0, process.mask_id, process.vocabulary)
