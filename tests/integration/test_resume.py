"""An interrupted run that is repeated goes on as if nothing had been: every loss, every validation, every weight.

A signal comes at a chosen call of a chosen function of the training process, so that each test always hits the same
place; test_arbitrary_moments hits where it may. The tiny corpus has fewer sequences than a run uses: its order begins
anew in the middle of it.
"""

import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

INT, TERM, KILL, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1
STATUS = {INT: 130, TERM: 75, USR1: 75, KILL: -9}
STEP = "diffusion_lm.lightning_module:DiffusionModule.training_step"
VALIDATE = "diffusion_lm.lightning_module:DiffusionModule.validation_step"
BATCH_END = "diffusion_lm.training.callbacks:Checkpoints.on_train_batch_end"
VALIDATED = "diffusion_lm.training.callbacks:Checkpoints.on_validation_end"
REPORTED = "diffusion_lm.training.callbacks:Report.on_validation_end"
SAVE = "torch:save"
RENAME = "os:replace"  # 1 is config.yaml; then the checkpoints after steps 3, 4, 6, 8, 9, 12 and result.json
START = "diffusion_lm.training.train:make_trainer"
FINISH = "diffusion_lm.training.train:finish"


def fault(place, call=1, number=KILL, when="before"):
    return {"place": place, "call": call, "signal": int(number), "when": when}


def differences(a, b, where=""):
    """Where two trees of numbers and tensors are not bit for bit the same."""
    if isinstance(a, dict):
        keys = [f"{where}: only in one: {set(a) ^ set(b)}"] if set(a) != set(b) else []
        return keys + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple):
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{where}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)
    return [] if same else [f"{where}: {a} is not {b}"]


def outcome(place, run):
    """All that a run has computed: curves, validations, weights, averages, optimiser state, learning-rate schedule."""

    def kept(numbers):
        return {name: value for name, value in numbers.items() if not name.startswith("throughput")}

    return {
        "curves": kept(place.curves(run)),
        "reports": {step: kept(line) for step, line in place.reports(run).items()},
        "metrics": kept(place.result(run)["metrics"]),
        "checkpoint": place.checkpoint(run),
        "sample": place.result(run)["sample"],
    }


@pytest.fixture(scope="module")
def whole(shared):
    """The outcome of an uninterrupted run with these overrides."""
    made = {}

    def run(*overrides):
        if overrides not in made:
            name = f"whole{len(made)}"
            shared.train(name, *overrides)
            made[overrides] = outcome(shared, name)
        return made[overrides]

    return run


def go_on(place, run, whole, *overrides):
    """Repeat the command to the end; everything is as in a run that nobody interrupted."""
    place.train(run, *overrides)
    assert differences(whole(*overrides), outcome(place, run)) == []


@pytest.mark.slow
def test_the_corpus_ends_within_a_run(shared):
    from diffusion_lm.data.info import DatasetInfo

    tiny = shared.checkpoint("run")["experiment"]["training"]
    used = tiny["steps"] * tiny["batch_size"]
    assert DatasetInfo.load(shared.folder / "shards").splits["train"].sequences < 0.8 * used


POINTS = [
    (TERM, START, 1, "before", None),
    (INT, START, 1, "before", None),
    (KILL, START, 1, "after", None),
    (KILL, STEP, 1, "before", None),
    (INT, STEP, 2, "before", 2),
    (TERM, STEP, 4, "before", 4),
    (USR1, STEP, 7, "before", 7),
    (KILL, STEP, 7, "before", 6),
    (TERM, VALIDATE, 1, "before", 4),
    (INT, VALIDATE, 3, "before", 8),
    (KILL, VALIDATE, 4, "before", 6),
    (KILL, SAVE, 3, "before", 4),
    (KILL, SAVE, 3, "after", 4),
    (KILL, RENAME, 3, "after", 4),
    (KILL, REPORTED, 1, "before", 3),
    (KILL, VALIDATED, 1, "before", 3),
    (KILL, VALIDATED, 2, "after", 8),
    (TERM, VALIDATED, 2, "after", 9),
    (KILL, BATCH_END, 3, "after", 3),
    (KILL, BATCH_END, 9, "before", 8),
    (TERM, BATCH_END, 3, "after", 4),
]


