"""Code that stays what it was: copies named by their content, and runs that go on in theirs."""

import errno
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffusion_lm.errors import UserError
from sweeps.cluster import snapshot

PROJECT = Path(__file__).resolve().parents[2]
TRAINING = """
import pathlib, sys
run = next(pathlib.Path(word[4:]) for word in sys.argv if word.startswith("run="))
if "bad=1" in sys.argv:
    sys.exit("error: no")
run.mkdir(parents=True, exist_ok=True)
(run / "config.yaml").touch()
print({word!r}, "trains", __file__)
"""


@pytest.fixture
def project(tmp_path):
    """A working tree whose training says a word, and where it is; without git."""
    home = tmp_path / "project"
    for part in ("sweeps", "diffusion_lm"):
        shutil.copytree(PROJECT / part, home / part, ignore=shutil.ignore_patterns("__pycache__"))
    (home / "experiments").mkdir()
    (home / "runs").mkdir()
    (home / "runs" / "big").write_text("of a run")
    write(home, "first")
    return home


def write(home, word):
    (home / "diffusion_lm" / "__main__.py").write_text(TRAINING.format(word=word))


def train(home, *words):
    """As SLURM/train.sh calls it; this interpreter has the project installed in editable form as well."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SLURM", "DIFFUSION"))}
    return subprocess.run([sys.executable, "-m", "sweeps", "train", "x", *words], cwd=home, capture_output=True,
                          text=True, env=kept)


def copies(home):
    return [path.name for path in (home / "runs" / ".code").iterdir()]


def test_a_run_goes_on_with_its_code_until_told_otherwise(project):
    place = ("run=runs/a",)
    done = train(project, *place)
    (name,) = copies(project)
    code = project / "runs" / ".code" / name
    assert done.stdout == f"first trains {code}/diffusion_lm/__main__.py\n", done.stderr
    assert (project / "runs" / "a" / "code").read_text() == f"{name}\n"

    write(project, "second")
    done = train(project, *place)
    assert done.stdout == (f"runs/a: goes on with the code it started with, {code}; the code here differs (--code new "
                           f"takes it)\nfirst trains {code}/diffusion_lm/__main__.py\n")
    done = train(project, "run=runs/b")
    assert done.stdout.startswith("second trains"), "another run starts with the code that is there"

    done = train(project, *place, "--code", "new")
    assert done.stdout.startswith("second trains")
    assert (project / "runs" / "a" / "code").read_text() == (project / "runs" / "b" / "code").read_text() != f"{name}\n"
    done = train(project, *place)
    assert done.stdout.startswith("second trains") and len(copies(project)) == 2, "now that is its own"


def test_bad_input_leaves_no_run(project):
    done = train(project, "run=runs/a", "bad=1")
    assert done.returncode == 1 and not (project / "runs" / "a").exists()


def test_code_that_is_gone_is_one_line(project):
    train(project, "run=runs/a")
    shutil.rmtree(project / "runs" / ".code")
    done = train(project, "run=runs/a")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "runs/a/code: its code" in done.stderr and "is gone; bring it back" in done.stderr
    assert "--code new" in done.stderr


def test_the_name_is_the_content(project):
    before = snapshot.digest(project)
    assert snapshot.digest(project) == before
    seen = {before}
    for name in ("sweeps/new.yaml", "experiments/x.yaml", "diffusion_lm/files.py"):
        (project / name).write_text("changed")
        seen.add(snapshot.digest(project))
    assert len(seen) == 4
    for path in (project / "runs" / "more", project / "sweeps" / "x.pyc", project / "sweeps" / ".x.swp"):
        path.write_text("not the code")
    (project / "SLURM").mkdir()
    (project / "SLURM" / "env.sh").write_text("a password")
    assert snapshot.digest(project) in seen


def test_many_workers_make_one_copy(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(snapshot.take, [tmp_path] * 8))
    (made,) = (tmp_path / ".code").iterdir()
    assert names == {made.name} and snapshot.digest(made) == made.name
    assert not os.access(made / "sweeps" / "work" / "worker.py", os.W_OK) or os.geteuid() == 0
    assert (made / "sweeps" / "work" / "worker.py").stat().st_mode & 0o222 == 0, "nobody edits it by mistake"


@pytest.mark.parametrize(("number", "said"), [
    (errno.ENOSPC, "(No space left on device); make room there, or name another folder by --root"),
    (errno.EROFS, "(Read-only file system); name another folder by --root"),
])
def test_a_disk_that_takes_no_copy_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, number, said):
    def copy(*paths):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(snapshot.shutil, "copyfile", copy)
    with pytest.raises(UserError) as refused:
        snapshot.take(tmp_path)
    name = snapshot.digest(snapshot.HOME)
    assert str(refused.value) == f"{tmp_path}/.code/{name}: cannot be written {said}"
    assert list((tmp_path / ".code").iterdir()) == []


def test_a_run_is_told_of_its_own_way_to_another_folder(project):
    (project / "file").write_text("no folder")
    done = train(project, "run=file/a")
    assert done.returncode == 2 and done.stderr.endswith("name another folder by run=DIR\n"), done.stderr


def test_the_first_of_several_workers_says_which(tmp_path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setattr(snapshot, "HOME", tmp_path / ".code" / name)
        snapshot.record(tmp_path)
    assert snapshot.recorded(tmp_path) == "one"
    snapshot.record(tmp_path, snapshot.NEW)
    assert snapshot.recorded(tmp_path) == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
