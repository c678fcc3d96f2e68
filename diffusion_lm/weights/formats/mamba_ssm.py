"""mamba_ssm: language models of mamba-ssm's `MambaLMHeadModel` with Mamba-2 layers, and single layers of it.

The layers are causal, so the model that they make here is the autoregressive one: a `mamba` denoiser of `mamba2`
mixers without MLPs, which is told no noise level. Its input at position i is token i - 1 and at 0 a symbol of its own,
which is given the vector of the end-of-text id: the logits are mamba-ssm's for the text behind one end-of-text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from diffusion_lm.config import from_tree
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, with_overrides
from diffusion_lm.mixers.mamba2 import Mamba2Config
from diffusion_lm.model import padded
from diffusion_lm.shapes import Tensor
from diffusion_lm.weights import keys
from diffusion_lm.weights.checkpoint import Foreign, read_foreign
from diffusion_lm.weights.formats.base import Format, Options, Pretrained, tokenizer_of, vocabulary_of

WHAT = "mamba-ssm's MambaLMHeadModel with Mamba-2 layers"
LAYER = "mamba-ssm's Mamba2 layer"


@dataclass(frozen=True)
class Layer:
    """Sizes of a Mamba2 layer, read off its tensors; the groups of B and C are not among them."""

    d_model: int
    inner: int
    heads: int
    convolved: int
    d_conv: int
    groups: int
    per_channel: bool

    @classmethod
    def of(cls, where: str | Path, state: Mapping[str, Tensor], groups: int) -> "Layer":
        """Raises `UserError` for the first tensor that is missing."""
        for name in ("in_proj.weight", "conv1d.weight", "dt_bias", "D", "out_proj.weight"):
            if name not in state:
                raise keys.missing(where, name, LAYER)
        d_model, inner = state["out_proj.weight"].shape
        heads, (convolved, _, d_conv) = len(state["dt_bias"]), state["conv1d.weight"].shape
        if inner % heads or inner % d_model or (convolved - inner) % (2 * groups):
            raise UserError(
                f"{where}: {inner} channels, {heads} heads, {convolved - inner} channels of B and C in {groups} "
                f"group(s) and d_model {d_model} do not divide; expected {LAYER}, and its ngroups in a config.json"
            )
        return cls(d_model, inner, heads, convolved, d_conv, groups, len(state["D"]) == inner != heads)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors."""
        return {
            "dt_bias": (self.heads,),
            "A_log": (self.heads,),
            "D": (self.inner if self.per_channel else self.heads,),
            "in_proj.weight": (self.inner + self.convolved + self.heads, self.d_model),
            "conv1d.weight": (self.convolved, 1, self.d_conv),
            "conv1d.bias": (self.convolved,),
            "norm.weight": (self.inner,),
            "out_proj.weight": (self.d_model, self.inner),
        }

    def tree(self) -> dict[str, Any]:
        """The mixer's config."""
        return {
            "name": "mamba2",
            "d_state": (self.convolved - self.inner) // (2 * self.groups),
            "expand": self.inner // self.d_model,
            "head_dim": self.inner // self.heads,
            "n_groups": self.groups,
            "d_conv": self.d_conv,
        }


def layer_config(where: str | Path, state: Mapping[str, Tensor], groups: int = 1) -> Mamba2Config:
    """The config of our mixer that a single layer's state dict goes into by `load_state_dict`: names are the same.

    Raises `UserError` for the first tensor that is missing, has another shape, or is not one of the layer's.
    """
    layer = Layer.of(where, state, groups)
    keys.check(where, state, layer.shapes(), LAYER)
    return from_tree(Mamba2Config, {name: value for name, value in layer.tree().items() if name != "name"})


