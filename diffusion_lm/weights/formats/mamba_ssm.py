"""mamba_ssm: language models of mamba-ssm's `MambaLMHeadModel` with Mamba-2 layers, and single layers of it.

The layers are causal, so the model that they make here is the autoregressive one: a `mamba` denoiser of `mamba2`
mixers, with SwiGLU MLPs or none, which is told no noise level. Its input at position i is token i - 1 and at 0 a symbol
of its own, which is given the vector of the end-of-text id: the logits are mamba-ssm's for the text behind one such id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Layer:
    """Sizes of a Mamba2 layer, read off its tensors; the groups of B and C are not among them. options: those of
    mamba-ssm's that other tensors, or its `ssm_cfg`, show."""

    d_model: int
    inner: int
    heads: int
    convolved: int
    d_conv: int
    groups: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, where: str | Path, state: Mapping[str, Tensor], ssm_cfg: Mapping[str, Any]) -> "Layer":
        """Raises `UserError` for the first tensor that is missing."""
        groups = int(ssm_cfg.get("ngroups") or 1)
        for name in ("conv1d.weight", "dt_bias", "out_proj.weight"):
            if name not in state:
                raise keys.missing(where, name, LAYER)
        d_model, inner = state["out_proj.weight"].shape
        heads, (convolved, _, d_conv) = len(state["dt_bias"]), state["conv1d.weight"].shape
        if inner % heads or inner % d_model or (convolved - inner) % (2 * groups):
            raise UserError(
                f"{where}: {inner} channels, {heads} heads, {convolved - inner} channels of B and C in {groups} "
                f"group(s) and d_model {d_model} do not divide; expected {LAYER}, and its ngroups in a config.json"
            )
        return cls(d_model, inner, heads, convolved, d_conv, groups, _options(state, ssm_cfg, heads))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its tensors."""
        projected = self.inner + self.convolved + self.heads
        found: dict[str, tuple[int, ...]] = {
            "dt_bias": (self.heads,),
            "A_log": (self.heads,),
            "D": (self.inner if self.options["D_has_hdim"] else self.heads,),
            "in_proj.weight": (projected, self.d_model),
            "conv1d.weight": (self.convolved, 1, self.d_conv),
            "out_proj.weight": (self.d_model, self.inner),
        }
        found |= {"conv1d.bias": (self.convolved,)} if self.options["conv_bias"] else {}
        found |= {"norm.weight": (self.inner,)} if self.options["rmsnorm"] else {}
        biases = {"in_proj.bias": (projected,), "out_proj.bias": (self.d_model,)}
        return found | (biases if self.options["bias"] else {})

    def tree(self) -> dict[str, Any]:
        """The mixer's config."""
        return {
            "name": "mamba2",
            "d_state": (self.convolved - self.inner) // (2 * self.groups),
            "expand": self.inner // self.d_model,
            "head_dim": self.inner // self.heads,
            "n_groups": self.groups,
            "d_conv": self.d_conv,
            **self.options,
        }


def _options(state: Mapping[str, Tensor], ssm_cfg: Mapping[str, Any], heads: int) -> dict[str, Any]:
    named = {name: ssm_cfg[name] for name in ("norm_before_gate", "dt_limit") if ssm_cfg.get(name)}
    shown = {"rmsnorm": "norm.weight", "bias": "in_proj.bias", "conv_bias": "conv1d.bias"}
    flags = {option: name in state for option, name in shown.items()}
    return {"D_has_hdim": "D" in state and len(state["D"]) > heads, **flags, **named}


def layer_config(
    where: str | Path, state: Mapping[str, Tensor], ssm_cfg: Mapping[str, Any] = NO_OPTIONS
) -> Mamba2Config:
    """The config of our mixer that a single layer's state dict goes into by `load_state_dict`: names are the same.

    ssm_cfg: what of the layer's options its tensors do not show: ngroups, norm_before_gate, dt_limit.
    Raises `UserError` for the first tensor that is missing, has another shape, or is not one of the layer's.
    """
    layer = Layer.of(where, state, ssm_cfg)
    keys.check(where, state, layer.shapes(), LAYER)
    return from_tree(Mamba2Config, {name: value for name, value in layer.tree().items() if name != "name"})


