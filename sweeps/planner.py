"""Start a study: check it, create its folder and Optuna study, enqueue its design. Doing it again adds nothing."""

from typing import Any

import optuna
from omegaconf import OmegaConf

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from diffusion_lm.files import write_text
from sweeps import design, optuna_parts, storage
from sweeps import experiments as experiment_files
from sweeps.experiments import Experiments
from sweeps.folder import StudyFolder


def plan(folder: StudyFolder, experiments: Experiments) -> optuna.Study:
    """The study in `folder`, started if it was not. Any number of processes may plan at once.

    Raises `UserError`, with nothing written, for a definition that cannot be trained, and for one that differs from
    that with which the study started.
    """
    optuna_parts.sampler(folder.config, 0)
    optuna_parts.pruner(folder.config)
    url = storage.choose(folder)
    # Outside the lock, because it takes seconds; inside, the definition is looked at again.
    references = None if folder.definition.is_file() else experiment_files.try_all(folder.config, experiments)
    if references is None:
        refuse_changes(folder)
    with folder.lock():
        storage.settle(folder, url)
        if folder.definition.is_file():
            refuse_changes(folder)
        else:
            assert references is not None
            experiment_files.save_references(folder, references)
            write_text(folder.definition, OmegaConf.to_yaml(OmegaConf.create(folder.config.to_dict())))
        study = storage.create(folder)
        if folder.config.factorial:
            enqueue(study, design.rows(folder.config))
    return study


def enqueue(study: optuna.Study, rows: list[design.Row]) -> None:
    """Enqueue those of `rows` that the study does not have yet. The caller holds the study's lock.

    Rows are known by their index, so a planner that died half-way is completed by the next one.
    """
    known = {trial.user_attrs.get("row") for trial in study.get_trials(deepcopy=False)}
    for row in rows:
        if row.index not in known:
            study.enqueue_trial(dict(row.params), user_attrs=row.attributes())


def refuse_changes(folder: StudyFolder) -> None:
    """Raise `UserError` with the difference if the study's definition is not the one it started with."""
    then: Any = OmegaConf.to_container(OmegaConf.load(folder.definition), resolve=False)
    lines = differences(then, OmegaConf.to_container(OmegaConf.create(folder.config.to_dict()), resolve=False))
    if lines:
        raise UserError(f"study '{folder.config.name}': its definition changed since it started ({'; '.join(lines)}); "
                        f"restore it, or give the study another name (to start it anew, remove {folder.path})")
