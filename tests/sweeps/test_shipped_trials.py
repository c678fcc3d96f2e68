"""One trial of every shipped study, made small, is trained and reported by the command that a person types.

Training forks from this process, which has imported everything: half a second a trial instead of seven.
"""

import json
import math
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from diffusion_lm.errors import run_command
from sweeps.__main__ import main as sweeps
from sweeps.definition import study
from sweeps.work import child

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").rglob("*.yaml"))
IDS = [str(path.relative_to(ROOT / "sweeps").with_suffix("")) for path in FILES]
SMALL = {
    "data.path": "shards", "data.tokenizer": "bytes", "data.length": 32, "data.val_sequences": 8, "model.d_model": 64,
    "training.steps": 2, "training.warmup_steps": 1, "training.batch_size": 4, "training.micro_batch": 0,
    "training.val_every": 0, "training.checkpoint_every": 2, "training.samples": 0, "training.precision": "float32",
    "training.accelerator": "cpu", "evaluation.draws": 1,
}  # fmt: skip
DRAWN = "dimba/drawn"  # starts from the weights of a run that has to be there


class Forked:
    """What the worker needs of a training process."""

    def __init__(self, argv, log):
        self.pid = os.fork()
        if not self.pid:
            os._exit(trained(argv, log))

    def wait(self, seconds):
        """The exit code, or None if it still runs after `seconds`."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid or time.monotonic() > end:
                return os.waitstatus_to_exitcode(status) if pid else None
            time.sleep(0.02)

    def relay(self, stop):
        """Nobody asks these to stop."""


def trained(argv, log):
    """Run ``python -m diffusion_lm`` in this forked child; its exit code."""
    for number in child.Stop.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    with open(log, "a") as sys.stdout:
        sys.stderr = sys.stdout
        return run_command(import_module("diffusion_lm.__main__").main, list(map(str, argv)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with small shards and the run that the studies of samplers start from."""
    import_module("diffusion_lm.commands.train")
    import_module("diffusion_lm.training.train")
    folder, here = tmp_path_factory.mktemp("place"), Path.cwd()
    rng = np.random.default_rng(0)
    (folder / "text").mkdir()
    for number in range(30):
        (folder / "text" / f"{number}.txt").write_text(" ".join(rng.choice(["the", "cat", "runs", "over"], size=40)))
    os.chdir(folder)
    command = ["shard", "--source", "text", "--out", "shards", "--length", "32", "--val-fraction", "0.4"]
    assert import_module("data_prep.__main__").main(command) == 0
    overrides = [f"{key}={value}" for key, value in {**SMALL, "denoiser.n_layers": 2}.items()]
    started = Forked(["train", "dimba/prompted", *overrides], "prompted.log")
    assert started.wait(60) == 0, Path("prompted.log").read_text()
    yield folder
    os.chdir(here)


def shrunk(path, folder):
    """A study that extends the one in `path`: one arm, one choice of everything, one seed, two steps."""
    config = study.load(path)
    arms = list(config.arms)
    kept = arms[len(arms) // 2] if arms else None
    own = {**config.overrides, **config.arms.get(kept, {})}
    trunk = {"denoiser.n_layers": 6 if own.get("denoiser.name") == "hybrid" else 2}
    trunk |= {"denoiser.mlp_width": 16} if "denoiser.mlp_width" in own else {}
    drawn = {"evaluation.samples": 2} if config.experiment == DRAWN else {}
    tree = {
        "extends": str(path),
        "overrides": {**SMALL, **trunk, **drawn},
        "arms": {arm: trunk if arm == kept else None for arm in arms} or None,
        "space": {key: [choices.values[len(choices.values) // 2]] for key, choices in config.space.items()} or None,
        "seeds": [0],
        "baseline": None,
    }
    if config.baseline is None:
        del tree["baseline"]
    file = folder / f"small-{path.parent.name}-{path.name}"
    file.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value or key == "baseline"}))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_small_trial_is_trained_and_reported(place, path, monkeypatch):
    monkeypatch.setattr(child, "train", lambda folder, *_: Forked(["train", folder / child.CONFIG], folder / child.LOG))
    before = {number: signal.getsignal(number) for number in child.Stop.SIGNALS}
    file = shrunk(path, place)
    try:
        code = run_command(sweeps, ["run", str(file), "--root", "studies"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    folder = Path("studies") / file.stem
    assert code == 0, [log.read_text()[-2000:] for log in folder.glob("*/train.log")]
    results = [json.loads(file.read_text()) for file in folder.glob("*/result.json")]
    assert [(result["status"], result["step"]) for result in results] == [("finished", 2)]
    for metric in study.load(path).metrics:
        assert math.isfinite(results[0]["metrics"][metric]), metric
    assert (folder / "report.md").is_file()
