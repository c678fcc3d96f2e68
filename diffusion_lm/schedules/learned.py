"""learned: alpha(t) = sigmoid( lambda_0 - (lambda_0 - lambda_1) g(t) ), with g(0) = 0, g(1) = 1 and both ends learned.

g is a monotone network, g(t) = (h(t) - h(0)) / (h(1) - h(0)) with h(t) = w_0 t + sum_k w_k sigmoid(b_k (t - c_k)) and
w, b > 0 (VDM, arXiv 2107.00630, appendix H; Plaid, arXiv 2305.18619, section 3.2). It starts as g(t) = t, nearly.

Only the ends matter for the bound: its diffusion term is an integral over the log-SNR, whatever the pace at which t
runs through it. So lambda_0 and lambda_1 get the bound's gradient, as the denoiser does. The pace decides how far the
terms of single rows scatter about the integral, and g is trained to lower that: as the mean of l_i, a row's diffusion
term, is fixed, the variance falls with the mean of l_i^2, whose gradient is

    d/dg mean(l_i^2) = mean(2 l_i dl_i/dg).

A row's loss sees g through its own two numbers g(t_i) and g'(t_i) alone. So one backward pass of the bound is enough:
it brings dl_i/dg(t_i) and dl_i/dg'(t_i), and a hook multiplies them by 2 l_i (`Ranged.drawn`) on their way to the
network of g. The gradients of the denoiser and of the ends pass beside the hook.

Each end stays in its own half of the log-SNR range that the process allows. All arithmetic is float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from diffusion_lm.schedules.base import Ranged, Time
from diffusion_lm.shapes import Float, Tensor

BARE = (3.0, -7.0)
"""The range without a process to say one."""
HALVINGS = 60


@dataclass(kw_only=True, slots=True)
class LearnedConfig:
    units: int = 32
    """Sigmoids in h."""
    lr: float = 2e-2
    """Peak learning rate of the schedule's own parameters; warm-up and decay are the run's."""
    margin: float = 0.02
    """Distance of each end from its limit at the start, as a share of the range."""

    def __post_init__(self) -> None:
        if self.units < 1:
            raise ValueError(f"units: got {self.units}, expected at least 1")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: got {self.lr}, expected a positive number")
        if not 0 < self.margin < 0.5:
            raise ValueError(f"margin: got {self.margin}, expected more than 0 and less than 0.5")


class Learned(Ranged):
    """A log-SNR that falls at a learned pace between learned ends."""

    learned = True

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__(config)
        self.log_snr_max, self.log_snr_min = BARE
        one = torch.ones(config.units, dtype=torch.float64)
        self.slope = nn.Parameter(one.new_tensor(0.0))
        self.height = nn.Parameter(one * _softplus_inverse(1 / config.units))
        self.steepness = nn.Parameter(one * _softplus_inverse(config.units**0.5 * 2))
        self.centre = nn.Parameter((torch.arange(config.units, dtype=torch.float64) + 0.5) / config.units)
        inside = torch.logit(torch.tensor(2 * config.margin, dtype=torch.float64))
        self.start, self.end = nn.Parameter(inside.clone()), nn.Parameter(inside.clone())

    @property
    def alpha_0(self) -> float:
        return float(torch.sigmoid(self.ends(self.start)[0]).detach())

    @property
    def alpha_1(self) -> float:
        return float(torch.sigmoid(self.ends(self.start)[1]).detach())

    def within(self, log_snr_max: float, log_snr_min: float) -> "Learned":
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min
        return self

    def ends(self, like: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        half = 0.5 * (self.log_snr_max - self.log_snr_min)
        return self.log_snr_max - half * torch.sigmoid(self.start), self.log_snr_min + half * torch.sigmoid(self.end)

    def pace(self, t: Time) -> tuple[Time, Time]:
        """g(t) and g'(t), float64."""
        w, b = nn.functional.softplus(self.height), nn.functional.softplus(self.steepness)
        w_0 = nn.functional.softplus(self.slope)
        places = torch.stack((torch.zeros_like(self.slope), torch.ones_like(self.slope)))
        edge = w_0 * places + (torch.sigmoid(b * (places.unsqueeze(-1) - self.centre)) * w).sum(-1)
        t = t.to(torch.float64)
        step = torch.sigmoid(b * (t.unsqueeze(-1) - self.centre))
        height = w_0 * t + (step * w).sum(-1)
        rise = w_0 + (step * (1 - step) * b * w).sum(-1)
        return (height - edge[0]) / (edge[1] - edge[0]), rise / (edge[1] - edge[0])

    def log_snr(self, t: Time) -> Time:
        start, end = self.ends(t)
        return (start - (start - end) * self.pace(t)[0]).to(t.dtype)

    def log_snr_prime(self, t: Time) -> Time:
        start, end = self.ends(t)
        return ((end - start) * self.pace(t)[1]).to(t.dtype)

    def drawn(self, t: Time, row_scale: Callable[[], Time]) -> tuple[Time, Time]:
        start, end = self.ends(t)
        g, rise = self.pace(t)
        if g.requires_grad:
            for tensor in (g, rise):
                tensor.register_hook(lambda gradient: gradient * row_scale())
        return start - (start - end) * g, (end - start) * rise

    def alpha(self, t: Time) -> Time:
        return torch.sigmoid(self.log_snr(t.to(torch.float64))).to(t.dtype)

    def alpha_prime(self, t: Time) -> Time:
        alpha = torch.sigmoid(self.log_snr(t.to(torch.float64)))
        return (alpha * (1 - alpha) * self.log_snr_prime(t.to(torch.float64))).to(t.dtype)

    @torch.no_grad()
    def inverse(self, alpha: Time) -> Time:
        """By bisection."""
        wanted = alpha.to(torch.float64)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = torch.sigmoid(self.log_snr(middle)) > wanted
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return ((low + high) / 2).to(alpha.dtype)


def _softplus_inverse(value: float) -> float:
    """The number whose softplus is `value`."""
    return math.log(math.expm1(value))
