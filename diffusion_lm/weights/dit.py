"""The transformer that MDLM, BD3-LM and Duo share, theirs into ours.

Theirs fuses what ours splits: `adaLN_modulation` gives shift, scale and gate of the attention, then those of the MLP.
Every other tensor goes over as it is. The EMA of their Lightning checkpoints is a list in the order of
`parameters()`, which `parameters` below repeats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from diffusion_lm.data.tokenizers.base import is_known
from diffusion_lm.errors import UserError
from diffusion_lm.model import padded
from diffusion_lm.shapes import Tensor
from diffusion_lm.weights import keys
from diffusion_lm.weights.checkpoint import Foreign

IGNORED = ("rotary_emb.inv_freq", "sampling_eps_", "block_diff_mask", "noise.", "teacher.")
"""Buffers and modules that the transformer's outputs do not depend on."""
PREFIXES = ("backbone.", "_orig_mod.")


@dataclass(frozen=True)
class Sizes:
    """Of one of their transformers, all read off its tensors."""

    rows: int
    d_model: int
    channels: int
    n_layers: int
    width: int

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Their names and shapes, in the order of `parameters()`."""
        d, c = self.d_model, self.channels
        linear = {"vocab_embed.embedding": (self.rows, d), **_linear("sigma_map.mlp.0", c, 256)}
        linear |= _linear("sigma_map.mlp.2", c, c)
        for i in range(self.n_layers):
            block = {"norm1.weight": (d,), "attn_qkv.weight": (3 * d, d), "attn_out.weight": (d, d)}
            block |= {"norm2.weight": (d,), **_linear("mlp.0", self.width, d), **_linear("mlp.2", d, self.width)}
            block |= _linear("adaLN_modulation", 6 * d, c)
            linear |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        linear |= {"output_layer.norm_final.weight": (d,), **_linear("output_layer.linear", self.rows, d)}
        return linear | _linear("output_layer.adaLN_modulation", 2 * d, c)

    @classmethod
    def of(cls, foreign: Foreign, state: Mapping[str, Tensor], what: str) -> "Sizes":
        """Read off the tensors. Raises `UserError` for the first that is missing."""
        shapes = {}
        for name in ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "blocks.0.mlp.0.weight"):
            if name not in state or state[name].dim() != 2:
                raise keys.missing(foreign.source, name, what)
            shapes[name] = tuple(state[name].shape)
        numbers = [name.split(".")[1] for name in state if name.startswith("blocks.")]
        layers = 1 + max(int(number) for number in numbers if number.isdigit())
        (rows, d_model), (channels, _), (width, _) = shapes.values()
        return cls(rows, d_model, channels, layers, width)


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def tensors(foreign: Foreign, what: str, ema: float | None) -> tuple[Sizes, dict[str, Tensor]]:
    """Their tensors without prefixes, checked: the averaged ones where there are any, unless `ema` is 0."""
    state = keys.without(foreign.state, PREFIXES, IGNORED)
    sizes = Sizes.of(foreign, state, what)
    expected = sizes.parameters()
    keys.check(foreign.source, state, expected, f"{what} with {sizes.n_layers} blocks")
    if not takes_average(foreign, ema):
        return sizes, state
    if len(foreign.average) != len(expected):
        raise UserError(
            f"{foreign.source}: the average (ema.shadow_params) has {len(foreign.average)} tensors, expected "
            f"{len(expected)}, one per parameter of {what}; take the live weights with --ema 0"
        )
    averaged = dict(zip(expected, foreign.average, strict=True))
    keys.check(f"{foreign.source} (ema.shadow_params)", averaged, expected, what)
    return sizes, averaged


def takes_average(foreign: Foreign, ema: float | None) -> bool:
    """Whether the averaged weights are taken. Raises `UserError` for a decay that the file does not have."""
    there = [0.0] if foreign.average is None else [0.0, foreign.decay]
    if ema is not None and ema not in there:
        raise UserError(
            f"{foreign.source}: no average of decay {ema:g}, expected --ema {' or '.join(f'{d:g}' for d in there)}"
        )
    return foreign.average is not None and ema != 0


def head_dim(foreign: Foreign, sizes: Sizes) -> int:
    """Channels per head, off the rotary buffer or the settings. Raises `UserError` where neither is there."""
    found = [value for name, value in foreign.state.items() if name.endswith("rotary_emb.inv_freq")]
    if found:
        return 2 * found[0].numel()
    heads = foreign.setting("model.n_heads", "n_heads")
    if not isinstance(heads, int) or heads < 1 or sizes.d_model % heads:
        raise UserError(
            f"{foreign.source}: the number of heads is not in it (got {heads}, d_model {sizes.d_model}); expected "
            "rotary_emb.inv_freq among the tensors, or n_heads in a config.json beside it"
        )
    return sizes.d_model // heads


def experiment_tree(foreign: Foreign, sizes: Sizes, objective: str, ema: float | None) -> dict[str, Any]:
    """The experiment that these weights belong to, as far as the file tells it.

    Where it does not say, masked models are not told the noise level, and others are.
    """
    told = foreign.setting("algo.time_conditioning", "time_conditioning")
    length = foreign.setting("model.length", "model_length")
    conditioning = {
        "name": "adaln_sigma",
        "channels": sizes.channels,
        "time_conditioning": objective != "masked" if told is None else bool(told),
    }
    return {
        "name": foreign.source.stem,
        "data": {"length": length} if isinstance(length, int) else {},
        "model": {"d_model": sizes.d_model},
        "denoiser": {
            "name": "dit",
            "n_layers": sizes.n_layers,
            "mlp_width": sizes.width,
            "conditioning": conditioning,
            "mixer": {"name": "attention", "head_dim": head_dim(foreign, sizes)},
        },
        "objective": objective,
        "schedule": "log_linear",
        "training": {"ema_decay": foreign.decay if takes_average(foreign, ema) else 0.0},
    }


def ours(theirs: Mapping[str, Tensor], sizes: Sizes, symbols: int, multiple: int) -> dict[str, Tensor]:
    """The tensors of our model with `symbols` ids: rows of the table beyond them are left out."""
    theirs = {name: value.to(torch.float32) for name, value in theirs.items()}
    outputs = padded(symbols, multiple)
    state = {"embed.weight": theirs["vocab_embed.embedding"][:symbols], "given": torch.zeros(sizes.d_model)}
    for name in ("weight", "bias"):
        head = theirs[f"output_layer.linear.{name}"][:symbols]
        state[f"head.{name}"] = F.pad(head, (0, 0) * (head.dim() - 1) + (0, outputs - len(head)))
        for number, own in ((0, "hidden"), (2, "out")):
            state[f"denoiser.conditioning.embedding.{own}.{name}"] = theirs[f"sigma_map.mlp.{number}.{name}"]
        state[f"denoiser.modulation.linear.{name}"] = theirs[f"output_layer.adaLN_modulation.{name}"]
    state["denoiser.norm.weight"] = theirs["output_layer.norm_final.weight"]
    for i in range(sizes.n_layers):
        state |= _block(theirs, f"blocks.{i}.", f"denoiser.stack.blocks.{i}.")
    return {name: value.contiguous() for name, value in state.items()}


def _block(theirs: Mapping[str, Tensor], of: str, to: str) -> dict[str, Tensor]:
    state = {
        f"{to}mixer.norm.weight": theirs[f"{of}norm1.weight"],
        f"{to}mixer.inner.qkv.weight": theirs[f"{of}attn_qkv.weight"],
        f"{to}mixer.inner.out_proj.weight": theirs[f"{of}attn_out.weight"],
        f"{to}mlp.norm.weight": theirs[f"{of}norm2.weight"],
    }
    for name in ("weight", "bias"):
        state[f"{to}mlp.inner.up.{name}"] = theirs[f"{of}mlp.0.{name}"]
        state[f"{to}mlp.inner.down.{name}"] = theirs[f"{of}mlp.2.{name}"]
        mixer, mlp = theirs[f"{of}adaLN_modulation.{name}"].chunk(2)
        state[f"{to}mixer.branch.modulation.linear.{name}"] = mixer
        state[f"{to}mlp.branch.modulation.linear.{name}"] = mlp
    return state


def facts(foreign: Foreign, tokenizer: str, ema: float | None) -> dict[str, Any]:
    """What is known of the weights."""
    batch, length = foreign.setting("loader.global_batch_size"), foreign.setting("model.length", "model_length")
    known = foreign.step is not None and isinstance(batch, int) and isinstance(length, int)
    notes = []
    if foreign.setting("model.dropout", "dropout"):
        notes.append("trained with dropout, which this project's transformer does not have")
    if not is_known(tokenizer):
        notes.append(f"tokenizer '{tokenizer}' is not in this project: the model gives logits, and no text")
    if foreign.average is None:
        notes.append("the source does not say whether these are averaged weights")
    return {
        "step": foreign.step,
        "tokens": foreign.step * batch * length if known else None,
        "weights": "averaged" if takes_average(foreign, ema) else "as stored",
        "notes": notes,
    }
