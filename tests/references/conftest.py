"""mamba-ssm's pure-PyTorch references, importable without its CUDA extension."""

import importlib
import importlib.util
import sys
import types

import pytest


@pytest.fixture
def mamba_ssm(monkeypatch):
    """Imports modules of mamba-ssm. Its own __init__ needs the CUDA extension, so a bare package stands in."""
    spec = importlib.util.find_spec("mamba_ssm")
    if spec is None:
        pytest.skip("mamba-ssm is not installed: make mamba-ssm")
    before = {name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"}
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    hub = types.ModuleType("huggingface_hub")
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    yield lambda name: importlib.import_module(f"mamba_ssm.{name}")
    for name in [n for n in sys.modules if n.partition(".")[0] == "mamba_ssm" and n not in before]:
        del sys.modules[name]
