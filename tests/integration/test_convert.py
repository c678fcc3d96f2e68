"""Weights out and in by the command line: a folder of weights does what its run did, foreign ones are used like it."""

import json
import math

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from diffusion_lm.errors import UserError
from diffusion_lm.evaluation.load import load_run
from diffusion_lm.noisy import Noisy
from diffusion_lm.weights.folder import load_pretrained, read_folder


@pytest.fixture
def exported(shared, tmp_path):
    """The shared run's weights as a folder."""
    done = shared.command("convert", "run", "run", "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, ""), done
    return tmp_path / "out"


def numbers(facts: dict) -> dict:
    """Of an evaluation, without what names the run."""
    names = ("val/nll", "val/nll_se", "val/bpb", "sequences", "tokens", "step", "weights")
    return {name: facts[name] for name in names}


def test_the_folder_evaluates_generates_and_is_described_like_the_run(shared, exported):
    own = shared.json("evaluate", "run", "--out", exported.parent / "a")
    again = shared.json("evaluate", exported)
    assert numbers(again) == numbers(own)
    assert (exported / "evaluation" / "validation" / "manifest.json").is_file()
    texts = [shared.json("generate", place, "--count", 2, "--seed", 3)["texts"] for place in ("run", exported)]
    assert texts[0] == texts[1]
    described = [shared.json("describe", place) for place in ("run/config.yaml", exported)]
    assert described[0] == described[1]
    both = shared.json("evaluate", "run", exported, "--out", exported.parent / "b")["manifest"]
    assert both["difference"]["nll"] == 0 and both["difference"]["common_noise_levels"]


def test_training_does_not_take_it_for_an_experiment(shared, exported):
    """Its weights would be left out without a word."""
    line = shared.refused("train", exported, "run=afresh")
    assert f"{exported}: got a folder of weights, expected an experiment; training.from_pretrained={exported} " in line
    assert f"starts one from these weights, and {exported}/experiment.yaml is the one that they are of" in line
    assert not (shared.folder / "afresh").exists()


@torch.no_grad()
def test_its_logits_are_the_runs_bit_for_bit(shared, exported, monkeypatch):
    monkeypatch.chdir(shared.folder)
    ids = torch.randint(258, (3, 32), generator=torch.Generator().manual_seed(0))
    noisy = Noisy(ids, torch.full((3, 1), 0.4, dtype=torch.float64))
    logits = load_run("run").model.cpu()(noisy).logits
    assert torch.equal(load_pretrained(exported)(noisy).logits, logits)
    assert torch.isfinite(logits[..., :257]).all()


def test_the_facts_and_the_card(shared, exported):
    facts, report = json.loads((exported / "config.json").read_text()), shared.reports("run")[12]
    assert (facts["step"], facts["tokens"], facts["vocabulary"]) == (12, 12 * 8 * 32, 257)
    assert facts["bound"]["val/nll"] == report["val/nll"] and facts["bound"]["exact"] is False
    assert facts["parameters"] == shared.result("run")["parameters"]
    dataset = json.loads((shared.folder / "shards" / "dataset.json").read_text())
    assert facts["dataset"] == {name: dataset[name] for name in facts["dataset"]}
    assert facts["tokenizer"]["fingerprint"] == dataset["tokenizer_fingerprint"]
    card = (exported / "README.md").read_text()
    for part in (f"{facts['parameters']['total']:,} (", "3,072 in 12 steps", f"{report['val/nll']:.4f} ± ",
                 dataset["corpus_hash"][:12], "an upper bound", "None is stated", "convert run run --out"):  # fmt: skip
        assert part in card
    saved = yaml.safe_load((exported / "experiment.yaml").read_text())
    assert saved == yaml.safe_load((shared.folder / "run" / "config.yaml").read_text())


def test_it_needs_no_shards_to_generate(shared, exported, tmp_path, monkeypatch):
    texts = shared.json("generate", "run")["texts"]
    monkeypatch.setattr(shared, "folder", tmp_path)
    assert not (tmp_path / "shards").exists()
    assert shared.json("generate", exported)["texts"] == texts


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["model.tie_head=true"], ["objective=gaussian"], ["training.ema_decays=[0.5]"]])
def test_other_models_go_out_and_in(place, overrides):
    place.train("run", *overrides)
    more = ["--ema", "0.5"] if "ema" in overrides[0] else []
    assert place.command("convert", "run", "run", "--out", "out", *more).code == 0
    assert place.json("evaluate", "out")["val/nll"] == place.json("evaluate", "run", *more)["val/nll"]
    assert place.command("convert", "run", "out", "--out", "again").code == 0
    one, two = (load_file(place.folder / name / "model.safetensors") for name in ("out", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    if "tie" in overrides[0]:
        assert json.loads((place.folder / "out" / "config.json").read_text())["tied"]


def foreign(folder, rows):
    """A folder of weights in MDLM's format, d_model 16, one block."""
    shapes = {"vocab_embed.embedding": (rows, 16), "sigma_map.mlp.0.weight": (8, 256), "sigma_map.mlp.0.bias": (8,)}
    shapes |= {"sigma_map.mlp.2.weight": (8, 8), "sigma_map.mlp.2.bias": (8,)}
    block = {"norm1.weight": (16,), "attn_qkv.weight": (48, 16), "attn_out.weight": (16, 16), "norm2.weight": (16,)}
    block |= {"mlp.0.weight": (64, 16), "mlp.0.bias": (64,), "mlp.2.weight": (16, 64), "mlp.2.bias": (16,)}
    block |= {"adaLN_modulation.weight": (96, 8), "adaLN_modulation.bias": (96,)}
    shapes |= {f"blocks.0.{name}": shape for name, shape in block.items()}
    shapes |= {"output_layer.norm_final.weight": (16,), "output_layer.linear.weight": (rows, 16)}
    shapes |= {"output_layer.linear.bias": (rows,), "output_layer.adaLN_modulation.weight": (32, 8)}
    shapes |= {"output_layer.adaLN_modulation.bias": (32,)}
    generator = torch.Generator().manual_seed(1)
    state = {f"backbone.{n}": 0.3 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_heads": 2, "model_length": 32}))
    return folder


@pytest.mark.parametrize(("form", "rows"), [("mdlm", 258), ("bd3lm", 258), ("duo", 258)])
def test_foreign_weights_are_evaluated_and_drawn_from(place, form, rows):
    foreign(place.folder / "theirs", rows)
    facts = place.json("convert", form, "theirs", "--out", "out", "data.path=shards", "sampler.num_steps=3")
    held = load_file(place.folder / "out" / "model.safetensors")
    assert facts["parameters"]["total"] == sum(value.numel() for value in held.values())
    found = place.json("evaluate", "out", "--sequences", 4, "--draws", 3)
    assert math.isfinite(found["val/nll"]) and found["val/nll"] > math.log(257) - 0.5  # random weights know nothing
    assert found["manifest"]["runs"][0]["process"] == ("uniform" if form == "duo" else "masked")
    assert len(place.json("generate", "out", "--count", 2)["texts"]) == 2
    assert "not evaluated here" in (place.folder / "out" / "README.md").read_text()
    described = place.json("describe", "out")
    assert (described["denoiser"], described["parameters"]) == ("dit", facts["parameters"]["total"])


def test_bad_input(place):
    place.train("run", "training.steps=1", "training.val_every=1", "training.samples=0")
    foreign(place.folder / "theirs", 258)
    assert "format: no variant 'mdml'; expected one of bd3lm" in place.refused("convert", "mdml", "run", "--out", "out")
    assert "--out run: is there already" in place.refused("convert", "run", "run", "--out", "run")
    assert "--out tiny.yaml/out: cannot be made in" in place.refused("convert", "run", "run", "--out", "tiny.yaml/out")
    assert "nothing: no run here" in place.refused("convert", "run", "nothing", "--out", "out")
    assert "expected no key=value" in place.refused("convert", "run", "run", "seed=3", "--out", "out")
    assert "the following arguments are required: --out" in place.refused("convert", "run", "run")
    assert "vocabulary: got 0" in place.refused("convert", "mdlm", "theirs", "--out", "out", "--vocabulary", 0)
    assert "denoiser.n_layer: unknown key" in place.refused(
        "convert", "mdlm", "theirs", "--out", "out", "denoiser.n_layer=3"
    )
    assert "no tensor 'denoiser.stack.blocks.1.mixer.norm.weight'" in place.refused(
        "convert", "mdlm", "theirs", "--out", "out", "denoiser.n_layers=2"
    )


def test_a_damaged_folder_is_refused(place):
    place.train("run", "training.steps=1", "training.val_every=1", "training.samples=0")
    assert place.command("convert", "run", "run", "--out", "out").code == 0
    out = place.folder / "out"
    weights, facts = (out / "model.safetensors").read_bytes(), (out / "config.json").read_text()

    def refused() -> str:
        text = place.refused("evaluate", "out")
        with pytest.raises(UserError):
            load_pretrained(out)
        return text

    (out / "model.safetensors").write_bytes(weights[:-1000])
    assert "out/model.safetensors: cannot be read as weights (" in refused()
    (out / "model.safetensors").unlink()
    assert "out/model.safetensors: cannot be read as weights (" in refused()
    (out / "model.safetensors").write_bytes(weights)
    state = read_folder(out).state
    for change, text in (
        ({"embed.weight": torch.zeros(3, 4)}, "'embed.weight' has shape [3, 4], expected [258, 32]"),
        ({"embed.more": torch.zeros(3)}, "'embed.more' found, expected nothing beside"),
        ({"head.bias": None}, "no tensor 'head.bias'"),
    ):
        changed = {name: value for name, value in (state | change).items() if value is not None}
        save_file(changed, out / "model.safetensors")
        assert text in refused()
    (out / "model.safetensors").write_bytes(weights)
    (out / "config.json").write_text(facts.replace('"version": 1,', '"version": 9,', 1))
    assert "config.json: version 9, expected 1; convert the weights again" in refused()
    (out / "config.json").write_text("{")
    assert "config.json: cannot be read" in refused()
    (out / "config.json").write_text(facts)
    assert "holds one set of weights, of decay 0.9, got --ema 0; leave it out" in place.refused(
        "evaluate", "out", "--ema", 0
    )


def test_a_full_disk_leaves_nothing(place):
    place.train("run", "training.steps=1", "training.val_every=1", "training.samples=0")
    before = sorted(place.folder.iterdir())
    code, out, err = place.command("convert", "run", "run", "--out", "out", limit=100_000)
    assert (code, out) == (1, "")
    assert err.startswith("error: --out out: the weights could not be written (") and err.count("\n") == 1
    assert sorted(place.folder.iterdir()) == before
