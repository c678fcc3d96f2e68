"""What ends a run of several devices is one line, once, from the first device that has it."""

import os
import subprocess
import sys

import pytest

SCRIPT = '''
"""The command line, with an error in the third training step of the devices that BREAK names."""
import errno
import os
import sys
import time

from diffusion_lm import lightning_module
from diffusion_lm.__main__ import main
from diffusion_lm.errors import RunError, run_command
from diffusion_lm.training.events import Events

kind, ranks = os.environ["BREAK"].split(":")
Module = lightning_module.DiffusionModule
inner, calls = Module.training_step, []


def step(self, batch, index):
    calls.append(index)
    if len(calls) == 3 and str(self.global_rank) in ranks:
        raise {"run": RunError("broken"), "bug": KeyError("broken"), "disk": OSError(errno.ENOSPC, "no room")}[kind]
    return inner(self, batch, index)


def finalize(self, status):
    """Takes longer than Lightning waits between two looks at the devices that it started."""
    time.sleep(float(os.environ.get("SLOW", 0)) * (self.experiment is not None and status == "failed"))


Module.training_step = step
Events.finalize = finalize
if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
'''


LONG = pytest.mark.long
MORE = [("run", "01", 0), ("bug", "1", 0), ("bug", "01", 0)]


def said(err):
    """Lines on standard error without the usual two: that the devices have met, and DDP's hint about unused ones."""
    usual = ("Initializing distributed: ", "find_unused_parameters=True was specified in DDP")
    return [line for line in err.splitlines() if not any(text in line for text in usual)]


def together(strategy):
    return ["training.devices=2", f"training.strategy={strategy}"]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["training.step=3"], "error: training.step: unknown key 'step'; "),
        (["seed=7"], "error: run was started with another config (seed: "),
    ],
    ids=["read", "checked"],
)
def test_a_refusal(place, overrides, text):
    place.train("run", "training.steps=1")
    done = place.command("train", "tiny.yaml", "run=run", "training.steps=1", *overrides, *together("ddp"), world=2)
    assert done.code == 2
    assert len(said(done.err)) == 1 and done.err.startswith(text), done.err
    assert not done.out


@pytest.mark.slow
def test_what_all_devices_know_is_said_by_the_first(place):
    """A remark of PyTorch's and the line that a run begins with, in a script that warns on every device."""
    (place.folder / "script.py").write_text(SCRIPT.replace("    calls.append(index)", "    calls.append(index)\n"
                                                           "    warnings.warn('a word to the wise')")
                                            .replace("import time", "import time\nimport warnings"))
    command = [sys.executable, "script.py", "train", "tiny.yaml", "run=run", "training.steps=2", *together("ddp")]
    environment = {**os.environ, "PYTHONPATH": str(place.root), "BREAK": "run:"}
    done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" tokens planned") == 1, done.stdout
    assert done.stderr.count("UserWarning: a word to the wise") == 1, done.stderr
    assert done.stderr.count("Initializing distributed: ") == 1, done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_that_diverges(place, strategy):
    fast = ["training.lr=1e30", "training.grad_clip=0", "training.warmup_steps=0"]
    done = place.train("run", *fast, *together(strategy), world=2, status=1)
    (line,) = said(done.err)
    assert line.startswith("error: tiny: the bound is no number at step 4, training has diverged; ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks", "slow"),
    [("run", "0", 0), ("run", "1", 6), ("disk", "0", 0), *(pytest.param(*case, marks=LONG) for case in MORE)],
)
def test_devices_that_the_command_starts(place, kind, ranks, slow):
    """As a person types it. Whoever fails, nobody else is heard, and no process is left behind."""
    (place.folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", "train", "tiny.yaml", "run=run", *together("fsdp")]
    environment = {**os.environ, "PYTHONPATH": str(place.root), "BREAK": f"{kind}:{ranks}", "SLOW": str(slow)}
    # the pipes are open until the last process has ended
    done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    lines = said(done.stderr)
    if kind == "run":
        assert lines == ["error: broken"]
    elif kind == "disk":  # as where the first device alone writes checkpoints
        assert lines == ["error: run: no room; make room, then repeat the command: it goes on from the last checkpoint"]
    else:
        assert [line for line in lines if "Error: " in line] == [f"[rank{lines[0][5]}]: KeyError: 'broken'"], lines