class MambaSsm(Format):
    """mamba-ssm."""

    summary: ClassVar[str] = "mamba-ssm's MambaLMHeadModel with Mamba-2 layers: a folder or a state dict"

    def read(self, source: Path, options: Options) -> Pretrained:
        foreign = read_foreign(source)
        state = keys.without(foreign.state, ("backbone.",), ())
        table = state.get("embedding.weight")
        if table is None:
            raise keys.missing(source, "backbone.embedding.weight", WHAT)
        n_layers = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("layers.")), default=-1)
        layer = _first_layer(foreign, state, n_layers)
        state.setdefault("lm_head.weight", table)  # tied
        keys.check(source, state, _shapes(layer, n_layers, len(table)), f"{WHAT}, {n_layers} of them")
        config = with_overrides(from_tree(ExperimentConfig, _tree(foreign, layer, n_layers)), options.overrides)
        default = foreign.setting("vocab_size") or len(table)
        vocabulary = vocabulary_of(config, options, len(table), extra=0, default=default)
        tokenizer = tokenizer_of(config)
        begin = tokenizer.eot_id if tokenizer is not None else 0
        notes = [f"the input before the first token is the vector of id {begin}, taken for the end-of-text"]
        ours = _ours(state, n_layers, vocabulary, begin, config.model.pad_vocabulary_to)
        return Pretrained(config, vocabulary, ours, {"step": None, "weights": "as stored", "notes": notes})


def _first_layer(foreign: Foreign, state: Mapping[str, Tensor], n_layers: int) -> Layer:
    prefix = "layers.0.mixer."
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not n_layers or not found:
        raise keys.missing(foreign.source, f"backbone.{prefix}in_proj.weight", WHAT)
    return Layer.of(f"{foreign.source}: {prefix}", found, int(foreign.setting("ssm_cfg.ngroups") or 1))


def _shapes(layer: Layer, n_layers: int, rows: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (rows, layer.d_model)}
    for i in range(n_layers):
        shapes[f"layers.{i}.norm.weight"] = (layer.d_model,)
        shapes |= {f"layers.{i}.mixer.{name}": shape for name, shape in layer.shapes().items()}
    return shapes | {"norm_f.weight": (layer.d_model,), "lm_head.weight": (rows, layer.d_model)}


def _tree(foreign: Foreign, layer: Layer, n_layers: int) -> dict[str, Any]:
    mixer = layer.tree() | ({"d_per_channel": True} if layer.per_channel else {})
    denoiser = {"name": "mamba", "n_layers": n_layers, "mlp_expansion": 0.0, "conditioning": "none", "mixer": mixer}
    return {
        "name": foreign.source.stem,
        "model": {"d_model": layer.d_model},
        "denoiser": denoiser,
        "objective": "autoregressive",
        "sampler": "left_to_right",
        "training": {"ema_decay": 0.0},
    }


def _ours(
    theirs: Mapping[str, Tensor], n_layers: int, vocabulary: int, begin: int, multiple: int
) -> dict[str, Tensor]:
    theirs = {name: value.to(torch.float32) for name, value in theirs.items()}
    table, head = theirs["embedding.weight"], theirs["lm_head.weight"][:vocabulary]
    outputs = padded(vocabulary + 1, multiple)
    state = {
        "embed.weight": torch.cat((table[:vocabulary], table[begin : begin + 1])),
        "given": torch.zeros(table.shape[1]),
        "norm.weight": theirs["norm_f.weight"],
        "head.weight": F.pad(head, (0, 0, 0, outputs - vocabulary)),
        "head.bias": torch.zeros(outputs),
    }
    for i in range(n_layers):
        of, to = f"layers.{i}.", f"denoiser.stack.blocks.{i}.mixer."
        state[f"{to}norm.weight"] = theirs[f"{of}norm.weight"]
        mixer = {name.removeprefix(f"{of}mixer."): value for name, value in theirs.items() if name.startswith(of)}
        state |= {f"{to}inner.{name}": value for name, value in mixer.items() if not name.startswith(of)}
    return {name: value.contiguous() for name, value in state.items()}
