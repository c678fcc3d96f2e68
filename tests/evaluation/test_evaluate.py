"""evaluate as a person types it: what is printed, what is written, and every refusal's line."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from diffusion_lm.experiment import kind, load, reported

SENTENCES = """the company said N shares were n't sold
mr. <unk> 's dog runs under the old stone
no it was black monday
"""


@pytest.fixture(scope="session")
def text(world):
    """A text set's folder: ptb, in three lines."""
    folder = world.folder / "sets" / "ptb"
    folder.mkdir(parents=True)
    (folder / "valid.txt").write_text(SENTENCES, encoding="utf-8")
    return folder


def read(place):
    """A written manifest, sequences and curves."""
    manifest = json.loads((place / "manifest.json").read_text())
    rows = list(csv.reader((place / "sequences.csv").open()))
    return manifest, rows[0], np.array(rows[1:], dtype=float)


def test_what_is_written(world, evaluate):
    found = evaluate(world.run("masked"), "--draws", 4, "--seed", 9)
    place = world.folder / "masked" / "evaluation" / "validation"
    manifest, names, rows = read(place)
    assert found["out"] == "masked/evaluation/validation" and found["manifest"] == manifest
    assert names == ["place", "nats_per_token masked"] and rows.shape == (6, 2)
    assert found["val/nll"] == pytest.approx(rows[:, 1].mean())
    assert found["val/nll_se"] == pytest.approx(rows[:, 1].std(ddof=1) / math.sqrt(6))
    curve = list(csv.DictReader((place / "curve.csv").open()))
    assert sum(int(row["draws"]) for row in curve) == 6 * 4
    assert {row["level_low"]: float(row["nats_per_predicted_token"]) for row in curve} == pytest.approx(
        {f"{float(middle) - 0.05:.1f}": value for middle, value in found["cross_entropy_by_noise_level"].items()}
    )
    assert (place / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in place.iterdir()) == ["curve.csv", "curve.png", "manifest.json", "sequences.csv"]


