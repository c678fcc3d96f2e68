"""mamba_ssm: the Triton scan of the mamba-ssm package, for CUDA."""

from dataclasses import dataclass

from diffusion_lm.kernels.base import ScanKernel
from diffusion_lm.shapes import Float, Tensor


@dataclass(kw_only=True, slots=True)
class MambaSsmConfig:
    """Nothing to set."""


class MambaSsm(ScanKernel):
    """``mamba_chunk_scan_combined`` of mamba-ssm, forward and backward in Triton."""

    packages = ("mamba_ssm", "selective_scan_cuda", "triton", "causal_conv1d")
    devices = ("cuda",)
    priority = 1

    def __init__(self, config: MambaSsmConfig | None = None) -> None:
        self.config = config

    def scan(
        self,
        x: Float[Tensor, "B L H P"],
        dt: Float[Tensor, "B L H"],
        A: Float[Tensor, "H"],
        B: Float[Tensor, "B L G N"],
        C: Float[Tensor, "B L G N"],
        chunk_size: int,
    ) -> Float[Tensor, "B L H P"]:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=chunk_size)
