"""Optuna's storage of a study: a journal in the study's folder, or a PostgreSQL database named by URL.

The choice is made when the study is planned first, by ``--storage`` or the variable SWEEPS_STORAGE. From then on the
study's own file ``storage`` says it, so that no later command has to; a study without that file has a journal.
"""

import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from diffusion_lm.errors import UserError
from diffusion_lm.files import write_text
from sweeps.definition import optuna_parts
from sweeps.records.folder import StudyFolder
from sweeps.records.journal import HealingJournal

VARIABLE = "SWEEPS_STORAGE"
JOURNAL = "journal"

optuna.logging.set_verbosity(optuna.logging.WARNING)


def choose(folder: StudyFolder) -> str | None:
    """The database of the study, or None for its journal; what is on disk wins over what is asked for.

    Nothing is written. Raises `UserError` for a URL that cannot be used, a database that does not answer, one that has
    another study of this name, and for ``--storage`` beside a study that is elsewhere.
    """
    asked = folder.storage or os.environ.get(VARIABLE) or JOURNAL
    if folder.started or folder.storage_file.is_file():
        known = folder.storage_file.read_text().strip() if folder.storage_file.is_file() else JOURNAL
        if folder.storage is not None and _normal(folder.storage) != known:
            raise UserError(f"--storage: got '{folder.storage}', but study '{folder.config.name}' is in "
                            f"{_shown(known) if known != JOURNAL else folder.journal}; leave out --storage, or give "
                            "the study another name")
        _check(known, folder)
        return None if known == JOURNAL else known
    url = _normal(asked)
    _check(url)
    if url == JOURNAL:
        return None
    # A planner of this very folder writes the file first: what it makes meanwhile is no stranger's.
    if folder.config.name in _names(url) and not folder.storage_file.is_file():
        raise UserError(f"--storage: {_shown(url)} holds a study '{folder.config.name}' already, of another folder "
                        f"than {folder.path}; give this one another name, name the other's folder by --root, or remove "
                        f"that study: optuna delete-study --study-name {shlex.quote(folder.config.name)} --storage "
                        f"{shlex.quote(url)}")
    return url


def settle(folder: StudyFolder, url: str | None) -> None:
    """Write down where the study is. The caller holds the study's lock, and calls this before anything else."""
    if url is not None and not folder.started and not folder.storage_file.is_file():
        write_text(folder.storage_file, url + "\n")


def address(folder: StudyFolder) -> str:
    """What optuna-dashboard and Optuna's own command line take for the study's storage."""
    return folder.storage_file.read_text().strip() if folder.storage_file.is_file() else str(folder.journal)


def create(folder: StudyFolder) -> optuna.Study:
    """The study in `folder`, created if it is not there yet. The caller holds the study's lock."""
    config = folder.config
    study = optuna.create_study(storage=_open(folder), study_name=config.name, directions=list(config.metrics.values()),
                                sampler=optuna_parts.sampler(config, 0),
                                pruner=optuna_parts.pruner(config, folder.training), load_if_exists=True)
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.metrics))
    return study


def load(folder: StudyFolder) -> optuna.Study:
    """The study in `folder`, which the planner made. Raises `UserError` if it was not started, or is out of reach."""
    folder.require()
    config = folder.config
    _check(address(folder) if folder.storage_file.is_file() else JOURNAL, folder)
    try:
        return optuna.load_study(storage=_open(folder), study_name=config.name,
                                 sampler=optuna_parts.sampler(config, 0),
                                 pruner=optuna_parts.pruner(config, folder.training))
    except KeyError:
        raise folder.not_started() from None


def of_url(url: str, name: str) -> optuna.Study:
    """The study `name` in the database at `url`, to be read. Raises `UserError`."""
    if _normal(url) == JOURNAL or name not in _names(url):
        raise UserError(f"warm_start: there is no study '{name}' in {url}; expected a database that has it")
    from sweeps.records import database

    return optuna.load_study(storage=database.connect(database.parse(url)), study_name=name)


def add(study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Add trials, thousands of them in seconds. The caller holds the study's lock."""
    add_all = getattr(study._storage, "add_all", None)
    if add_all is None:
        study.add_trials(trials)
    elif trials:
        add_all(study._study_id, trials)


def waiting(params: Mapping[str, Any], attributes: Mapping[str, Any]) -> FrozenTrial:
    """What `enqueue_trial` adds: a trial that waits, with some of its parameters fixed."""
    return optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": dict(params)},
                                     user_attrs=dict(attributes))


def _open(folder: StudyFolder) -> BaseStorage:
    if not folder.storage_file.is_file():
        return JournalStorage(HealingJournal(folder.journal))
    from sweeps.records import database

    return database.connect(database.parse(address(folder)))


def _normal(text: str) -> str:
    """The word for a journal, or the URL as it is kept."""
    if text == JOURNAL:
        return text
    from sweeps.records import database

    return database.parse(text).render_as_string()


def _shown(url: str) -> str:
    from sweeps.records import database

    return database.shown(database.parse(url))


def _check(url: str, of: StudyFolder | None = None) -> None:
    if url != JOURNAL:
        from sweeps.records import database

        database.check(database.parse(url), of.storage_file if of else None)


def _names(url: str) -> list[str]:
    from sweeps.records import database

    return optuna.get_all_study_names(database.connect(database.parse(url)))
