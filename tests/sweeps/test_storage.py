"""The journal: half a line at its end, wherever it comes from, costs nothing but itself."""

import json
import threading

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps.journal import BLOCK, HealingJournal, heal


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
