"""failure.json: the kind of error that ended a run, for a sweep to act on; and the memory that a run took."""

import errno
import json

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_lm.data.reader import DamagedData
from diffusion_lm.errors import UserError
from diffusion_lm.training.failure_class import failure_class, one_line

DIVERGES = ["training.lr=1e30", "training.grad_clip=0", "training.warmup_steps=0"]


def raised(action):
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def write_to(path):
    with open(path, "w") as file:
        file.write("x")


@pytest.mark.parametrize(
    ("action", "name"),
    [
        (lambda: torch.empty(1 << 50), "out_of_memory"),
        (lambda: bytearray(1 << 60), "out_of_memory"),
        (lambda: write_to("/dev/full"), "disk"),
        (lambda: write_to(f"{__file__}/no/folder"), "code"),
        (lambda: torch.ones(2) @ torch.ones(3), "code"),
        (lambda: OmegaConf.create({"a": "${b}"}).a, "code"),
    ],
)
def test_errors_as_they_are_raised(action, name):
    assert failure_class(raised(action)) == name


def test_errors_that_this_machine_does_not_raise():
    assert failure_class(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) == "out_of_memory"
    assert failure_class(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")) == "out_of_memory"
    assert failure_class(OSError(errno.EROFS, "Read-only file system")) == "disk"
    assert failure_class(DamagedData("shard 3")) == failure_class(UserError("lr")) == "input"


def test_messages_are_one_line():
    assert one_line(KeyError("a")) == "KeyError: 'a'" and one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("two\n  lines")) == "ValueError: two lines"


def test_a_run_that_diverged_says_so_until_it_is_started_again(place):
    done = place.train("run", *DIVERGES, status=1)
    left = json.loads((place.folder / "run" / "failure.json").read_text())
    assert left["class"] == "not_finite" and done.err == f"error: {left['message']}\n"
    assert left["message"].startswith("tiny: the bound is no number at step 4, ")
    place.train("run", *DIVERGES, "training.checkpoint_every=2", status=2)
    assert (place.folder / "run" / "failure.json").exists(), "what is refused changes nothing"
    kill = {"place": "diffusion_lm.lightning_module:DiffusionModule.training_step", "call": 1, "signal": 9}
    place.train("run", *DIVERGES, faults=[kill], status=-9)
    assert not (place.folder / "run" / "failure.json").exists()


def test_the_first_device_that_fails_says_it_for_all(place):
    place.train("run", *DIVERGES, "training.devices=2", world=2, status=1)
    assert json.loads((place.folder / "run" / "failure.json").read_text())["class"] == "not_finite"


def test_memory_is_what_the_process_held(shared):
    """PyTorch alone takes more than 100 MB; a tiny model nowhere near 8 GB."""
    assert 1e8 < shared.result("run")["peak_memory"] < 8e9
