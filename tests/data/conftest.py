"""Small corpora made on the spot, and the command line as a person types it."""

import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch  # noqa: F401 - webdataset is told whether torch is there when it is first imported

from data_prep.build import Settings, shard
from diffusion_lm.data.datamodule import TokenDataConfig, TokenDataModule

ROOT = Path(__file__).parents[2]
WORDS = ["the", "a", "cat", "dog", "river", "runs", "under", "over", "bright", "café", "日本", "stone", "\n"]


def make_texts(count, seed=0):
    """`count` different documents of 20 to 200 characters or so."""
    rng = np.random.default_rng(seed)
    return [f"{number} " + " ".join(rng.choice(WORDS, size=rng.integers(5, 40))) for number in range(count)]


@pytest.fixture
def texts():
    """Documents, all different."""
    return make_texts(300)


@pytest.fixture
def jsonl(tmp_path):
    """Write texts as a JSON lines file; returns its path."""

    def write(texts, name="text.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_shards(tmp_path, jsonl):
    """Make a dataset from texts or from a path; returns its folder."""

    def make(texts, out="shards", **settings):
        source = jsonl(texts, f"{out}.source/text.jsonl") if isinstance(texts, list) else texts
        shard(Settings(source=str(source), out=tmp_path / out, **{"length": 32, "val_fraction": 0.2, **settings}))
        return tmp_path / out

    return make


@pytest.fixture
def make_module():
    """A data module at a place in a world of devices, as a Trainer would leave it."""

    def make(folder, *, step=0, rank=0, world=1, workers=0, global_batch=16, micro_batch=4, seed=3, **config):
        config = TokenDataConfig(**{"path": str(folder), "length": 32, "num_workers": workers, **config})
        module = TokenDataModule(config, seed=seed, global_batch=global_batch, micro_batch=micro_batch)
        module.trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=world)
        return module

    return make


def dclm_tar(contexts, dialect, number):
    """A shard as DCLM's tools write it: tokshuf-rs (GNU headers, long names, compact JSON) or Ray (ustar, spaces)."""
    stream = io.BytesIO()
    gnu = dialect == "tokshuf"
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT if gnu else tarfile.USTAR_FORMAT) as tar:
        for place, ids in enumerate(contexts):
            text = json.dumps([int(i) for i in ids], separators=(",", ":") if gnu else (", ", ": "))
            again = f"{number:08}_{place:08}_" * (3 if place % 5 == 4 else 1)  # shuffled again and again: a long name
            key = again + str(uuid.UUID(int=place)) if gnu else hashlib.md5(text.encode()).hexdigest()
            data = gzip.compress(text.encode())
            member = tarfile.TarInfo(f"{key}.json.gz")
            member.size, member.mtime = len(data), 0 if gnu else 1_700_000_000
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture(params=["tokshuf", "ray"])
def dclm(request, tmp_path):
    """A folder in one of DCLM's dialects: contexts of 65 bytes-tokens, end-of-text written 0, padding 259.

    `contexts` has them by shard; each of two input files ends with padding, one of them with a context of nothing else.
    """
    gnu = request.param == "tokshuf"
    rng = np.random.default_rng(1)
    stream = []
    for text in make_texts(120, seed=4):
        stream += [*text.encode(), 0]
    stream = [*stream[: 65 * (len(stream) // 65) - 1], 0]  # the text ends with a context: padding alone follows
    contexts = [stream[at : at + 65] for at in range(0, len(stream), 65)] + [[259] * 65]
    contexts.append([*b"the end", 0] + [259] * 57)
    rng.shuffle(contexts)
    contexts = [contexts[at : at + 30] for at in range(0, len(contexts), 30)]
    folder = tmp_path / request.param
    folder.mkdir()
    names = [f"shard_{n:08}" if gnu else f"{n + 1:08}" for n in range(len(contexts))]
    for number, name in enumerate(names):
        (folder / f"{name}.tar").write_bytes(dclm_tar(contexts[number], request.param, number))
    lines = [{"num_sequences": len(some), "shard": name} for some, name in zip(contexts, names)]
    lines = [json.dumps(line, separators=(",", ":") if gnu else (", ", ": ")) for line in lines]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + ("" if gnu else "\n"))
    return SimpleNamespace(folder=folder, contexts=contexts, names=names, dialect=request.param)


@pytest.fixture
def run_python(tmp_path):
    """Run Python with this repository on its path, in the test's folder."""

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


# kills itself with SIGKILL at the n-th call of a function
KILLED = """
import os, signal, sys
from data_prep.__main__ import main
from data_prep.shards import _webdataset
_webdataset()
import {module} as place
owner = {owner}
original, calls = owner.{function}, 0
def counted(*arguments, **options):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
owner.{function} = counted
main(sys.argv[1:])
"""


@pytest.fixture
def killed_data_prep(run_python):
    """Run `python -m data_prep` so that it is killed when `owner.function` of a module is called for the n-th time."""

    def run(command, *, module, function, call, owner="place"):
        code = KILLED.format(module=module, function=function, call=call, owner=owner)
        result = run_python("-c", code, *command)
        assert result.returncode == -signal.SIGKILL, result

    return run


@pytest.fixture
def data_prep(run_python):
    """Run `python -m data_prep`."""
    return lambda *arguments: run_python("-m", "data_prep", *arguments)


@pytest.fixture
def refused(data_prep, tmp_path):
    """Run `python -m data_prep` on bad input: status 2, one line, nothing changed on disk. Returns the line."""

    def snapshot():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def run(*arguments):
        before = snapshot()
        result = data_prep(*arguments)
        assert result.returncode == 2, result
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
        assert snapshot() == before
        return result.stderr

    return run
