"""Random weights in the formats of MDLM, BD3-LM and Duo, as their programs save them."""

import json
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

D, HEADS, CHANNELS, BLOCKS, WIDTH, LENGTH = 32, 2, 12, 2, 80, 10
ROWS = 258  # 257 ids of the tokenizer `bytes`, and the mask


def parameters(rows: int = ROWS) -> dict[str, tuple[int, ...]]:
    """Names and shapes of their transformer's parameters, in the order in which its modules are made."""
    names = {"vocab_embed.embedding": (rows, D)}
    names |= {"sigma_map.mlp.0.weight": (CHANNELS, 256), "sigma_map.mlp.0.bias": (CHANNELS,)}
    names |= {"sigma_map.mlp.2.weight": (CHANNELS, CHANNELS), "sigma_map.mlp.2.bias": (CHANNELS,)}
    for i in range(BLOCKS):
        for name, shape in (
            ("norm1.weight", (D,)),
            ("attn_qkv.weight", (3 * D, D)),
            ("attn_out.weight", (D, D)),
            ("norm2.weight", (D,)),
            ("mlp.0.weight", (WIDTH, D)),
            ("mlp.0.bias", (WIDTH,)),
            ("mlp.2.weight", (D, WIDTH)),
            ("mlp.2.bias", (D,)),
            ("adaLN_modulation.weight", (6 * D, CHANNELS)),
            ("adaLN_modulation.bias", (6 * D,)),
        ):
            names[f"blocks.{i}.{name}"] = shape
    names |= {"output_layer.norm_final.weight": (D,), "output_layer.linear.weight": (rows, D)}
    names |= {"output_layer.linear.bias": (rows,), "output_layer.adaLN_modulation.weight": (2 * D, CHANNELS)}
    return names | {"output_layer.adaLN_modulation.bias": (2 * D,)}


def weights(seed: int = 0, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """Random parameters, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in parameters(rows).items():
        scale = shape[-1] ** -0.5 if len(shape) > 1 and "embed" not in name else 1.0
        found[name] = scale * torch.randn(shape, generator=generator)
        if "norm" in name:
            found[name] = 1 + 0.3 * found[name]
    return found


def saved_state(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a state dict of their Lightning module or Hugging Face model: prefixed, with the rotary buffer."""
    half = D // HEADS // 2
    buffer = 10_000.0 ** (-torch.arange(half) / half)
    return {"backbone.rotary_emb.inv_freq": buffer} | {f"backbone.{name}": value for name, value in own.items()}


def lightning(path, own, average=None, model=None, monkeypatch=None, **settings):
    """A checkpoint as Lightning writes it for them: an OmegaConf config, a tokenizer object, the average as a list."""
    config = {
        "model": {"hidden_size": D, "cond_dim": CHANNELS, "n_heads": HEADS, "n_blocks": BLOCKS, "length": LENGTH,
                  "dropout": 0.1} | (model or {}),
        "loader": {"global_batch_size": 4},
        "parameterization": "subs",
        "data": {"cache_dir": "${oc.env:NOWHERE}"},
        **settings,
    }  # fmt: skip
    checkpoint = {
        "epoch": 0,
        "global_step": 30,
        "state_dict": saved_state(own),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(30.0)}}}],
        "hyper_parameters": {"config": OmegaConf.create(config), "tokenizer": tokenizer(monkeypatch)},
    }
    if average is not None:
        checkpoint["ema"] = {"decay": 0.99, "num_updates": 30, "shadow_params": list(average.values())}
    torch.save(checkpoint, path)
    return path


def tokenizer(monkeypatch):
    """An object of a package that is not there when the checkpoint is read."""
    module = types.ModuleType("transformers_of_theirs")
    module.GPT2TokenizerFast = type("GPT2TokenizerFast", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = module.GPT2TokenizerFast()
    found.special = {"eos": "<|endoftext|>"}
    return found


def hugging_face(folder, own, kind="model.safetensors", **settings):
    """A folder as on the hub, of one file or of two with an index."""
    folder.mkdir()
    state = saved_state(own)
    config = {"hidden_dim": D, "cond_dim": CHANNELS, "n_heads": HEADS, "n_blocks": BLOCKS, "model_length": LENGTH}
    (folder / "config.json").write_text(json.dumps(config | settings))
    if kind == "pytorch_model.bin":
        torch.save(state, folder / kind)
    elif kind == "model.safetensors":
        save_file(state, folder / kind)
    else:
        names = list(state)
        parts = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
        for part, held in parts.items():
            save_file({name: state[name] for name in held}, folder / part)
        index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def theirs(monkeypatch) -> SimpleNamespace:
    """Everything above."""
    return SimpleNamespace(
        **{name: value for name, value in globals().items() if not name.startswith("_")},
        checkpoint=lambda *rest, **more: lightning(*rest, monkeypatch=monkeypatch, **more),
    )
