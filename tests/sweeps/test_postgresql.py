"""Studies in PostgreSQL: the URL, what is refused and how, the tables' race, a server that goes away and comes back."""

import re
import subprocess
import sys
import threading
import time

import optuna
import pytest

from diffusion_lm.errors import RunError, UserError
from sweeps.definition import planner
from sweeps.records import database, storage
from sweeps.work.child import Stop
from sweeps.work.patience import Patience


def planned(folder, experiments):
    return planner.plan(folder, experiments)


@pytest.mark.parametrize(("url", "said"), [
    ("sqlite:///s.db", "SQLite is no place for several workers: it hands one waiting trial to two of them and is not "
                       "safe on NFS; leave out --storage (a journal) or give postgresql://USER@HOST/DATABASE"),
    ("mysql://me@host/db", "got a URL of 'mysql', expected postgresql://USER@HOST/DATABASE"),
    ("postgresql://u@127.0.0.1:abc/d", "got 'postgresql://u@127.0.0.1:abc/d', expected a URL such as"),
    ("host/db", "got 'host/db', expected a URL such as postgresql://USER@HOST/DATABASE"),
    ("postgresql://me:secret@host/db", "got a URL with a password"),
    ("postgresql://me@host/db?password=secret", "put it into ~/.pgpass (chmod 600) or PGPASSWORD"),
])
def test_url_that_is_no_place_for_a_study(write_study, folder_of, experiments, monkeypatch, url, said):
    monkeypatch.setenv("SWEEPS_STORAGE", url)
    folder = folder_of(write_study())
    with pytest.raises(UserError) as error:
        planned(folder, experiments)
    assert said in str(error.value) and "secret" not in str(error.value)
    assert not folder.path.exists(), "nothing is written"


