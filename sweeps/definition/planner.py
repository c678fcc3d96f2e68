"""Start a study: check it, create its folder and Optuna study, enqueue its design. Doing it again adds nothing."""

import contextlib
from typing import Any

import optuna
from omegaconf import OmegaConf

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from diffusion_lm.files import write_text
from sweeps.definition import design, optuna_parts, rehearsal, warm_start
from sweeps.definition import experiments as experiment_files
from sweeps.definition import study as study_files
from sweeps.definition.experiments import Experiments
from sweeps.records import storage
from sweeps.records.folder import StudyFolder, training_of

FREE = ("budget", "restarts")
"""Keys that may change while the study runs: they decide when to stop and not what a trial is."""


def plan(folder: StudyFolder, experiments: Experiments) -> optuna.Study:
    """The study in `folder`, started if it was not. Any number of processes may plan at once.

    Raises `UserError`, with nothing written, for a definition that cannot be trained, and for one that differs from
    that with which the study started.
    """
    optuna_parts.sampler(folder.config, 0)
    optuna_parts.pruner(folder.config)
    url = storage.choose(folder)
    # Outside the lock, because it takes seconds; inside, the definition is looked at again.
    known = folder.definition.is_file()
    references = None if known else experiment_files.try_all(folder.config, experiments, build=True)
    if references is None:
        refuse_changes(folder)
    else:
        optuna_parts.check_pruning(folder.config, references)
        rehearsal.rehearse(folder.config, training_of(references))
    started = None if references is None else warm_start.read(folder, references)
    with folder.lock():
        storage.settle(folder, url)
        if folder.definition.is_file():
            refuse_changes(folder)
        else:
            assert references is not None
            experiment_files.save_references(folder, references)
        _keep_definition(folder)
        study = storage.create(folder)
        own = any(warm_start.FROM not in trial.user_attrs for trial in study.get_trials(deepcopy=False))
        if folder.config.warm_start and not own:
            (started or warm_start.read(folder, experiment_files.references(folder))).add(study)
        if folder.config.factorial:
            enqueue(study, design.rows(folder.config))
    return study


def _keep_definition(folder: StudyFolder) -> None:
    """The study as it is now: what may change, may have. The caller holds the study's lock."""
    text = OmegaConf.to_yaml(OmegaConf.create(folder.config.to_dict()))
    if not folder.definition.is_file() or folder.definition.read_text() != text:
        write_text(folder.definition, text)


def enqueue(study: optuna.Study, rows: list[design.Row]) -> None:
    """Enqueue those of `rows` that the study does not have yet. The caller holds the study's lock.

    Rows are known by their index, so a planner that died half-way is completed by the next one.
    """
    known = {trial.user_attrs.get("row") for trial in study.get_trials(deepcopy=False)}
    storage.add(study, [storage.waiting(row.params, row.attributes()) for row in rows if row.index not in known])


def refuse_changes(folder: StudyFolder) -> None:
    """Raise `UserError` with the difference if the study's definition is not the one it started with."""
    then: Any = OmegaConf.to_container(OmegaConf.load(folder.definition), resolve=False)
    now = OmegaConf.to_container(OmegaConf.create(folder.config.to_dict()), resolve=False)
    with contextlib.suppress(UserError):
        # Read as any study is, so that a key that did not exist when the study started has its default.
        then = study_files.from_dict(then, folder.config.name).to_dict()
    lines = differences(*({key: value for key, value in tree.items() if key not in FREE} for tree in (then, now)))
    if lines:
        raise UserError(f"study '{folder.config.name}': its definition changed since it started ({'; '.join(lines)}); "
                        f"restore it, or give the study another name (to start it anew, remove {folder.path})")
