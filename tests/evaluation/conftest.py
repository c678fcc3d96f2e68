"""Tiny trained runs, and `evaluate` as a person types it, in this process."""

import json
import random
from types import SimpleNamespace

import pytest
import yaml

from data_prep.build import Settings, shard
from diffusion_lm.__main__ import main
from diffusion_lm.errors import run_command

TINY = {
    "data": {"path": "shards", "length": 32, "val_sequences": 6},
    "model": {"d_model": 16},
    "denoiser": {"name": "transformer", "n_layers": 1, "mixer": {"head_dim": 16}},
    "training": {"steps": 2, "batch_size": 4, "val_every": 0, "samples": 0, "ema_decay": 0.9, "precision": "float32",
                 "accelerator": "cpu"},
    "evaluation": {"draws": 3, "batch_size": 4},
    "sampler": {"num_steps": 2},
}  # fmt: skip
WORDS = ["the", "a", "cat", "dog", "river", "runs", "under", "café", "stone"]


def write_texts(folder, seed):
    """Forty documents."""
    rng = random.Random(seed)
    folder.mkdir()
    for number in range(40):
        text = f"{number} " + " ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 40)))
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")


class World:
    """A folder with tiny.yaml and shards, in which commands are run."""

    def __init__(self, folder, monkeypatch_context):
        self.folder, self._context = folder, monkeypatch_context
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
        for name, seed, length in (("shards", 0, 32), ("other_shards", 1, 32), ("short_shards", 0, 16)):
            write_texts(folder / f"{name}.text", seed)
            source, out = str(folder / f"{name}.text"), folder / name
            shard(Settings(source=source, out=out, length=length, val_fraction=0.4))

    def run(self, name, *overrides):
        """A trained run, made when it is first asked for."""
        if not (self.folder / name).exists():
            with self._context() as patch:
                patch.chdir(self.folder)
                assert main(["train", "tiny.yaml", f"run={name}", *overrides]) == 0
        return name


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Made once; tests write below `RUN/evaluation` and to folders of their own only."""
    return World(tmp_path_factory.mktemp("world"), pytest.MonkeyPatch.context)


@pytest.fixture
def command(world, monkeypatch, capsys):
    """Run `python -m diffusion_lm ...`; gives code, out, err."""
    monkeypatch.chdir(world.folder)
    monkeypatch.delenv("DIFFUSION_LM_DATA", raising=False)

    def run(*argv):
        capsys.readouterr()
        code = run_command(main, [str(word) for word in argv])
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    return run


@pytest.fixture
def evaluate(command):
    """What `evaluate ... --json` prints."""

    def run(*argv):
        done = command("evaluate", *argv, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))

    return run


@pytest.fixture
def refused(command):
    """The one line with which `evaluate` refuses."""

    def run(*argv):
        done = command("evaluate", *argv)
        assert done.code == 2 and not done.out, done
        assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        return done.err.removeprefix("error: ").removesuffix("\n")

    return run
