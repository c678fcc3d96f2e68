"""mamba-ssm's language models: loaded, they give the logits of a step-by-step rewriting, shifted by one token."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lm.config import build
from diffusion_lm.errors import UserError
from diffusion_lm.noisy import Noisy
from diffusion_lm.weights.folder import load_pretrained, write_folder
from diffusion_lm.weights.formats.base import Options, load_format
from diffusion_lm.weights.formats.mamba_ssm import layer_config

VOCABULARY, END, ROWS = 257, 256, 264
D, HEADS, WIDTH, STATE, TAPS, MLP = 16, 4, 8, 6, 4, 24


def mixer(generator: torch.Generator, groups: int) -> dict[str, Tensor]:
    inner, convolved = HEADS * WIDTH, HEADS * WIDTH + 2 * groups * STATE

    def normal(*shape: int, mean: float = 0.0) -> Tensor:
        return mean + 0.3 * torch.randn(*shape, generator=generator)

    return {
        "dt_bias": normal(HEADS, mean=-1.0),
        "A_log": normal(HEADS, mean=0.5),
        "D": normal(HEADS, mean=1.0),
        "in_proj.weight": normal(inner + convolved + HEADS, D),
        "conv1d.weight": normal(convolved, 1, TAPS),
        "conv1d.bias": normal(convolved),
        "norm.weight": normal(inner, mean=1.0),
        "out_proj.weight": normal(D, inner),
    }


def language_model(groups: int = 1, mlp: bool = False, tied: bool = True, layers: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(groups + 2 * mlp)
    state = {"backbone.embedding.weight": torch.randn(ROWS, D, generator=generator)}
    for i in range(layers):
        place = f"backbone.layers.{i}."
        state |= {f"{place}mixer.{name}": value for name, value in mixer(generator, groups).items()}
        state[f"{place}norm.weight"] = 1 + 0.3 * torch.randn(D, generator=generator)
        if mlp:
            state[f"{place}norm2.weight"] = 1 + 0.3 * torch.randn(D, generator=generator)
            state[f"{place}mlp.fc1.weight"] = 0.3 * torch.randn(2 * MLP, D, generator=generator)
            state[f"{place}mlp.fc2.weight"] = 0.3 * torch.randn(D, MLP, generator=generator)
    state["backbone.norm_f.weight"] = 1 + 0.3 * torch.randn(D, generator=generator)
    head = state["backbone.embedding.weight"] if tied else torch.randn(ROWS, D, generator=generator)
    return state | {"lm_head.weight": head.clone()}


def root_mean_square(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    parts = x.view(*x.shape[:-1], groups, -1)
    return (parts / torch.sqrt((parts**2).mean(-1, keepdim=True) + 1e-5)).view(x.shape) * weight


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def step_by_step(w: dict[str, Tensor], x: Tensor, groups: int) -> Tensor:
    """A Mamba2 layer as its recurrence h = exp(dt A) h + dt B x, y = C h + D x, token by token. [L, D] -> [L, D]"""
    inner, state = HEADS * WIDTH, groups * STATE
    projected, window, h, out = x @ w["in_proj.weight"].T, [], torch.zeros(HEADS, WIDTH, STATE), []
    for row in projected:
        z, mixed, dt = row.split((inner, inner + 2 * state, HEADS))
        window = [*window, mixed][-TAPS:]
        mixed = w["conv1d.bias"] + sum(
            past * w["conv1d.weight"][:, 0, TAPS - len(window) + k] for k, past in enumerate(window)
        )
        value, b, c = silu(mixed).split((inner, state, state))
        value = value.view(HEADS, WIDTH)
        b, c = (v.view(groups, STATE).repeat_interleave(HEADS // groups, 0) for v in (b, c))
        dt = torch.log1p(torch.exp(dt + w["dt_bias"]))
        decay = torch.exp(-dt * torch.exp(w["A_log"]))
        h = decay[:, None, None] * h + dt[:, None, None] * value[:, :, None] * b[:, None]
        y = (h * c[:, None]).sum(-1) + w["D"][:, None] * value
        out.append(root_mean_square(y.flatten() * silu(z), w["norm.weight"], groups) @ w["out_proj.weight"].T)
    return torch.stack(out)


def logits(state: dict[str, Tensor], ids: Tensor, groups: int) -> Tensor:
    """Of the next token at every position of one text [L]."""
    w = {name.removeprefix("backbone."): value for name, value in state.items()}
    x, i = w["embedding.weight"][ids], 0
    while f"layers.{i}.norm.weight" in w:
        b = {name.removeprefix(f"layers.{i}."): value for name, value in w.items()}
        own = {name.removeprefix("mixer."): value for name, value in b.items() if name.startswith("mixer.")}
        x = x + step_by_step(own, root_mean_square(x, b["norm.weight"]), groups)
        if "mlp.fc1.weight" in b:
            value, gate = (root_mean_square(x, b["norm2.weight"]) @ b["mlp.fc1.weight"].T).chunk(2, -1)
            x = x + (value * silu(gate)) @ b["mlp.fc2.weight"].T
        i += 1
    return root_mean_square(x, w["norm_f.weight"]) @ w["lm_head.weight"].T


def saved(folder, state, groups: int = 1):
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    settings = {"d_model": D, "n_layer": 2, "vocab_size": VOCABULARY, "ssm_cfg": {"layer": "Mamba2", "ngroups": groups}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_language_model_gives_its_logits_behind_an_end_of_text(tmp_path, groups, mlp, tied):
    state = language_model(groups, mlp, tied)
    source = saved(tmp_path / "theirs", state, groups)
    found = load_format("mamba_ssm").read(source, Options())
    found.facts["source"] = {"format": "mamba_ssm", "path": str(source)}
    write_folder(tmp_path / "out", found, "a test")
    model = load_pretrained(tmp_path / "out")
    assert found.config.model.tie_head is tied
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    own = model(Noisy(ids, torch.zeros(2, 1, dtype=torch.float64))).logits
    for text, row in zip(ids, own, strict=True):
        reference = logits(state, torch.cat((torch.tensor([END]), text[:-1])), groups)
        torch.testing.assert_close(row[:, :VOCABULARY], reference[:, :VOCABULARY], rtol=1e-5, atol=1e-5)
        assert (row[:, VOCABULARY:] == -math.inf).all()


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_single_layer_goes_into_our_mixer(groups):
    state = mixer(torch.Generator().manual_seed(3), groups)
    layer = build(layer_config("layer.pt", state, {"ngroups": groups}), D)
    layer.load_state_dict(state)
    x = torch.randn(1, 11, D, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(layer(x)[0], step_by_step(state, x[0], groups), rtol=1e-5, atol=1e-5)


def test_the_first_offending_tensor_is_named(tmp_path):
    def refused(number: int, change, groups: int = 1) -> str:
        state = language_model()
        change(state)
        with pytest.raises(UserError) as caught:
            load_format("mamba_ssm").read(saved(tmp_path / str(number), state, groups), Options())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    first = "backbone.layers.0.mixer."
    assert "no tensor 'layers.1.mixer.A_log'" in refused(0, lambda s: s.pop("backbone.layers.1.mixer.A_log"))
    assert "no tensor 'backbone.embedding.weight'" in refused(1, lambda s: s.pop("backbone.embedding.weight"))
    assert "no tensor 'conv1d.weight', expected all of mamba-ssm's Mamba2 layer" in refused(
        2, lambda s: s.pop(f"{first}conv1d.weight")
    )
    assert "'layers.0.mixer.D' has shape [3], expected [4]" in refused(
        3, lambda s: s.update({f"{first}D": torch.ones(3)})
    )
    assert "'layers.0.norm.bias' found, expected nothing beside" in refused(
        4, lambda s: s.update({"backbone.layers.0.norm.bias": torch.ones(D)})
    )
    assert "in 5 group(s)" in refused(5, lambda s: None, groups=5)
    with pytest.raises(UserError, match=r"layer\.pt: no tensor 'dt_bias', expected all of mamba-ssm's Mamba2 layer"):
        layer_config("layer.pt", {"conv1d.weight": torch.ones(2, 1, 4)})