def test_server_that_does_not_answer_is_one_line(write_study, tmp_path, capsys):
    path = write_study()
    url = f"postgresql://me@/db?host={tmp_path}"
    command = [sys.executable, "-m", "sweeps", "plan", str(path), "--root", str(tmp_path / "runs"), "--storage", url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"--storage: {url} cannot be used (No such file or directory)" in done.stderr, "the URL as it was typed"
    assert "look whether it runs, and at user, database, ~/.pgpass and pg_hba.conf; nothing was written" in done.stderr
    assert not (tmp_path / "runs" / "s").exists()


def test_server_of_a_started_study_that_is_away_is_waited_for_by_workers(write_study, folder_of, experiments, tmp_path):
    """A job that is queued again may start before the server does; a command that only looks says it and ends."""
    folder = folder_of(write_study())
    folder.path.mkdir(parents=True)
    folder.storage_file.write_text(f"postgresql+psycopg://me@/db?host={tmp_path}\n")
    for ask in (storage.choose, lambda folder: planned(folder, experiments)):
        with pytest.raises(RunError) as error:
            ask(folder)
        assert str(error.value) == (
            f"the study's database postgresql://me@/db?host={tmp_path} cannot be used (No such file or directory); "
            f"look whether the server runs, and at user, database, ~/.pgpass and pg_hba.conf; the URL is in "
            f"{folder.storage_file}")


def test_study_says_itself_where_it_is(write_study, folder_of, experiments, postgresql, monkeypatch, tmp_path, capsys):
    url = postgresql.url()
    path = write_study(arms={"a": {}, "b": {}})
    folder = folder_of(path)
    monkeypatch.setenv("SWEEPS_STORAGE", url)
    planned(folder, experiments)
    monkeypatch.delenv("SWEEPS_STORAGE")
    assert folder.storage_file.read_text().count("\n") == 1 and not folder.journal.exists()
    assert len(storage.load(folder).trials) == 2 and len(planned(folder, experiments).trials) == 2
    known = optuna.load_study(study_name="s", storage=storage.address(folder))
    assert len(known.trials) == 2, "Optuna and its dashboard take the same address"
    folder.storage = postgresql.url()
    with pytest.raises(UserError, match=r"--storage: got .* but study 's' is in postgresql.*leave out --storage"):
        planned(folder, experiments)


def test_journal_stays_a_journal(write_study, folder_of, experiments, monkeypatch):
    folder = folder_of(write_study())
    planned(folder, experiments)
    monkeypatch.setenv("SWEEPS_STORAGE", "postgresql://nobody@nowhere/db")
    assert len(planned(folder, experiments).trials) == 1
    folder.storage = "postgresql://nobody@nowhere/db"
    with pytest.raises(UserError, match=r"but study 's' is in .*study.journal; leave out --storage"):
        planned(folder, experiments)


def test_database_has_the_study_of_another_folder(write_study, folder_of, experiments, postgresql, tmp_path):
    folder = folder_of(write_study())
    folder.storage = postgresql.url()
    planned(folder, experiments)
    other = type(folder)(folder.config, tmp_path / "elsewhere", folder.storage)
    with pytest.raises(UserError, match=r"holds a study 's' already, of another folder .*optuna delete-study"):
        planned(other, experiments)
    assert not other.path.exists()


def test_tables_are_made_by_many_at_once(postgresql):
    """Optuna's own check-then-create fails in all processes but one (six of six in an array of SLURM tasks)."""
    url, failed = database.parse(postgresql.url()), []

    def create():
        try:
            database.connect(url)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_server_that_comes_back_is_waited_for(write_study, folder_of, experiments, postgresql, capfd):
    folder = folder_of(write_study(arms={"a": {}, "b": {}}))
    folder.storage = postgresql.url()
    study = planned(folder, experiments)
    trial = study.ask()
    postgresql.stop()
    patiently = Patience(Stop())
    tell = threading.Thread(target=lambda: patiently(lambda: study.tell(trial, 1.0, skip_if_finished=True)))
    tell.start()
    time.sleep(0.5)
    postgresql.start()  # not in the thread: the server dies with the thread that starts it
    tell.join(20)
    said = capfd.readouterr()
    assert said.out.count("\n") == 1 and said.err == "", said
    assert re.fullmatch(r"the study's database does not answer \(.{5,60}\); trying again for 300 s\n", said.out), said
    assert [trial.value for trial in storage.load(folder).trials] == [1.0, None]


def test_only_changed_trials_are_read_again(postgresql, monkeypatch):
    url = database.parse(postgresql.url())
    mine, other = (optuna.create_study(storage=database.connect(url), study_name="s", load_if_exists=True)
                   for _ in range(2))
    for number in range(6):
        mine.enqueue_trial({"x": number}, user_attrs={"row": number})
    assert [trial.user_attrs["row"] for trial in other.trials] == list(range(6))
    read, fetch = [], other._storage._backend._get_trials

    def counted(*arguments):
        trials = fetch(*arguments)
        read.append(len(trials))
        return trials

    monkeypatch.setattr(other._storage._backend, "_get_trials", counted)
    running = mine.ask()
    running.set_user_attr("note", "a")
    assert other.trials[0].user_attrs["note"] == "a" and read == [1]
    running.set_user_attr("note", "b")
    assert other.trials[0].user_attrs["note"] == "b" and read == [1, 1], "a running trial is always read"
    mine.tell(running, 2.0)
    assert other.trials[0].value == 2.0 and other.trials[5].user_attrs == {"row": 5} and read == [1, 1, 1]
    other.enqueue_trial({"x": 6})
    assert len(mine.trials) == 7 and other.best_value == 2.0
    assert other.trials == mine.trials


def test_many_trials_are_added_as_optuna_adds_one(postgresql):
    url = database.parse(postgresql.url())
    study = optuna.create_study(storage=database.connect(url), study_name="s", directions=["minimize", "maximize"])
    choices = optuna.distributions.CategoricalDistribution(("a", "b"))
    numbers = optuna.distributions.FloatDistribution(0, 1)
    trials = [storage.waiting({"x": 1}, {"row": 0, "cell": "a"}),
              optuna.trial.create_trial(params={"c": "b", "x": 0.5}, distributions={"c": choices, "x": numbers},
                                        values=[1.0, float("inf")], user_attrs={"note": [1, None]},
                                        intermediate_values={1: 0.5, 2: float("nan")})]
    study.enqueue_trial({"x": 1}, user_attrs={"row": 0, "cell": "a"})
    study.add_trial(trials[1])
    storage.add(study, trials)
    found = storage_of(url).get_all_trials(study._study_id)
    for one, many in zip(found[:2], found[2:]):
        assert many.number == one.number + 2
        for name in ("state", "values", "params", "distributions", "user_attrs", "system_attrs", "datetime_start"):
            assert getattr(one, name) == getattr(many, name), name
        assert str(one.intermediate_values) == str(many.intermediate_values)
    assert study.ask().number == 0 and study.ask().number == 2


def storage_of(url):
    return optuna.storages.RDBStorage(url.render_as_string())
