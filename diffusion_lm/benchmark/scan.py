"""benchmark scan: the plain scan against mamba-ssm's own plain one, in bfloat16, and a layer both ways against one way.

`ssd_minimal_discrete` (mamba_ssm/modules/ssd_minimal.py) is given B and C expanded to heads, which it needs, and the
same chunks; where mamba-ssm is not installed, its line is missing. `bidirectional` and `causal` are mixers, `... block`
the same with the norms and the MLP of a residual block around them. Everything runs in one process, in turn.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from diffusion_lm.benchmark.measure import check_settings, interleaved, surroundings
from diffusion_lm.config import build, choice, config_class
from diffusion_lm.kernels.base import kernel_class
from diffusion_lm.layers.norm import rms_norm
from diffusion_lm.shapes import Tensor

REFERENCE, OWN, HALF = "ssd_minimal_discrete", "scan", "scan, bfloat16"
RATIOS = {
    "scan over ssd_minimal_discrete": (REFERENCE, OWN),
    "bfloat16 over float32": (OWN, HALF),
    "bidirectional over causal": ("bidirectional", "causal"),
    "bidirectional over causal, blocks": ("bidirectional block", "causal block"),
}
"""Seconds of the first by those of the second: times faster in the first two lines, times as long in the others."""


@dataclass(kw_only=True, slots=True)
class ScanConfig:
    batch: int = 4
    length: int = 1024
    heads: int = 16
    head_dim: int = 64
    d_state: int = 64
    n_groups: int = 1
    chunk_size: int = 64
    repeats: int = 5
    """Rounds; the median counts."""
    threads: int = 0
    """Of torch on the CPU; 0 is torch's own choice."""
    kernel: str = choice("torch", "mamba_ssm")
    device: str = choice("cpu", "cuda")

    def __post_init__(self) -> None:
        check_settings(self)
        reason = kernel_class(self.kernel).missing(self.device)
        if reason:
            raise ValueError(f"kernel: got {self.kernel}, but {reason}")
        if self.heads % self.n_groups or self.heads * self.head_dim % 2:
            raise ValueError(
                f"heads: got {self.heads} of {self.head_dim} channels in {self.n_groups} groups, expected a multiple "
                "of the groups, and an even number of channels in all"
            )
        if self.length % self.chunk_size:
            raise ValueError(
                f"length: got {self.length}, expected a multiple of chunk_size {self.chunk_size}: the reference takes "
                "no other"
            )


class Block(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)) of expansion 2."""

    def __init__(self, mixer: nn.Module, d_model: int) -> None:
        super().__init__()
        self.norms, self.mixer = nn.ModuleList(rms_norm(d_model) for _ in range(2)), mixer
        self.mlp = nn.Sequential(nn.Linear(d_model, 2 * d_model), nn.GELU(), nn.Linear(2 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def reference() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """mamba-ssm's function; its package's __init__, which needs the CUDA extension, is left out."""
    spec = find_spec("mamba_ssm")
    if spec is None:
        return None
    before = {name: sys.modules.get(name) for name in ("mamba_ssm", "selective_scan_cuda")}
    package = ModuleType("mamba_ssm")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.update(mamba_ssm=package, selective_scan_cuda=ModuleType("selective_scan_cuda"))
    try:
        return importlib.import_module("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    except ImportError:
        return None
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "mamba_ssm"]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if module is not None})
        if before["selective_scan_cuda"] is None:
            del sys.modules["selective_scan_cuda"]


def scan_inputs(config: ScanConfig, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, A, B, C that ask for gradients; dt and A as a trained layer has them."""
    generator = torch.Generator().manual_seed(0)
    rows, length = config.batch, config.length

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, step = normal(rows, length, config.heads, config.head_dim), normal(rows, length, config.heads)
    B, C = normal(2, rows, length, config.n_groups, config.d_state)
    dt, A = nn.functional.softplus(step - 3), -torch.linspace(1, 16, config.heads)
    values = (x.to(dtype), dt, A, B.to(dtype), C.to(dtype))
    return [v.to(config.device).requires_grad_() for v in values]


def variants(config: ScanConfig) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """What is measured: a forward pass, and what it is differentiated by."""
    torch.manual_seed(0)
    found: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {}
    kernel, theirs = kernel_class(config.kernel)(), reference()
    values = scan_inputs(config, torch.float32)
    if theirs is not None:
        found[REFERENCE] = (lambda: _as_theirs(theirs, values, config), values)
    for name, dtype in ((OWN, torch.float32), (HALF, torch.bfloat16)):
        own = scan_inputs(config, dtype)
        found[name] = (lambda own=own: kernel.scan(*own, chunk_size=config.chunk_size)[0], own)
    d_model = config.heads * config.head_dim // 2
    sizes = {name: getattr(config, name) for name in ("head_dim", "d_state", "n_groups", "chunk_size", "kernel")}
    causal = config_class("mixers", "mamba2")(**sizes)
    x = torch.randn(config.batch, config.length, d_model, device=config.device, requires_grad=True)
    for name, mixer in (("causal", causal), ("bidirectional", config_class("mixers", "bidirectional")(inner=causal))):
        for suffix, module in (("", build(mixer, d_model)), (" block", Block(build(mixer, d_model), d_model))):
            module = module.to(config.device)
            found[name + suffix] = (lambda module=module: module(x), [x, *module.parameters()])
    return found


def _as_theirs(theirs: Callable[..., tuple[Tensor, Tensor]], values: list[Tensor], config: ScanConfig) -> Tensor:
    x, dt, A, *keys = values
    B, C = (v.repeat_interleave(config.heads // config.n_groups, 2) for v in keys)
    return theirs(x * dt.unsqueeze(-1), A * dt, B, C, config.chunk_size)[0]


def _forward(call: Callable[[], Tensor], by: list[Tensor], number: int) -> None:
    with torch.no_grad():
        call()


def _both(call: Callable[[], Tensor], by: list[Tensor], number: int) -> None:
    y = call()
    torch.autograd.grad(y, by, torch.ones_like(y))


def measure(config: ScanConfig) -> dict[str, Any]:
    """Seconds of every variant, forward and with the backward pass, and their ratios."""
    if config.threads:
        torch.set_num_threads(config.threads)
    found = variants(config)

    passes = {"forward": _forward, "forward and backward": _both}
    seconds = {
        key: interleaved({name: partial(run, *one) for name, one in found.items()}, config.repeats, config.device)
        for key, run in passes.items()
    }
    return {
        "benchmark": "scan",
        "sizes": asdict(config),
        **surroundings(config.device),
        "seconds": seconds,
        "ratios": {
            key: {name: of[a] / of[b] for name, (a, b) in RATIOS.items() if a in of} for key, of in seconds.items()
        },
    }


def table(found: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    sizes = {name: value for name, value in found["sizes"].items() if name != "threads"}
    lines = [
        ", ".join(f"{name} {value}" for name, value in sizes.items()),
        f"{found['machine']}; torch {found['torch']}, {found['threads']} threads; commit {found['git']}",
    ]
    for title, part, digits in (("seconds", "seconds", 4), ("ratio", "ratios", 2)):
        forward, both = found[part].values()
        lines += ["", f"| {title} | forward | forward and backward |", "|---|---|---|"]
        lines += [f"| {name} | {forward[name]:.{digits}f} | {both[name]:.{digits}f} |" for name in forward]
    return "\n".join(lines)