@pytest.mark.parametrize(("number", "where", "call", "when", "step"), POINTS)
def test_interrupted_once(place, whole, number, where, call, when, step):
    """`step` is where the interrupted run left its checkpoint."""
    done = place.train("run", faults=[fault(where, call, number, when)], status=STATUS[number])
    saved = place.folder / "run" / "checkpoints" / "last.ckpt"
    assert (place.checkpoint("run")["global_step"] if saved.exists() else None) == step
    if number != KILL:
        assert f"{signal.Signals(number).name}: stopping after this step" in done.err
        assert place.result("run")["status"] == "interrupted" and place.result("run")["step"] == (step or 0)
    again = place.command("train", "tiny.yaml", "run=run")
    assert again.code == 0 and (f"resuming at step {step}\n" in again.out) == (step is not None)
    assert differences(whole(), outcome(place, "run")) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, KILL])
@pytest.mark.parametrize("call", range(1, 13))
def test_interrupted_in_each_step(place, whole, number, call):
    place.command("train", "tiny.yaml", "run=run", faults=[fault(STEP, call, number)])
    go_on(place, "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(KILL, KILL, KILL), (TERM, KILL, INT), (TERM, TERM, TERM)])
def test_interrupted_again_and_again(place, whole, numbers):
    for number in numbers:
        place.train("run", faults=[fault(STEP, 3, number)], status=STATUS[number])
    go_on(place, "run", whole)


def test_killed_before_it_takes_a_step_twice_in_a_row(place, whole):
    place.train("run", faults=[fault(STEP, 5, KILL)], status=-9)
    for _ in range(2):
        place.train("run", faults=[fault(STEP, 1, KILL)], status=-9)
    go_on(place, "run", whole)


VARIANTS = {
    "accumulation": ["training.micro_batch=2", "training.val_every=5"],
    "readers": ["data.num_workers=2"],
    "no validation": ["training.val_every=0", "training.checkpoint_every=5"],
    "live weights": ["training.ema_decay=0", "training.log_every=5", "training.samples=0"],
    "bfloat16": ["training.precision=bfloat16"],
    "muon": [
        "training.optimizer=muon",
        "training.lr_schedule=wsd",
        "training.lr_multipliers={embed: 3.0, denoiser.stack: 0.5}",
        "training.ema_decays=[0.3, 0.05]",
    ],
    "dimba": ["objective=gaussian", "denoiser={name: dimba, n_layers: 1, mixer: {inner: {head_dim: 16, d_state: 8}}}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(TERM, marks=pytest.mark.long), KILL])
@pytest.mark.parametrize("name", VARIANTS)
def test_other_settings(place, whole, name, number):
    overrides = VARIANTS[name]
    passes = 4 if name == "accumulation" else 1
    for call in (7 * passes + 1, 3 * passes - 1):
        place.train("run", *overrides, faults=[fault(STEP, call, number)], status=STATUS[number])
    go_on(place, "run", whole, *overrides)


@pytest.mark.parametrize("where", [VALIDATE, VALIDATED, FINISH])
def test_killed_in_the_validation_after_the_last_step(place, whole, where):
    overrides = VARIANTS["no validation"]
    place.train("run", *overrides, faults=[fault(where)], status=-9)
    assert place.checkpoint("run")["global_step"] == 12
    go_on(place, "run", whole, *overrides)


def test_killed_before_the_result_was_written(place, whole):
    place.train("run", faults=[fault(RENAME, 8)], status=-9)
    assert not (place.folder / "run" / "result.json").exists()
    place.train("run")
    steps = [event.step for event in place.events("run").Scalars("val/nll")]
    assert steps == sorted(set(steps))
    assert differences(whole()["checkpoint"], place.checkpoint("run")) == []


def test_validations_are_neither_repeated_nor_left_out(place):
    for call in (3, 3, 3):
        place.train("run", faults=[fault(STEP, call, TERM)], status=75)
    place.train("run")
    assert [line["step"] for line in place.lines("run")] == [4, 8, 12]


def test_a_report_line_that_a_kill_cut(place, whole):
    place.train("run", faults=[fault(STEP, 6, KILL)], status=-9)
    path = place.folder / "run" / "report.jsonl"
    with open(path, "a") as file:
        file.write('{"step": 8, "val/nl')
    go_on(place, "run", whole)
    assert path.read_text().endswith("}\n")


def test_a_signal_in_the_last_step_does_not_undo_the_end(place, whole):
    place.train("run", faults=[fault(STEP, 12, TERM)])
    assert differences(whole(), outcome(place, "run")) == []


def test_a_finished_run_says_so(shared):
    before = shared.snapshot()
    done = shared.train("run")
    assert done.out.startswith("run is finished: step 12, val/nll ") and "repeat it with run=NEW" in done.out
    assert shared.snapshot() == before


def test_stop_file(place, whole):
    place.train("run", faults=[fault(STEP, 2, TERM)], status=75)
    started = place.start("train", "tiny.yaml", "run=run", "training.steps=12", "training.val_every=4")
    started.until(lambda: "resuming" in started.output("out"))
    assert started.wait().code == 0
    assert place.result("run")["status"] == "finished"

    long = ["training.steps=4000", "training.val_every=2000", "training.checkpoint_every=5"]
    started = place.start("train", "tiny.yaml", "run=long", *long)
    started.until(lambda: (place.folder / "long" / "checkpoints" / "last.ckpt").exists())
    (place.folder / "long" / "STOP").touch()
    assert started.wait().code == 3
    result = place.result("long")
    assert result["status"] == "pruned" and 5 <= result["step"] < 2000, "the next validation is not waited for"
    assert result["step"] == place.checkpoint("long")["global_step"] and not place.reports("long")


def test_stop_file_in_a_validation(place):
    """The validation is reported, and the run ends with its numbers."""
    started = place.start("train", "tiny.yaml", "run=run", "training.val_every=1", "training.steps=2000",
                          "training.checkpoint_every=1000")
    started.until(lambda: place.lines("run"))
    (place.folder / "run" / "STOP").touch()
    assert started.wait().code == 3
    result = place.result("run")
    assert result["status"] == "pruned" and math.isfinite(result["metrics"]["val/nll"])
    assert result["step"] == max(place.reports("run")) == place.checkpoint("run")["global_step"] < 2000


def test_a_pruned_run_goes_on_when_it_is_asked_to(place, whole):
    started = place.start("train", "tiny.yaml", "run=run")
    started.until(lambda: (place.folder / "run" / "config.yaml").exists())
    while started.poll() is None:  # the file is removed at the start: a STOP that was there before means nothing
        (place.folder / "run" / "STOP").touch()
        time.sleep(0.01)
    assert started.code in (0, 3)
    go_on(place, "run", whole)


def test_the_reading_processes_change_nothing(whole):
    a, b = whole(), whole(*VARIANTS["readers"])
    for part in ("curves", "reports"):
        assert differences(a[part], b[part]) == []
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert differences(a["checkpoint"][part], b["checkpoint"][part]) == []


@pytest.mark.slow
def test_accumulation_computes_the_same(shared):
    """Without prompts: with them each forward pass divides by its own number of scored tokens."""
    for name, micro in (("one", 0), ("two", 4), ("four", 2)):
        shared.train(name, "prompt.fraction=0", "denoiser.n_layers=2", f"training.micro_batch={micro}")
    one = shared.curves("one")
    for name in ("two", "four"):
        curves = shared.curves(name)
        for tag in ("train/loss", "train/grad_norm", "train/lr", "val/nll", "val/nll_se"):
            assert curves[tag] == pytest.approx(one[tag], rel=2e-5), tag
        weights = zip(shared.checkpoint(name)["state_dict"].values(), shared.checkpoint("one")["state_dict"].values())
        assert max(float((a - b).abs().max()) for a, b in weights) < 1e-4


def test_learning_rate_and_average_are_what_their_formulas_say(shared):
    """Warm-up over 3 steps to 2e-3, then a cosine to a tenth, first step not 0."""
    rates = shared.curves("run")["train/lr"]
    peak, floor = 2e-3, 0.1
    for step in range(1, 13):
        done = (step - 1 - 3) / 9
        wanted = step / 3 if step <= 3 else floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
        assert rates[step] == pytest.approx(peak * wanted, rel=1e-6)
    checkpoint = shared.checkpoint("run")
    assert int(checkpoint["averaging_state"]["n_averaged"]) == 12
    live, average = checkpoint["current_model_state"], checkpoint["state_dict"]
    assert all(name in average for name in live)
    assert any(not torch.equal(live[name], average[name]) for name in live)


@pytest.mark.slow
def test_arbitrary_moments(place, whole):
    """Up to six lives of random length, even before training begins, each ended by a random signal."""
    overrides = ("training.steps=150", "training.val_every=7", "training.checkpoint_every=4", "training.samples=0")
    chance, lives = random.Random(time.time_ns()), []
    while not lives or lives[-1][0] != 0:
        started = place.start("train", "tiny.yaml", "run=run", *overrides)
        if len(lives) < 6:
            time.sleep(chance.uniform(0.05, 1.0))
            if started.poll() is None:
                os.kill(started.pid, chance.choice([INT, TERM, KILL]))
        done = started.wait()
        lives.append((done.code, max(place.reports("run"), default=0)))
        # SIGTERM itself ends a process that has not begun to listen
        assert done.code in (0, 130, 75, -9) or (done.code == -15 and not done.out), (lives, done.err)
    assert len(lives) > 1, "never interrupted"
    assert differences(whole(*overrides), outcome(place, "run")) == [], lives


@pytest.mark.slow
@pytest.mark.parametrize("number", [TERM, INT, USR1, KILL])
def test_a_signal_to_the_whole_process_group(place, number):
    """As scancel and a terminal send it, in a process of its own: readers get it too."""
    overrides = ["data.num_workers=2", "training.steps=3000", "training.val_every=0", "training.checkpoint_every=40"]
    command = [sys.executable, "-m", "diffusion_lm", "train", "tiny.yaml", "run=run", *overrides]
    from_here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place.root), os.environ.get("PYTHONPATH", "")])}
    child = subprocess.Popen(command, cwd=place.folder, env=from_here, start_new_session=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    saved = place.folder / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 90
    while not saved.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == STATUS[number], err
    if number != KILL:
        assert err == f"{signal.Signals(number).name}: stopping after this step\n"
        assert place.result("run")["step"] == place.checkpoint("run")["global_step"] > 40
    # a killed run's folder is free at once: its readers do not hold it
    at = place.checkpoint("run")["global_step"]
    again = place.train("run", *overrides, faults=[fault(STEP, 2, TERM)], status=75)
    assert f"resuming at step {at}" in again.out


@pytest.mark.slow
def test_two_devices_compute_what_one_does(place):
    overrides = ["prompt.fraction=0", "training.val_every=4"]
    place.train("one", *overrides)
    for _ in range(2):
        done = place.cold("train", "tiny.yaml", "run=two", "training.devices=2", *overrides, timeout=180)
        assert done.code == 0, done.err
    one, two = place.curves("one"), place.curves("two")
    for tag in ("train/loss", "train/grad_norm", "train/lr", "val/nll", "val/nll_se", "val/bpb"):
        assert two[tag] == pytest.approx(one[tag], rel=2e-5), tag
    assert [line["step"] for line in place.lines("two")] == [4, 8, 12]
