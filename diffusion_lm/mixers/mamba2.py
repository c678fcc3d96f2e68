"""mamba2: the Mamba-2 mixer (Dao and Gu, arXiv 2405.21060, section 7), causal.

in_proj gives gate z, input x, B, C and step dt; a short causal convolution and a SiLU over (x, B, C); the state-space
scan; the skip D x; a gated RMSNorm; out_proj. Parameters and options carry mamba-ssm's names, shapes and starting
values; all its options of a single device but d_ssm are here: every channel goes through the scan. Nothing crosses the
boundary of a document: neither the convolution nor the state. In blocks a block starts from the state and the last
inputs of the convolution that the clean blocks before it leave.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_lm.blocks import fold, unfold
from diffusion_lm.kernels.base import InnerLayer, kernel_class, runs_of
from diffusion_lm.layers.convolution import before, convolve, convolve_blocks
from diffusion_lm.layers.norm import GatedRMSNorm
from diffusion_lm.layers.state_space import StateSpaceConfig
from diffusion_lm.layers.steps import start_steps, steps
from diffusion_lm.mixers.base import ONE_DOCUMENT, Context, SequenceMixer, StateCache
from diffusion_lm.precision import wide
from diffusion_lm.shapes import Bool, Float, Hidden, Int, Tensor


@dataclass(kw_only=True, slots=True)
class Mamba2Config(StateSpaceConfig):
    conv_init: float = 0.0
    """The convolution's weights start uniformly between -conv_init and conv_init; 0: where torch's Conv1d starts."""
    rmsnorm: bool = True
    """A gated RMSNorm before out_proj; without it the gate alone."""
    D_has_hdim: bool = False
    """A skip weight per channel instead of one per head."""
    A_init_range: tuple[float, float] = (1.0, 16.0)
    """-A starts uniformly between these."""

    def __post_init__(self) -> None:
        StateSpaceConfig.__post_init__(self)
        low, high = self.A_init_range
        if not 0 < low <= high < math.inf:
            raise ValueError(f"A_init_range: got {low}, {high}, expected two numbers above 0, the second no less")
        if not 0 <= self.conv_init < math.inf:
            raise ValueError(f"conv_init: got {self.conv_init}, expected a number above 0, or 0 for torch's own start")
        if self.norm_before_gate and not self.rmsnorm:
            raise ValueError("norm_before_gate: got true without a norm, expected rmsnorm: true beside it")

    def is_causal(self) -> bool:
        return True

    def projections(self, d_model: int) -> int:
        inner, biases = self.expand * d_model, self.bias * (self._projected(d_model) + d_model)
        return d_model * (self._projected(d_model) + inner) + biases

    def projection_flops(self, d_model: int) -> tuple[int, int]:
        return 2 * d_model * self._projected(d_model), 2 * self.expand * d_model * d_model

    def parameters(self, d_model: int) -> int:
        inner, heads = self.expand * d_model, self.heads(d_model)
        convolved = inner + 2 * self.n_groups * self.d_state
        skip = inner if self.D_has_hdim else heads
        own = convolved * (self.d_conv + self.conv_bias) + 2 * heads + skip + self.rmsnorm * inner
        return self.projections(d_model) + own

    def flops_per_token(self, d_model: int, length: int) -> int:
        return sum(self.projection_flops(d_model)) + self.scan_flops(d_model, length)

    def _projected(self, d_model: int) -> int:
        """Width of what in_proj gives."""
        return 2 * self.expand * d_model + 2 * self.n_groups * self.d_state + self.heads(d_model)


class Mamba2State(NamedTuple):
    """What a text so far leaves for the text that follows it."""

    convolved: Float[Tensor, "B past K"]
    """The last d_conv - 1 inputs of the convolution, those of earlier documents zero."""
    scanned: Float[Tensor, "B H P N"]
    """The state of the scan."""
    document: Int[Tensor, "B"] | None = None
    """Ids of the documents that they are of; None where texts were not told apart."""

    def within(self, document: Int[Tensor, "B"]) -> "Mamba2State":
        """What of it reaches a text that starts in that document: nothing where it is another one."""
        if self.document is None:
            return self
        same = (self.document == document).view(-1, 1, 1)
        return Mamba2State(self.convolved.where(same, 0), self.scanned.where(same.unsqueeze(-1), 0), document)


class Mamba2(SequenceMixer):
    """Causal Mamba-2 layer."""

    def __init__(self, config: Mamba2Config, d_model: int) -> None:
        super().__init__(config, d_model)
        config.check_heads(d_model)
        inner, heads = config.expand * d_model, config.heads(d_model)
        self.inner, self.heads = inner, heads
        self.state = config.n_groups * config.d_state
        convolved = inner + 2 * self.state
        self.kernel = kernel_class("torch" if config.kernel == "auto" else config.kernel)()
        self.in_proj = nn.Linear(d_model, inner + convolved + heads, bias=config.bias)
        self.conv1d = nn.Conv1d(
            convolved, convolved, config.d_conv, groups=convolved, padding=config.d_conv - 1, bias=config.conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(inner if config.D_has_hdim else heads))
        if config.rmsnorm:
            self.norm = GatedRMSNorm(inner, config.n_groups, before_gate=config.norm_before_gate)
        self.out_proj = nn.Linear(inner, d_model, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """mamba-ssm's starting values: by default A in [1, 16], softplus(dt_bias) log-uniform in [1e-3, 1e-1]."""
        with torch.no_grad():
            self.A_log.uniform_(*self.config.A_init_range).log_()
            if self.config.conv_init:
                self.conv1d.weight.uniform_(-self.config.conv_init, self.config.conv_init)
        start_steps(self.dt_bias, self.config)

    def forward(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        projected = self.in_proj(x)
        y = self.kernel.fused(projected, self._layer(), self.out_proj, context.segment)
        return self.out_proj(self._parts(projected, context)[0]) if y is None else y

    def backwards(self, x: Hidden, context: Context = ONE_DOCUMENT) -> Hidden:
        if not self.kernel.reverses:
            return super().backwards(x, context)
        return self.out_proj(self._parts(self.in_proj(x), context, reverse=True)[0])

    def mix(
        self, projected: Float[Tensor, "B L E"], context: Context = ONE_DOCUMENT, reverse: bool = False
    ) -> Float[Tensor, "B L I"]:
        """What lies between in_proj and out_proj, in either direction."""
        if self.kernel.reverses:
            return self._parts(projected, context, reverse)[0]
        if reverse:
            return self.mix(projected.flip(1), context.flipped()).flip(1)
        y = self.kernel.fused(projected, self._layer(), None, context.segment)
        return self._parts(projected, context)[0] if y is None else y

    def start(self, x: Hidden) -> StateCache:
        none = x.new_zeros(len(x), self.config.d_conv - 1, self.inner + 2 * self.state)
        return StateCache((none, wide(x.new_zeros(len(x), self.heads, self.config.head_dim, self.config.d_state))))

    def resume(self, x: Hidden, cache: StateCache) -> tuple[Hidden, StateCache]:
        y, after = self.mix_on(self.in_proj(x), cache)
        return self.out_proj(y), after

    def prefill(self, x: Hidden, count: int, keep: Int[Tensor, "T"]) -> tuple[Hidden, StateCache]:
        y, cache = self.mix_prefill(self.in_proj(x), count, keep)
        return self.out_proj(y), cache

    def over_blocks(self, x: Hidden, count: int, context: Context = ONE_DOCUMENT) -> Hidden:
        return self.out_proj(self.mix_blocks(self.in_proj(x), count))

    def mix_on(self, projected: Float[Tensor, "B L E"], cache: StateCache) -> tuple[Float[Tensor, "B L I"], StateCache]:
        """`resume` between the projections."""
        y, left = self._parts(projected, ONE_DOCUMENT, state=Mamba2State(*cache.state))
        return y, StateCache((left.convolved, wide(left.scanned)))

    def mix_prefill(
        self, projected: Float[Tensor, "R S E"], count: int, keep: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "R S I"], StateCache]:
        """`prefill` between the projections: whole texts, whose state nothing moves after the blocks that are kept."""
        size, texts, past = projected.shape[1], unfold(projected, count), self.config.d_conv - 1
        z, new, dt = self._split(texts)
        mixed = convolve(new, self.conv1d.weight, self.conv1d.bias, past)
        kept = (torch.arange(texts.shape[1], device=texts.device) < (keep * size).unsqueeze(1)).unsqueeze(-1)
        y, state = self._scanned(z, mixed, dt, kept=kept, want_state=True)
        return fold(y, size), StateCache((before(new, keep * size, past), wide(state)))

    def mix_blocks(self, projected: Float[Tensor, "T S E"], count: int) -> Float[Tensor, "T S I"]:
        """`over_blocks` between the projections."""
        z, new, dt = self._split(projected)
        mixed = convolve_blocks(new, self.conv1d.weight, self.conv1d.bias, self.config.d_conv - 1, count)
        return self._scanned(z, mixed, dt, count=count)[0]

    def go_on(
        self, x: Hidden, state: Mamba2State | None = None, context: Context = ONE_DOCUMENT
    ) -> tuple[Hidden, Mamba2State]:
        """Outputs for a text that goes on where `state` was left, and the state that it leaves itself.

        Where both texts have segments, a first id other than the last one of the text before begins a document. A text
        without them goes on with that document, and a state without them is of the first position's.
        """
        if state is None:
            none = x.new_zeros(len(x), self.config.d_conv - 1, self.inner + 2 * self.state)
            state = Mamba2State(none, x.new_zeros(len(x), self.heads, self.config.head_dim, self.config.d_state))
        elif context.segment is not None:
            state = state.within(context.segment[:, 0])
        y, left = self._parts(self.in_proj(x), context, state=state)
        return self.out_proj(y), left

    def _layer(self) -> InnerLayer:
        config = self.config
        return InnerLayer(
            conv_weight=self.conv1d.weight.squeeze(1),
            conv_bias=self.conv1d.bias,
            dt_bias=self.dt_bias,
            dt_limit=tuple(config.dt_limit),
            A=-torch.exp(wide(self.A_log)),
            D=self._skip(),
            norm_weight=self.norm.weight if config.rmsnorm else None,
            norm_eps=self.norm.eps if config.rmsnorm else 1e-5,
            norm_before_gate=config.norm_before_gate,
            n_groups=config.n_groups,
            head_dim=config.head_dim,
            chunk_size=config.chunk_size,
        )

    def _skip(self) -> Float[Tensor, "H"] | Float[Tensor, "H P"]:
        return self.D.unflatten(0, (self.heads, -1)) if self.config.D_has_hdim else self.D

    def _parts(
        self,
        projected: Float[Tensor, "B L E"],
        context: Context,
        reverse: bool = False,
        state: Mamba2State | None = None,
    ) -> tuple[Float[Tensor, "B L I"], Mamba2State | None]:
        """Convolution, scan and gated norm one after the other."""
        z, new, dt = self._split(projected)
        past, left = 0 if reverse else self.config.d_conv - 1, None if state is None else state.convolved
        mixed = convolve(new, self.conv1d.weight, self.conv1d.bias, past, context.segment, left, reverse)
        if state is None:
            return self._scanned(z, mixed, dt, segment=context.segment, reverse=reverse)
        options = {"initial_state": state.scanned, "want_state": True}
        y, scanned = self._scanned(z, mixed, dt, segment=context.segment, reverse=reverse, **options)
        kept = torch.cat((state.convolved, new), 1)[:, new.shape[1] :]
        if context.segment is None:
            return y, Mamba2State(kept, scanned, state.document)
        runs = F.pad(runs_of(context.segment), (past, 0))  # the state is of the first position's document
        kept = kept.where((runs[:, new.shape[1] :] == runs[:, -1:]).unsqueeze(-1), 0)
        return y, Mamba2State(kept, scanned, context.segment[:, -1])

    def _split(self, projected: Float[Tensor, "B L E"]) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, what is convolved, the steps."""
        return projected.split((self.inner, self.inner + 2 * self.state, self.heads), -1)

    def _scanned(
        self,
        z: Float[Tensor, "B L I"],
        mixed: Float[Tensor, "B L K"],
        dt: Float[Tensor, "B L H"],
        count: int = 0,
        kept: Bool[Tensor, "B L 1"] | None = None,
        **options: Any,
    ) -> tuple[Float[Tensor, "B L I"], Tensor | None]:
        """Scan and gated norm of what the convolution gave; over blocks where they are counted. kept: positions that
        the state takes in, where it does not take in all."""
        config, groups = self.config, (self.config.n_groups, -1)
        x, B, C = F.silu(mixed).split((self.inner, self.state, self.state), -1)
        dt = steps(dt, self.dt_bias, config.dt_limit)
        inputs = (
            x.unflatten(-1, (self.heads, -1)),
            dt if kept is None else dt * kept,
            -torch.exp(wide(self.A_log)),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
        )
        options = {"chunk_size": config.chunk_size, "D": self._skip(), **options}
        if count:
            y, state = self.kernel.over_blocks(*inputs, count=count, **options), None
        else:
            y, state = self.kernel.scan(*inputs, **options)
        return (self.norm(y.flatten(2), z) if config.rmsnorm else y.flatten(2) * F.silu(z)), state
