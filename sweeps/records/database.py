"""A study in PostgreSQL: the URL, the connection, and Optuna's storage without its cost per waiting trial."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from diffusion_lm.errors import RunError, UserError

DRIVER = "postgresql+psycopg"
EXAMPLE = "postgresql://USER@HOST/DATABASE"
ANSWER_WITHIN = 10  # seconds for a server to answer
UNFINISHED = (TrialState.WAITING, TrialState.RUNNING)
MANY = 1000  # trials that are not named one by one in a query
CREATING = 0x5_3EE_9  # PostgreSQL's number of the lock under which tables are made


def parse(text: str) -> URL:
    """The URL of a database as the driver wants it. Raises `UserError` for what is no place for a study."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise UserError(f"--storage: got '{text}', expected a URL such as {EXAMPLE}; without --storage the study is a "
                        "journal in its folder") from None
    if url.get_backend_name() == "sqlite":
        raise UserError(f"--storage: got '{text}'; SQLite is no place for several workers: it hands one waiting trial "
                        f"to two of them and is not safe on NFS; leave out --storage (a journal) or give {EXAMPLE}")
    if url.drivername not in ("postgresql", "postgres", DRIVER):
        raise UserError(f"--storage: got a URL of '{url.drivername}', expected {EXAMPLE}; leave it out for a journal "
                        "in the study's folder")
    if url.password is not None or "password" in url.query:
        raise UserError(f"--storage: got a URL with a password ({shown(url.set(query={}))}), which the study's folder "
                        "and logs would show; leave it out and put it into ~/.pgpass (chmod 600) or PGPASSWORD")
    return url.set(drivername=DRIVER)


def shown(url: URL) -> str:
    """The URL as a person types it."""
    return unquote(url.set(drivername="postgresql").render_as_string())


def check(url: URL, kept_in: Path | None = None) -> None:
    """Raise an error if the database does not answer: `UserError` for the URL of a new study; `RunError` for that of a
    study which has it in its file `kept_in`, since there the server may be starting again."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool,
                                      connect_args={"connect_timeout": ANSWER_WITHIN})
    try:
        engine.connect().close()
    except ModuleNotFoundError:
        raise UserError("a study in PostgreSQL needs psycopg 3, which is not installed: pip install 'psycopg[binary]'"
                        ) from None
    except SQLAlchemyError as error:
        said = f"{shown(url)} cannot be used ({_reason(error)})"
        look = "user, database, ~/.pgpass and pg_hba.conf"
        if kept_in is not None:
            raise RunError(f"the study's database {said}; look whether the server runs, and at {look}; the URL is in "
                           f"{kept_in}") from None
        raise UserError(f"--storage: {said}; expected a PostgreSQL server that answers: look whether it runs, and at "
                        f"{look}; nothing was written") from None


def connect(url: URL) -> "Database":
    """The storage in the database at `url`, with its tables. Any number of processes may call this at once."""
    text = url.render_as_string(hide_password=False)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    sqlalchemy.event.listen(engine, "do_connect", _connect)
    with engine.begin() as connection:
        # Optuna's "create tables if there are none" fails in all but the first of several processes.
        connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(CREATING)))
        # Few connections, each tried before use: a server has 100 of them, and a trial may last longer than one lives.
        backend = RDBStorage(text, engine_kwargs={"pool_size": 1, "pool_pre_ping": True})
    sqlalchemy.event.listen(backend.engine, "do_connect", _connect)
    return Database(backend)


class Database(_CachedStorage):
    """Optuna's cache over a database, which reads again only what may have changed.

    Optuna's own reads every unfinished trial at each look. That is right for running trials; but a planned study has
    thousands that wait, and nobody changes those without their state. One narrow query asks for all states.
    """

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            newest = max((trial._trial_id for trial in study.trials.values()), default=-1)
            unfinished = {trial._trial_id: trial.state for trial in study.trials.values()
                          if not trial.state.is_finished()}
            with self._session() as session:
                states = dict(session.query(TrialModel.trial_id, TrialModel.state).filter(
                    TrialModel.study_id == study_id,
                    TrialModel.state.in_(UNFINISHED) | (TrialModel.trial_id > newest)).all())
            changed = {trial for trial, state in states.items()
                       if state == TrialState.RUNNING or unfinished.get(trial) != state}
            changed |= unfinished.keys() - states.keys()  # finished since
            if changed:
                self._add_trials_to_cache(study_id, self._fetch(study_id, changed, max(newest, *changed)))

    def add_all(self, study_id: int, trials: Sequence[FrozenTrial]) -> None:
        """Add these trials, all or none. Optuna's own way asks the server some twenty times for each."""
        with self._session() as session, session.begin():
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            first = session.query(TrialModel).filter(TrialModel.study_id == study_id).count()
            rows = [TrialModel(study_id=study_id, number=number, state=trial.state, datetime_start=trial.datetime_start,
                               datetime_complete=trial.datetime_complete) for number, trial in enumerate(trials, first)]
            session.add_all(rows)
            session.flush()  # from here on they have ids
            session.add_all(part for row, trial in zip(rows, trials) for part in _parts(row.trial_id, trial))

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A session; a server that goes away meanwhile is a `RunError`, as it is when it does not answer at all."""
        try:
            with self._backend.scoped_session() as session:
                yield session
        except SQLAlchemyError as error:
            raise RunError(f"the study's database failed ({_reason(error)})") from None

    def _fetch(self, study_id: int, ids: set[int], newest: int) -> list[FrozenTrial]:
        """These trials; the whole study is read where they are many."""
        return self._backend._get_trials(study_id, None, ids, newest if len(ids) < MANY else -1)


def _parts(trial_id: int, trial: FrozenTrial) -> Iterator[models.BaseModel]:
    """The rows of the other tables that make up a trial."""
    for key, value in trial.user_attrs.items():
        yield models.TrialUserAttributeModel(trial_id=trial_id, key=key, value_json=json.dumps(value))
    for key, value in trial.system_attrs.items():
        yield models.TrialSystemAttributeModel(trial_id=trial_id, key=key, value_json=json.dumps(value))
    for name, kind in trial.distributions.items():
        value = kind.to_internal_repr(trial.params[name])
        yield models.TrialParamModel(trial_id=trial_id, param_name=name, param_value=value,
                                     distribution_json=distribution_to_json(kind))
    for objective, value in enumerate(trial.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        yield models.TrialValueModel(trial_id=trial_id, objective=objective, value=stored, value_type=kind)
    for step, value in trial.intermediate_values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        yield models.TrialIntermediateValueModel(trial_id=trial_id, step=step, intermediate_value=stored,
                                                 intermediate_value_type=kind)


def _connect(dialect: Any, record: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Connect. Raises `RunError` if the server does not answer; waiting for it is the worker's business."""
    keywords.setdefault("connect_timeout", ANSWER_WITHIN)
    try:
        return dialect.connect(*arguments, **keywords)
    except dialect.loaded_dbapi.OperationalError as error:
        raise RunError(f"the study's database does not answer ({_first(error)})") from None


def _reason(error: SQLAlchemyError) -> str:
    return _first(getattr(error, "orig", None) or error)


def _first(error: BaseException) -> str:
    """An error of the driver as half a line: of ``connection to server at ... failed: WHY`` and the hint below it WHY.
    """
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line.rpartition("failed: ")[2].strip()[:120]
