"""The journal: half a line at its end, wherever it comes from, costs nothing but itself."""

import json
import os
import subprocess
import sys
import threading
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.records import journal
from sweeps.records.journal import BLOCK, FencedLock, HealingJournal, heal


def study_in(path, backend=HealingJournal):
    storage = JournalStorage(backend(path))
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)


def tear(path, text=b'{"op_code":4,"worker'):
    with open(path, "ab") as file:
        file.write(text)


def test_half_a_line_is_cut_before_the_next_append(tmp_path):
    path = tmp_path / "study.journal"
    study = study_in(path)
    study.tell(study.ask(), 1.0)
    tear(path)
    other = study_in(path)
    other.tell(other.ask(), 2.0)
    study.tell(study.ask(), 3.0)
    assert [trial.value for trial in study_in(path).trials] == [1.0, 2.0, 3.0]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_optuna_alone_would_lose_the_study(tmp_path):
    """The reason for our own class: if this fails, Optuna mends its journal itself."""
    path = tmp_path / "study.journal"
    study = study_in(path, lambda path: JournalFileBackend(str(path)))
    tear(path)
    with pytest.raises((json.JSONDecodeError, AttributeError)):
        study.ask()


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"a\nb\n", b"a\n" + b"x" * (2 * BLOCK), b"a\n" * BLOCK + b"b"])
def test_heal_keeps_whole_lines(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    heal(path)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]


def test_many_writers_and_a_torn_line_lose_no_trial(tmp_path):
    path = tmp_path / "study.journal"
    study_in(path)

    def work():
        study = study_in(path)
        for _ in range(5):
            tear(path, b"") if study.trials else tear(path)
            study.tell(study.ask(), 0.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial.number for trial in study_in(path).trials) == list(range(20))


def test_half_a_line_in_the_middle_costs_that_record_only(tmp_path):
    """What Optuna's own append leaves behind a torn line, and what a file system without working locks leaves."""
    path = tmp_path / "study.journal"
    study = study_in(path)
    study.tell(study.ask(), 1.0)
    tear(path)
    tear(path, b'{"op_code":8,"worker_id":"x","trial_id":0,"user_attr":{"lost":1}}\n')
    tear(path, b"\0" * 100 + b"\n")
    study.tell(study.ask(), 2.0)
    with pytest.warns(UserWarning, match=r"study.journal: the line at byte \d+ is no record and is passed over"):
        other = study_in(path)
    assert [trial.value for trial in other.trials] == [1.0, 2.0] == [trial.value for trial in study.trials]
    other.tell(other.ask(), 3.0)
    assert [trial.value for trial in study.trials] == [1.0, 2.0, 3.0]


def test_every_cut_leaves_a_study_that_goes_on(tmp_path):
    path = tmp_path / "study.journal"
    study = study_in(path)
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    whole = path.read_bytes()
    start = whole.find(b"\n") + 1  # the study itself is the first line
    for cut in range(start, len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        again = study_in(path)
        before = [trial.number for trial in again.trials]
        again.tell(again.ask(), 3.0)
        trials = study_in(path).trials
        assert [trial.number for trial in trials] == [*before, len(before)] and trials[-1].value == 3.0


def test_line_that_was_torn_only_for_the_first_look_is_read(tmp_path):
    path = tmp_path / "study.journal"
    study_in(path)
    backend = HealingJournal(path)
    start, line = path.stat().st_size, b'{"op_code":8}\n'
    tear(path, line)
    assert backend._second_look(start, b'{"op_c      }\n') == {"op_code": 8}


def test_full_disk_is_one_line_and_leaves_whole_lines(tmp_path):
    """A limit on the size of files stands for the disk: the kernel takes a part of the line first, as a disk does."""
    path = tmp_path / "study.journal"
    study = study_in(path)
    study.tell(study.ask(), 1.0)
    before = path.read_bytes()
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.getcwd()!r})
import optuna
from optuna.storages import JournalStorage
from pathlib import Path
from diffusion_lm.errors import run_command
from sweeps.records.journal import HealingJournal
study = optuna.load_study(study_name="s", storage=JournalStorage(HealingJournal(Path({str(path)!r}))))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10}, {len(before) + 10}))
sys.exit(run_command(lambda argv: study.ask(), []))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (f"error: {path}: cannot be written (File too large); make room there and start the worker "
                           "again: no trial is lost, running ones are continued\n")
    assert path.read_bytes() == before and not path.with_name("study.journal.lock").is_symlink()
    study.tell(study.ask(), 2.0)
    assert [trial.value for trial in study_in(path).trials] == [1.0, 2.0]


def test_lock_of_a_dead_process_is_taken_away(tmp_path):
    path = tmp_path / "study.journal"
    study_in(path)
    os.symlink(path, f"{path}.lock")  # its holder was killed
    began = time.monotonic()
    study = study_in(path, lambda path: HealingJournal(path, grace=0.3))
    study.tell(study.ask(), 1.0)
    assert 0.3 < time.monotonic() - began < 20 and not os.path.lexists(f"{path}.lock")


def test_process_that_stood_still_neither_writes_nor_frees_another_lock(tmp_path, monkeypatch):
    path = tmp_path / "study.journal"
    study_in(path)
    paused, other = FencedLock(str(path), grace=0.1), FencedLock(str(path), grace=0.1)
    assert paused.acquire() and paused.held()
    assert other.acquire() and other.held() and not paused.held(), "the paused one lost it"
    paused.release()
    assert other.held(), "and does not give back what is not its own"
    other.release()
    assert not os.path.lexists(f"{path}.lock")
    # In the midst of an append: it stands still after it looked for half lines, and another process takes its turn.
    study, late = study_in(path), study_in(path)
    looked = journal.heal

    def pause(path, *arguments):
        end = looked(path, *arguments)
        monkeypatch.setattr(journal, "heal", looked)
        os.unlink(f"{path}.lock")
        study.tell(study.ask(), 1.0)
        return end

    monkeypatch.setattr(journal, "heal", pause)
    with pytest.warns(UserWarning, match="another process wrote in this one's turn"):
        late.tell(late.ask(), 2.0)
    assert [trial.value for trial in study_in(path).trials] == [1.0, 2.0] == [trial.value for trial in late.trials]
