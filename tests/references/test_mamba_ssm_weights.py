"""A language model that mamba-ssm builds, saved by it, gives here the logits that its own forward pass gives."""

import json
import sys
import types
from dataclasses import asdict
from importlib.machinery import ModuleSpec

import pytest
import torch

from diffusion_lm.config import build
from diffusion_lm.noisy import Noisy
from diffusion_lm.weights.folder import load_pretrained, write_folder
from diffusion_lm.weights.formats.base import Options, load_format
from diffusion_lm.weights.formats.mamba_ssm import layer_config

pytestmark = pytest.mark.mamba_ssm
VOCABULARY, END = 257, 256


@pytest.fixture
def package(mamba_ssm, monkeypatch):
    """mamba-ssm with its Triton scan and gated norm replaced by its own references, its RMSNorm by PyTorch's."""
    for name in ("mamba_ssm", "selective_scan_cuda"):  # stand-ins that are asked whether they are installed
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    transformers = types.ModuleType("transformers")
    for name, contents in {
        "utils": ("WEIGHTS_NAME", "CONFIG_NAME"),
        "utils.hub": ("cached_file",),
        "generation": ("GenerateDecoderOnlyOutput", "TextStreamer"),
    }.items():
        module = types.ModuleType(f"transformers.{name}")
        for entry in contents:
            setattr(module, entry, type(entry, (), {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    layer, models = mamba_ssm("modules.mamba2"), mamba_ssm("models.mixer_seq_simple")
    combined, gated = mamba_ssm("ops.triton.ssd_combined"), mamba_ssm("ops.triton.layernorm_gated")

    def scan(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus, seq_idx, cu_seqlens, **states):
        assert z is None and seq_idx is None and cu_seqlens is None and not any(states.values())
        return combined.ssd_chunk_scan_combined_ref(
            x, dt, A, B, C, chunk_size, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus
        )

    def norm(self, x, z):
        return gated.rms_norm_ref(x, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)

    monkeypatch.setattr(layer, "mamba_chunk_scan_combined", scan)
    monkeypatch.setattr(layer, "causal_conv1d_fn", None)
    monkeypatch.setattr(layer.RMSNormGated, "forward", norm)
    monkeypatch.setattr(models, "RMSNorm", torch.nn.RMSNorm)
    return mamba_ssm


def options(groups: int) -> dict:
    return {"d_state": 8, "headdim": 16, "ngroups": groups, "chunk_size": 4, "use_mem_eff_path": False}


@torch.no_grad()
def shaken(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mlp", [0, 128])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_language_model_of_the_package(package, tmp_path, groups, mlp, tied):
    models, config = package("models.mixer_seq_simple"), package("models.config_mamba").MambaConfig
    torch.manual_seed(0)
    sizes = config(
        d_model=32, d_intermediate=mlp, n_layer=2, vocab_size=VOCABULARY, fused_add_norm=False, tie_embeddings=tied,
        ssm_cfg={"layer": "Mamba2", **options(groups)},
    )  # fmt: skip
    theirs = shaken(models.MambaLMHeadModel(sizes))
    source = tmp_path / "theirs"
    source.mkdir()
    torch.save(theirs.state_dict(), source / "pytorch_model.bin")
    (source / "config.json").write_text(json.dumps(asdict(theirs.config)))
    found = load_format("mamba_ssm").read(source, Options())
    found.facts["source"] = {"format": "mamba_ssm", "path": str(source)}
    write_folder(tmp_path / "out", found, "a test")
    own = load_pretrained(tmp_path / "out")
    ids = torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0))
    logits = own(Noisy(ids, torch.zeros(3, 1, dtype=torch.float64))).logits[..., :VOCABULARY]
    shifted = torch.cat((torch.full((3, 1), END), ids[:, :-1]), 1)
    torch.testing.assert_close(logits, theirs(shifted).logits[..., :VOCABULARY], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "more", [{}, {"D_has_hdim": True}, {"bias": True}, {"conv_bias": False}, {"norm_before_gate": True}], ids=str
)
def test_a_layer_of_the_package(package, groups, more):
    torch.manual_seed(0)
    theirs = shaken(package("modules.mamba2").Mamba2(32, **options(groups), **more))
    own = build(layer_config("theirs", theirs.state_dict(), {"ngroups": groups, **more}), 32)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(own(x), theirs(x), rtol=1e-5, atol=1e-5)