def test_the_manifest_says_how(world, evaluate):
    facts = json.loads((world.folder / "shards" / "dataset.json").read_text())
    found = evaluate(world.run("masked"), "--draws", 4, "--seed", 9)["manifest"]
    assert found["data"] == {"name": "shards", "path": "shards", "hash": facts["corpus_hash"], "split": "val"}
    assert found["tokenizer"] == {"name": "bytes", "hash": facts["tokenizer_fingerprint"]}
    assert found["protocol"] == {"name": "shards", "boundary": facts["packing"], "chunk_length": 32}
    assert (found["draws"], found["seed"], found["precision"], found["device"]) == (4, 9, "float32", "cpu")
    assert (found["sequences"], found["tokens_scored"]) == (6, 6 * 32)
    assert found["sequences_in_set"] == facts["splits"]["val"]["sequences"]
    assert found["places"] == [i * found["sequences_in_set"] // 6 for i in range(6)]
    assert found["tokens_dropped"] == facts["splits"]["val"]["dropped_tokens"]
    assert set(found["versions"]) == {"python", "torch", "lightning", "numpy", "omegaconf"} and found["git"]
    [run] = found["runs"]
    assert (run["run"], run["step"], run["process"], run["exact"]) == ("masked", 2, "masked", False)
    assert run["weights"] == {"averaged": True, "ema_decay": 0.9}
    assert run["terms"]["diffusion"] == run["val/nll"] and set(run["beside"]) == {"mdlm_cut"}


def test_text_by_protocol(world, evaluate, command, text):
    found = evaluate(world.run("masked"), "--data", text, "--protocol", "mdlm-1022-eos")
    stream = sum(map(len, ("the company said 1 shares weren't sold", "mr. ?'s dog runs under the old stone",
                           "no it was black monday"))) + 3  # fmt: skip
    manifest = found["manifest"]
    assert stream == 99 and (found["sequences"], found["tokens"]) == (3, 96)
    assert (manifest["tokens_dropped"], manifest["text_bytes_dropped"]) == (9, 8)
    # ends of rows and of chunks are scored and stand for no bytes: 2 rows' ends and 6 of chunks
    assert (manifest["text_bytes_scored"], manifest["marks_scored"]) == (88, 8)
    assert found["val/bpb"] == pytest.approx(found["val/nll"] * 96 / math.log(2) / 88)
    assert manifest["protocol"]["boundary"].startswith("end-of-text after each row; each chunk begins and ends with ")
    assert manifest["data"]["name"] == "ptb" and manifest["data"]["rows"] == 3
    out = command("evaluate", "masked", "--data", text, "--protocol", "mdlm-1022-eos").out
    assert "96 tokens scored (88 bytes of text, 8 end marks without any), 9 left over at the end and dropped\n" in out
    assert "  published   not comparable with published numbers: those are at length 1024 with tokenizer gpt2" in out
    assert out.endswith("  written     masked/evaluation/ptb-mdlm-1022-eos\n")


def test_a_named_set_in_its_folder(world, evaluate, text, monkeypatch):
    monkeypatch.setenv("DIFFUSION_LM_DATA", "sets")
    found = evaluate(world.run("masked"), "--data", "ptb", "--out", "there/ptb", "--sequences", 2)
    assert found["manifest"]["protocol"]["name"] == "whole-corpus" and found["sequences"] == 2
    assert (world.folder / "there" / "ptb" / "manifest.json").is_file()


def test_other_shards(world, evaluate):
    found = evaluate(world.run("masked"), "--data", "other_shards")
    facts = json.loads((world.folder / "other_shards" / "dataset.json").read_text())
    assert found["manifest"]["data"]["hash"] == facts["corpus_hash"]
    assert found["sequences"] == facts["splits"]["val"]["sequences"] and found["manifest"]["places"] == "all"


def test_float64_agrees_and_says_so(world, evaluate):
    single, double = (evaluate(world.run("masked"), "--precision", precision) for precision in ("float32", "float64"))
    assert double["precision"] == "float64" and double["out"] == "masked/evaluation/validation-float64"
    assert single["val/nll"] != double["val/nll"] == pytest.approx(single["val/nll"], abs=1e-5)


def test_a_run_and_itself(world, evaluate):
    world.run("masked")
    found = evaluate("masked", "masked")["manifest"]["difference"]
    assert (found["nll"], found["nll_se"], found["share_of_sequences_lower"]) == (0, 0, 0)
    assert found["common_noise_levels"] and found["caution"] is None


def test_two_runs(world, evaluate, command):
    """The difference is that of the sequences' bounds, and each run's bound is what it is by itself."""
    world.run("masked"), world.run("longer", "training.steps=6", "training.lr=1e-2", "evaluation.seed=5")
    found = evaluate("masked", "longer")["manifest"]
    _, names, rows = read(world.folder / "masked" / "evaluation" / "validation-against-longer")
    assert names[1:] == ["nats_per_token masked", "nats_per_token longer"]
    apart = rows[:, 2] - rows[:, 1]
    assert found["difference"]["nll"] == pytest.approx(apart.mean())
    assert found["difference"]["nll_se"] == pytest.approx(apart.std(ddof=1) / math.sqrt(6))
    assert found["difference"]["common_noise_levels"]  # though the runs' own evaluation seeds differ
    alone = evaluate("longer", "--seed", found["seed"])
    assert found["runs"][1]["val/nll"] == alone["val/nll"] != evaluate("longer", "--seed", 5)["val/nll"]
    out = command("evaluate", "masked", "longer").out
    assert f"longer - masked: {apart.mean():+.4f} ± " in out and "over the same 6 sequences" in out


@pytest.mark.slow
def test_two_processes_and_an_exact_run(world, command, evaluate):
    world.run("masked"), world.run("gaussian", "objective=gaussian")
    out = command("evaluate", "masked", "gaussian").out
    assert "not compared: bounds of different kinds (masked, continuous time; gaussian, continuous time) have " in out
    assert "is lower on" not in out
    found = evaluate("masked", "gaussian")["manifest"]
    assert not found["difference"]["comparable"] and not found["difference"]["common_noise_levels"]
    assert found["runs"][1]["kind"]["depends_on"] == {"log_snr_range": [3.0, -7.0]}
    world.run("causal", "objective=autoregressive", "sampler=left_to_right", "denoiser.mixer.causal=true")
    out = command("evaluate", "causal").out
    assert "  exact       " in out and "at most" not in out and "noise level" not in out
    assert not (world.folder / "causal" / "evaluation" / "validation" / "curve.csv").exists()
    caution = evaluate("masked", "causal")["manifest"]["difference"]["caution"]
    assert caution == (
        "one number is exact and the other a bound (masked, continuous time; left_to_right, exact), whose slack is "
        "part of the difference"
    )


@pytest.mark.parametrize(("run", "overrides"), [
    ("masked", []),
    ("literal", ["objective=dimba_literal"]),
])  # fmt: skip
def test_what_an_experiment_is_said_to_report_is_what_it_reports(world, run, overrides):
    result = json.loads((world.folder / world.run(run, *overrides) / "result.json").read_text())
    config = load(world.folder / run / "config.yaml")
    said = {name for name in result["metrics"] if name.startswith("val/")}
    assert set(reported(config)) == said and result["kind"]["over"] == kind(config).over
    assert kind(config).over == ("continuous time" if run == "masked" else "no bound")


STEPS = ("objective=discrete_time", "process=uniform")


def test_bounds_over_steps_and_over_continuous_time_are_not_compared(world, evaluate, command):
    """Same process: the kind is what tells them apart, in the manifest and in result.json."""
    world.run("uniform", "objective=uniform"), world.run("steps", *STEPS, "objective.num_steps=1")
    out = command("evaluate", "steps", "uniform").out
    assert "not compared: bounds of different kinds (uniform, 1 step; uniform, continuous time) have " in out
    assert "  kind        uniform, 1 step; num_steps 1; schedule {'name': 'log_linear', 'eps': 0.001}\n" in out
    kinds = [run["kind"] for run in evaluate("steps", "uniform")["manifest"]["runs"]]
    assert kinds[0] == {"process": "uniform", "over": "1 step", "depends_on": {
        "num_steps": 1, "schedule": {"name": "log_linear", "eps": 0.001}}}  # fmt: skip
    assert kinds[1] == {"process": "uniform", "over": "continuous time", "depends_on": {}}
    assert json.loads((world.folder / "steps" / "result.json").read_text())["kind"] == kinds[0]


def test_bounds_of_one_kind_with_other_schedules_are_compared_with_a_caution(world, evaluate, command):
    """A T-step bound depends on the schedule, a continuous-time one does not."""
    world.run("steps", *STEPS, "objective.num_steps=1")
    world.run("quarter", *STEPS, "objective.num_steps=1", "schedule=half_cosine")
    out = command("evaluate", "steps", "quarter").out
    assert "quarter - steps: " in out
    assert "  caution     the bounds depend on schedule, which differs: slack is part of the difference\n" in out
    world.run("uniform", "objective=uniform"), world.run("cosine", "objective=uniform", "schedule=half_cosine")
    found = evaluate("uniform", "cosine")["manifest"]["difference"]
    assert found["comparable"] and found["common_noise_levels"] and found["caution"] is None


def test_one_sequence(world, evaluate, command):
    found = evaluate(world.run("masked"), "masked", "--sequences", 1)
    assert found["val/nll_se"] is None and found["manifest"]["difference"]["nll_se"] is None
    assert found["beside"]["mdlm_cut"]["standard_error"] is None
    assert "(one sequence, no ±) nats per token" in command("evaluate", "masked", "--sequences", 1).out


@pytest.mark.parametrize(("argv", "line"), [
    (["--draws", "0"], "draws: got 0, expected at least 1"),
    (["--sequences", "-1"], "sequences: got -1, expected 0 or more"),
    (["--seed", "-1"], "seed: got -1, expected 0 or more"),
    (["--samples", "-1"], "samples: got -1, expected 0 or more"),
    (["--precision", "float16"], "precision: no choice 'float16'; expected one of float32, float64; did you mean "),
    (["--protocol", "sedd-1024"], "--protocol sedd-1024: the run's own validation split is packed already; leave it "
                                  "out, or give --data TEXT"),
    (["--data", "other_shards", "--protocol", "sedd-1024"], "--protocol sedd-1024: other_shards is packed already"),
    (["--data", "sets/ptb", "--protocol", "sedd"], "--protocol: no variant 'sedd'; expected one of mdlm-1022-eos, "),
    (["--data", "lm1b"], "--data lm1b: no text_sets/lm1b; put split 'test' of the hub set billion-word-benchmark/lm1b"),
    (["--data", "short_shards"], "--data short_shards: shards of length 16, the run has length 32; give shards that "
                                 "were made with --length 32, or the text itself"),
    (["--data", "few.txt"], "--data few.txt: 4 tokens are not one sequence of 32; give more text"),
    (["--out", "tiny.yaml"], "tiny.yaml: results cannot be written there (") ,
])  # fmt: skip
def test_refusals(world, refused, text, argv, line):
    (world.folder / "few.txt").write_text("few")
    assert refused(world.run("masked"), *argv).startswith(line)


def test_runs_whose_sequences_do_not_match(world, refused, evaluate, text):
    world.run("masked")
    world.run("elsewhere", "data.path=other_shards")
    line = refused("masked", "elsewhere")
    assert line.startswith("masked and elsewhere: corpora differ (")
    assert line.endswith("expected one corpus; give --data for a text that both are scored on")
    assert evaluate("masked", "elsewhere", "--data", text)["manifest"]["difference"]["common_noise_levels"]
    world.run("short", "data.path=short_shards", "data.length=16")
    for more in ([], ["--data", text]):
        assert refused("masked", "short", *more) == (
            "masked and short: lengths differ (32 and 16), so that their sequences do not match; expected one length; "
            "evaluate each by itself"
        )


def test_an_objective_without_a_bound(world, refused):
    world.run("literal", "objective=dimba_literal")
    assert refused("literal") == (
        "literal: objective 'dimba_literal' has no likelihood bound; expected a run of one that has, or draw text from "
        "this one: python -m diffusion_lm generate"
    )


def test_weights_that_diverged(world, command):
    import torch

    world.run("masked")
    shutil.copytree(world.folder / "masked", world.folder / "broken")
    file = world.folder / "broken" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["model.head.bias"].fill_(torch.nan)
    torch.save(checkpoint, file)
    done = command("evaluate", "broken")
    assert (done.code, done.out) == (1, "")
    assert done.err == ("error: broken: the bound is no number; the model's weights have diverged, train it again\n")


def test_what_is_no_run(world, refused):
    world.run("masked")
    assert refused("tiny.yaml") == "tiny.yaml: is a file; expected the folder of a run, like runs/NAME"
    for name in ("masked/config.yaml", "masked/checkpoints/last.ckpt"):
        assert refused(name) == f"{name}: is a file; expected the folder of a run; did you mean masked?"
    shutil.copytree(world.folder / "masked", world.folder / "bare")
    (world.folder / "bare" / "checkpoints" / "last.ckpt").unlink()
    assert refused("bare") == (
        "bare: the run is finished, but bare/checkpoints/last.ckpt is gone; put it back, or train it once more in "
        "another folder: python -m diffusion_lm train bare/config.yaml run=NEW"
    )
