"""MDLM's, BD3-LM's and Duo's weights: loaded, they give the logits of their transformer, rewritten in one function."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion_lm.errors import UserError
from diffusion_lm.noisy import Noisy
from diffusion_lm.weights.folder import load_pretrained, write_folder
from diffusion_lm.weights.formats.base import Options, load_format

VOCABULARY = 257
MASK = 257


def norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5) * weight


def straight_line(w: dict[str, Tensor], ids: Tensor, sigma: Tensor, heads: int, sees: Tensor | None = None) -> Tensor:
    """Logits [B, L, rows] for ids [B, L] and sigma [B]. sees [L, L]: what a position attends to; positions count from 0
    again in the second half where that mask is twice as long as the text (BD3-LM's x_t beside x_0)."""
    frequency = torch.tensor([10_000.0 ** (-i / 128) for i in range(128)])
    angle = sigma[:, None] * frequency
    c = torch.cat((torch.cos(angle), torch.sin(angle)), 1) @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"]
    c = (c * torch.sigmoid(c)) @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"]
    c = c * torch.sigmoid(c)
    x = w["vocab_embed.embedding"][ids]
    d, length = x.shape[2], x.shape[1]
    place = torch.arange(length) if sees is None else torch.arange(length) % (length // 2)

    def turned(x: Tensor) -> Tensor:  # [B, L, P]: channels i and i + P/2 are a complex number
        half = x.shape[-1] // 2
        turn = torch.outer(place, torch.tensor([10_000.0 ** (-i / half) for i in range(half)]))
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turn), turn)
        return torch.cat((z.real, z.imag), -1)

    i = 0
    while f"blocks.{i}.norm1.weight" in w:
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items()}
        m = (c @ b["adaLN_modulation.weight"].T + b["adaLN_modulation.bias"])[:, None]
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (m[..., k * d : k * d + d] for k in range(6))
        y = (norm(x, b["norm1.weight"]) * (1 + scale_msa) + shift_msa) @ b["attn_qkv.weight"].T
        out = []
        for head in range(heads):
            own = slice(head * d // heads, (head + 1) * d // heads)
            q, k, v = (y[..., part * d : part * d + d][..., own] for part in range(3))
            score = turned(q) @ turned(k).mT / math.sqrt(d // heads)
            if sees is not None:
                score = score.masked_fill(~sees, -math.inf)
            out.append(torch.softmax(score, -1) @ v)
        x = x + gate_msa * (torch.cat(out, -1) @ b["attn_out.weight"].T)
        y = (norm(x, b["norm2.weight"]) * (1 + scale_mlp) + shift_mlp) @ b["mlp.0.weight"].T + b["mlp.0.bias"]
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + gate_mlp * (y @ b["mlp.2.weight"].T + b["mlp.2.bias"])
        i += 1
    m = (c @ w["output_layer.adaLN_modulation.weight"].T + w["output_layer.adaLN_modulation.bias"])[:, None]
    y = norm(x, w["output_layer.norm_final.weight"]) * (1 + m[..., d:]) + m[..., :d]
    return y @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def masked_ids(rows: int = 3, length: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCABULARY, (rows, length), generator=generator)
    return ids.masked_fill(torch.rand(rows, length, generator=generator) < 0.5, MASK)


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def converted(tmp_path, form: str, source, *overrides: str, **options):
    """The model after it was written and loaded."""
    found = load_format(form).read(source, Options(overrides, **options))
    found.facts["source"] = {"format": form, "path": str(source)}
    write_folder(tmp_path / "out", found, "a test")
    return load_pretrained(tmp_path / "out")


@torch.no_grad()
def assert_same(model, reference: Tensor, ids: Tensor, level: Tensor) -> None:
    found = model(Noisy(ids, level)).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[..., :VOCABULARY], reference[..., :VOCABULARY], rtol=1e-5, atol=1e-5)
    assert (found[..., VOCABULARY:] == -torch.inf).all()


KINDS = ["lightning", "state dict", "pytorch_model.bin", "model.safetensors", "in parts"]


@pytest.mark.parametrize("kind", KINDS)
def test_mdlm_gives_its_logits(theirs, tmp_path, kind):
    own = theirs.weights()
    if kind == "lightning":
        source = theirs.checkpoint(tmp_path / "last.ckpt", own)
    elif kind == "state dict":
        source = tmp_path / "weights.pt"
        torch.save(theirs.saved_state(own), source)
    else:
        source = theirs.hugging_face(tmp_path / "hub", own, kind)
    model, ids = converted(tmp_path, "mdlm", source), masked_ids()
    reference = straight_line(own, ids, torch.zeros(3), theirs.HEADS)
    assert_same(model, reference, ids, levels(0.1, 0.5, 1.0))  # it is told nothing of the level


@pytest.mark.parametrize("ema", [None, 0.99, 0.0])
def test_the_average_is_a_list_in_the_order_of_parameters(theirs, tmp_path, ema):
    live, average = theirs.weights(0), theirs.weights(1)
    source = theirs.checkpoint(tmp_path / "last.ckpt", live, average)
    model, ids = converted(tmp_path, "mdlm", source, ema=ema), masked_ids()
    wanted = live if ema == 0 else average
    assert_same(model, straight_line(wanted, ids, torch.zeros(3), theirs.HEADS), ids, levels(0.2, 0.6, 0.9))


@pytest.mark.parametrize("kind", ["lightning", "model.safetensors", "override"])
def test_mdlm_with_time_conditioning(theirs, tmp_path, kind):
    own, overrides = theirs.weights(), []
    if kind == "lightning":
        source = theirs.checkpoint(tmp_path / "last.ckpt", own, time_conditioning=True)
    elif kind == "model.safetensors":
        source = theirs.hugging_face(tmp_path / "hub", own, time_conditioning=True)
    else:
        source = theirs.hugging_face(tmp_path / "hub", own)
        overrides = ["denoiser.conditioning.time_conditioning=true"]
    model, ids = converted(tmp_path, "mdlm", source, *overrides), masked_ids(4)
    sigma = torch.tensor([0.0, math.log(2), -math.log1p(-0.9), -math.log(1e-3)])  # theirs ends at alpha = 1e-3
    assert_same(model, straight_line(own, ids, sigma, theirs.HEADS), ids, levels(0.0, 0.5, 0.9, 1.0))


@pytest.mark.parametrize("extra", [0, 1])
def test_duo_is_told_sigma_over_the_uniform_process(theirs, tmp_path, extra):
    """With a row for padding, as GPT-2's tokenizer has it there: no id of text, and left out."""
    own = theirs.weights(2, rows=VOCABULARY + extra)
    model = converted(tmp_path, "duo", theirs.checkpoint(tmp_path / "duo.ckpt", own, parameterization="mean"))
    assert model.process.symbols == VOCABULARY
    ids = masked_ids().clamp(max=VOCABULARY - 1)
    sigma = -torch.log1p(-torch.tensor([0.05, 0.5, 0.99]))
    assert_same(model, straight_line(own, ids, sigma, theirs.HEADS), ids, levels(0.05, 0.5, 0.99))


def test_bd3lm_in_one_block_is_what_its_training_mask_gives(theirs, tmp_path):
    own, length = theirs.weights(3), theirs.LENGTH
    source = theirs.hugging_face(tmp_path / "hub", own, block_size=length, cross_attn=True)
    model, ids = converted(tmp_path, "bd3lm", source), masked_ids()
    clean = masked_ids().flip(0).clamp(max=VOCABULARY - 1)
    place, half = torch.arange(2 * length) % length, torch.arange(2 * length) >= length
    block = place // length
    diagonal = (block[:, None] == block) & (half[:, None] == half)
    offset = (block[:, None] > block) & half & ~half[:, None]
    causal = (block[:, None] >= block) & half & half[:, None]
    both = torch.cat((ids, clean), 1)
    reference = straight_line(own, both, torch.zeros(3), theirs.HEADS, diagonal | offset | causal)
    assert_same(model, reference[:, :length], ids, levels(0.3, 0.3, 0.3))


def test_what_the_file_tells_is_in_the_config_and_in_the_facts(theirs, tmp_path):
    source = theirs.checkpoint(tmp_path / "last.ckpt", theirs.weights(), theirs.weights(1))
    found = load_format("mdlm").read(source, Options())
    assert (found.config.data.length, found.config.training.ema_decay) == (theirs.LENGTH, 0.99)
    assert (found.config.denoiser.n_layers, found.config.denoiser.mixer.head_dim) == (theirs.BLOCKS, 16)
    assert (found.facts["step"], found.facts["tokens"]) == (30, 30 * 4 * theirs.LENGTH)
    assert found.facts["weights"] == "averaged"
    assert any("dropout" in note for note in found.facts["notes"])


def test_nothing_in_a_file_is_run(theirs, tmp_path):
    """A pickle may name any function to be called while it is read."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    own, path = theirs.weights(), tmp_path / "last.ckpt"
    torch.save({"state_dict": theirs.saved_state(own), "hyper_parameters": {"config": Trap()}}, path)
    found = load_format("mdlm").read(path, Options())
    assert len(found.state) > 20
    assert not (tmp_path / "trapped").exists()


def refusal(form: str, source, *overrides: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_format(form).read(source, Options(overrides, **options))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("form", ["mdlm", "bd3lm", "duo"])
def test_the_first_offending_tensor_is_named(theirs, tmp_path, form):
    def saved(change):
        state = theirs.saved_state(theirs.weights())
        change(state)
        torch.save(state, tmp_path / "weights.pt")
        return refusal(form, tmp_path / "weights.pt")

    assert "no tensor 'blocks.1.attn_out.weight', expected all of" in saved(
        lambda s: s.pop("backbone.blocks.1.attn_out.weight")
    )
    assert "no tensor 'vocab_embed.embedding'" in saved(lambda s: s.pop("backbone.vocab_embed.embedding"))
    assert "'blocks.0.mlp.2.bias' has shape [7], expected [32]" in saved(
        lambda s: s.update({"backbone.blocks.0.mlp.2.bias": torch.zeros(7)})
    )
    assert "'blocks.0.extra.weight' found, expected nothing beside" in saved(
        lambda s: s.update({"backbone.blocks.0.extra.weight": torch.zeros(7)})
    )
    assert "'label.weight' and 1 other(s) found" in saved(
        lambda s: s.update({"label.weight": torch.zeros(7), "label.bias": torch.zeros(7)})
    )


def test_an_average_of_other_parameters_is_refused(theirs, tmp_path):
    own, average = theirs.weights(), theirs.weights(1)
    average.pop("output_layer.linear.bias")
    path = theirs.checkpoint(tmp_path / "last.ckpt", own, average)
    assert "(ema.shadow_params) has 29 tensors, expected 30" in refusal("mdlm", path)
    average = dict(reversed(theirs.weights(1).items()))
    path = theirs.checkpoint(tmp_path / "last.ckpt", own, average)
    assert "(ema.shadow_params): 'vocab_embed.embedding' has shape [64], expected [258, 32]" in refusal("mdlm", path)
    assert "no average of decay 0.5, expected --ema 0 or 0.99" in refusal("mdlm", path, ema=0.5)


def test_what_is_no_such_model_is_refused(theirs, tmp_path):
    own = theirs.weights()
    sedd = theirs.checkpoint(tmp_path / "sedd.ckpt", own, parameterization="sedd")
    assert "parameterization 'sedd', expected 'subs'" in refusal("mdlm", sedd)
    state = {name: value for name, value in theirs.saved_state(own).items() if "inv_freq" not in name}
    torch.save(state, tmp_path / "bare.pt")
    assert "the number of heads is not in it (got None, d_model 32)" in refusal("mdlm", tmp_path / "bare.pt")
    (tmp_path / "config.json").write_text('{"n_heads": 4}')
    assert load_format("mdlm").read(tmp_path / "bare.pt", Options()).config.denoiser.mixer.head_dim == 8
    larger = theirs.checkpoint(tmp_path / "larger.ckpt", theirs.weights(rows=300))
    assert "the token table has 300 rows, expected 258" in refusal("mdlm", larger)
    assert "300 rows, tokenizer 'bytes' 257 ids; expected the same" in refusal("duo", larger)
    smaller = theirs.checkpoint(tmp_path / "smaller.ckpt", theirs.weights(rows=200))
    assert "got 257 ids (tokenizer 'bytes'), the token table has 200 rows" in refusal("mdlm", smaller)
    with pytest.raises(UserError, match=r"format: no variant 'mdml'; expected one of .*; did you mean 'mdlm'"):
        load_format("mdml")


def test_what_cannot_be_read_is_refused(theirs, tmp_path):
    assert "no such file or folder" in refusal("mdlm", tmp_path / "nothing.ckpt")
    (tmp_path / "empty").mkdir()
    assert "no weights in it; expected model.safetensors or pytorch_model.bin" in refusal("mdlm", tmp_path / "empty")
    path = theirs.checkpoint(tmp_path / "last.ckpt", theirs.weights())
    path.write_bytes(path.read_bytes()[:5000])
    assert "last.ckpt: cannot be read as weights (" in refusal("mdlm", path)
    folder = theirs.hugging_face(tmp_path / "hub", theirs.weights())
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors: cannot be read as weights (" in refusal("mdlm", folder)
    (tmp_path / "a.txt").write_text("hiho")
    line = refusal("mdlm", tmp_path / "a.txt")
    assert "a.txt: cannot be read as weights (it is no file that torch.save wrote, or not the whole of one); " in line
    assert "Error" not in line
    torch.save([1, 2], tmp_path / "list.pt")
    assert "it holds a list, expected a dict of tensors" in refusal("mdlm", tmp_path / "list.pt")
    torch.save({"weight": 1}, tmp_path / "numbers.pt")
    assert "'weight' is a int, expected a tensor" in refusal("mdlm", tmp_path / "numbers.pt")


def test_a_tokenizer_that_is_not_here_still_gives_logits(theirs, tmp_path):
    own = theirs.weights(rows=120)
    source = theirs.checkpoint(tmp_path / "last.ckpt", own)
    found = load_format("mdlm").read(source, Options(["data.tokenizer=elsewhere"]))
    assert found.vocabulary == 119
    assert any("'elsewhere' is not in this project" in note for note in found.facts["notes"])
    found = load_format("duo").read(source, Options(["data.tokenizer=elsewhere"], vocabulary=117))
    assert found.vocabulary == 117
    assert torch.equal(F.pad(found.state["embed.weight"], (0, 0, 0, 3))[:117], own["vocab_embed.embedding"][:117])
