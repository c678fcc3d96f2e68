"""mamba_ssm against torch on CUDA: the scan, and whole layers on its fused path, outputs and gradients."""

import pytest
import torch

from diffusion_lm.config import build, config_class
from diffusion_lm.errors import UserError
from diffusion_lm.kernels.base import kernel_class
from diffusion_lm.mixers.base import Context
from diffusion_lm.mixers.mamba2 import Mamba2Config

pytestmark = pytest.mark.gpu

LENGTH, D_MODEL, HEADS = 300, 256, 8
LAYERS = {
    "plain": {},
    "groups": {"n_groups": 2},
    "channels": {"D_has_hdim": True, "dt_limit": (0.01, 0.3), "bias": True},
    "norm first": {"norm_before_gate": True},
    "no norm": {"rmsnorm": False},
    "wide window": {"d_conv": 6},
}


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    reason = kernel_class("mamba_ssm").missing("cuda")
    if reason:
        pytest.skip(f"needs mamba-ssm's CUDA build: {reason}")


def packed() -> torch.Tensor:
    """Ids that come back, a document of one position, padding at the end."""
    sizes = torch.tensor([130, 1, 70, 60, 39])
    return torch.tensor([1, 2, 1, 3, 0]).repeat_interleave(sizes).expand(2, -1).cuda()


def agree(own: list[torch.Tensor], rough: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """As far from torch in float32 as torch in bfloat16 is, with room for another order of sums."""
    for a, b, c in zip(own, rough, exact, strict=True):
        assert (a - c).norm() <= 2 * (b - c).norm() + 0.005 * c.norm()


def scanned(kernel: str, dtype: torch.dtype, groups: int, segment, reverse: bool) -> list[torch.Tensor]:
    """y, the last state, and the gradients of everything."""
    generator = torch.Generator().manual_seed(groups)

    def normal(*shape, kind=torch.float32):
        return torch.randn(*shape, generator=generator).to("cuda", kind).requires_grad_()

    x, (B, C) = normal(2, LENGTH, HEADS, 64, kind=dtype), (normal(2, LENGTH, groups, 64, kind=dtype) for _ in "BC")
    dt = torch.nn.functional.softplus(normal(2, LENGTH, HEADS).detach() - 2).requires_grad_()
    A = (-torch.linspace(0.5, 16, HEADS, device="cuda")).requires_grad_()
    D, start = normal(HEADS), normal(2, HEADS, 64, 64)
    y, state = kernel_class(kernel)().scan(
        x, dt, A, B, C, chunk_size=64, D=D, segment=segment, initial_state=start, want_state=True, reverse=reverse
    )
    weight, weight_state = normal(*y.shape).detach(), normal(*state.shape).detach()
    of = [x, dt, A, B, C, D, start]
    gradients = torch.autograd.grad((y.float() * weight).sum() + (state.float() * weight_state).sum(), of)
    return [v.detach().float() for v in (y, state, *gradients)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_scan_equals_torch(groups, documents, reverse):
    options = (groups, packed() if documents else None, reverse)
    rough, exact = (scanned("torch", dtype, *options) for dtype in (torch.bfloat16, torch.float32))
    agree(scanned("mamba_ssm", torch.bfloat16, *options), rough, exact)


def found(kernel: str, autocast: bool, segment, mixer: str, **options) -> list[torch.Tensor]:
    """Output and gradients of one mixer, weights and input the same whatever the kernel."""
    torch.manual_seed(0)
    inner = Mamba2Config(kernel=kernel, **options)
    configs = {
        "causal": inner,
        "both ways": config_class("mixers", "bidirectional")(inner=inner),
        "tied": config_class("mixers", "bidirectional")(inner=inner, sharing="projections"),
        "hydra": config_class("mixers", "hydra")(kernel=kernel),
    }
    layer = build(configs[mixer], D_MODEL).cuda()
    x = torch.randn(2, LENGTH, D_MODEL, device="cuda", requires_grad=True)
    weight = torch.randn(2, LENGTH, D_MODEL, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = layer(x, Context(segment)).float()
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize(
    ("mixer", "options"),
    [*[("causal", name) for name in LAYERS], ("both ways", "plain"), ("tied", "plain"), ("hydra", "plain")],
)
def test_a_layer_equals_torch(mixer, options, documents):
    segment, options = packed() if documents else None, LAYERS[options]
    rough, exact = (found("torch", autocast, segment, mixer, **options) for autocast in (True, False))
    agree(found("mamba_ssm", True, segment, mixer, **options), rough, exact)


def test_float64_is_refused():
    values = [torch.ones(1, 4, 1, 16, device="cuda", dtype=torch.float64) for _ in range(3)]
    dt, A = torch.ones(1, 4, 1, device="cuda"), -torch.ones(1, device="cuda")
    with pytest.raises(UserError, match="kernel 'mamba_ssm': got float64, expected float32 or less"):
        kernel_class("mamba_ssm")().scan(values[0], dt, A, *values[1:], chunk_size=16)