@dataclass(frozen=True)
class Sizes:
    """Of a language model. width: of the gated MLPs, 0 where there are none."""

    layer: Layer
    n_layers: int
    rows: int
    width: int

    @classmethod
    def of(cls, foreign: Foreign, state: Mapping[str, Tensor]) -> "Sizes":
        """Read off the tensors. Raises `UserError` for the first that is missing."""
        prefix = "layers.0.mixer."
        first = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for name, there in (("embedding.weight", "embedding.weight" in state), (f"{prefix}in_proj.weight", first)):
            if not there:
                raise keys.missing(foreign.source, f"backbone.{name}", WHAT)
        numbers = [name.split(".")[1] for name in state if name.startswith("layers.")]
        down = state.get("layers.0.mlp.fc2.weight")
        return cls(
            Layer.of(f"{foreign.source} ({prefix[:-1]})", first, foreign.setting("ssm_cfg") or NO_OPTIONS),
            1 + max(int(number) for number in numbers if number.isdigit()),
            len(state["embedding.weight"]),
            0 if down is None else down.shape[-1],
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the model's tensors."""
        d = self.layer.d_model
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.rows, d)}
        for i in range(self.n_layers):
            shapes[f"layers.{i}.norm.weight"] = (d,)
            shapes |= {f"layers.{i}.mixer.{name}": shape for name, shape in self.layer.shapes().items()}
            if self.width:
                shapes |= {f"layers.{i}.norm2.weight": (d,), f"layers.{i}.mlp.fc1.weight": (2 * self.width, d)}
                shapes[f"layers.{i}.mlp.fc2.weight"] = (d, self.width)
        return shapes | {"norm_f.weight": (d,), "lm_head.weight": (self.rows, d)}


class MambaSsm(Format):
    """mamba-ssm."""

    summary: ClassVar[str] = "mamba-ssm's MambaLMHeadModel with Mamba-2 layers: a folder or a state dict"

    def read(self, source: Path, options: Options) -> Pretrained:
        foreign = read_foreign(source)
        state = keys.without(foreign.state, ("backbone.",), ())
        sizes = Sizes.of(foreign, state)
        head = state.setdefault("lm_head.weight", state["embedding.weight"])
        keys.check(source, state, sizes.shapes(), f"{WHAT}, {sizes.n_layers} of them")
        tied = torch.equal(head, state["embedding.weight"])
        config = with_overrides(from_tree(ExperimentConfig, _tree(foreign, sizes, tied)), options.overrides)
        default = foreign.setting("vocab_size") or sizes.rows
        vocabulary = vocabulary_of(config, options, sizes.rows, extra=0, default=default)
        tokenizer = tokenizer_of(config)
        begin = tokenizer.eot_id if tokenizer is not None else 0
        notes = [f"the input before the first token is the vector of id {begin}, taken for the end-of-text"]
        ours = _ours(state, sizes, vocabulary, begin, padded(vocabulary + 1, config.model.pad_vocabulary_to))
        if tied:
            table = F.pad(ours["embed.weight"], (0, 0, 0, len(ours["head.weight"]) - vocabulary - 1))
            ours |= {"embed.weight": table, "head.weight": table}
        return Pretrained(config, vocabulary, ours, {"weights": "as stored", "notes": notes})


def _tree(foreign: Foreign, sizes: Sizes, tied: bool) -> dict[str, Any]:
    mlp = {"mlp": "swiglu", "mlp_width": sizes.width} if sizes.width else {"mlp_expansion": 0.0}
    mixer = sizes.layer.tree()
    return {
        "name": foreign.source.stem,
        "model": {"d_model": sizes.layer.d_model, "tie_head": tied},
        "denoiser": {"name": "mamba", "n_layers": sizes.n_layers, "conditioning": "none", "mixer": mixer, **mlp},
        "objective": "autoregressive",
        "sampler": "left_to_right",
        "training": {"ema_decay": 0.0},
    }


def _ours(
    theirs: Mapping[str, Tensor], sizes: Sizes, vocabulary: int, begin: int, outputs: int
) -> dict[str, Tensor]:
    theirs = {name: value.to(torch.float32) for name, value in theirs.items()}
    table, head = theirs["embedding.weight"], theirs["lm_head.weight"][:vocabulary]
    state = {
        "embed.weight": torch.cat((table[:vocabulary], table[begin : begin + 1])),
        "given": torch.zeros(table.shape[1]),
        "norm.weight": theirs["norm_f.weight"],
        "head.weight": F.pad(head, (0, 0, 0, outputs - vocabulary)),
        "head.bias": torch.zeros(outputs),
    }
    for i in range(sizes.n_layers):
        of, to = f"layers.{i}.", f"denoiser.stack.blocks.{i}."
        state[f"{to}mixer.norm.weight"] = theirs[f"{of}norm.weight"]
        state |= {f"{to}mixer.inner.{name}": theirs[f"{of}mixer.{name}"] for name in sizes.layer.shapes()}
        if sizes.width:
            value, gate = theirs[f"{of}mlp.fc1.weight"].chunk(2)
            state[f"{to}mlp.norm.weight"] = theirs[f"{of}norm2.weight"]
            state[f"{to}mlp.inner.up.weight"] = torch.cat((gate, value))  # ours has the gate first
            state[f"{to}mlp.inner.down.weight"] = theirs[f"{of}mlp.fc2.weight"]
    return {name: value.contiguous() for name, value in state.items()}
