"""`warm_start: OTHER`: what another study found out, given to this one's sampler before its first trial."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from sweeps.definition import experiments as experiment_files
from sweeps.definition import study as study_files
from sweeps.definition import study_checks
from sweeps.definition.space import ARM
from sweeps.definition.study import StudyConfig
from sweeps.records import storage
from sweeps.records.folder import StudyFolder

FROM = "from"
"""The attribute of a trial of another study: which, and its number there. It is none of this study's trials."""
# A number under another corpus, objective or process is another quantity, which no sampler may learn from.
MEANING = ("data", "objective", "process")


class WarmStart:
    """The finished trials of another study that this one's space could have drawn, and how their experiments differ."""

    def __init__(self, trials: list[FrozenTrial], remarks: list[str]):
        self.trials, self.remarks = trials, remarks

    def add(self, study: optuna.Study) -> None:
        """Add those that are not there yet. The caller holds the study's lock."""
        known = {trial.user_attrs.get(FROM) for trial in study.get_trials(deepcopy=False)}
        study.add_trials([trial for trial in self.trials if trial.user_attrs[FROM] not in known])


def read(folder: StudyFolder, references: Mapping[str, Any]) -> WarmStart:
    """What the study in `folder` starts from; `references` are its arms' experiments.

    Raises `UserError` if the other study is not there, was trained on something else, or has no trial that fits.
    """
    config = folder.config
    if not config.warm_start:
        return WarmStart([], [])
    name = config.warm_start["study"]
    if "storage" in config.warm_start:
        other = storage.of_url(config.warm_start["storage"], name)
        remarks = [f"warm_start: '{name}' is known by its database alone: that it was trained on the same corpus and "
                   "experiment was not checked"]
    else:
        place = _folder(name, folder.path.parent)
        other, remarks = storage.load(place), _compare(name, config, references, place)
    return WarmStart(_fitting(name, config, other), remarks)


def _folder(name: str, root: Path) -> StudyFolder:
    for path in (root / name, Path(name)):
        if (path / "study.yaml").is_file():
            place = StudyFolder(study_files.load(path / "study.yaml"), path.parent)
            place.path = path
            return place
    raise UserError(f"warm_start: study '{name}' is neither in {root} nor a study's folder; expected the name of a "
                    "study that was started, or its folder")


def _compare(name: str, config: StudyConfig, now: Mapping[str, Any], place: StudyFolder) -> list[str]:
    """What the two studies hold fixed and differs. Raises `UserError` where it changes what the numbers mean."""
    then = experiment_files.references(place)
    varied = {*config.space, *place.config.space, "name", "seed"}
    lines = [line for arm in now if arm in then for line in differences(then[arm], now[arm])
             if not _is_in(line.partition(": ")[0], varied)]
    lines = list(dict.fromkeys(lines))
    if refused := [line for line in lines if _is_in(line.partition(": ")[0], MEANING)]:
        raise UserError(f"warm_start: study '{name}' measured something else ({'; '.join(refused[:3])}); expected one "
                        "of the same data, objective and process; leave out warm_start")
    if not lines:
        return []
    return [f"warm_start: the experiment of '{name}' differs ({'; '.join(lines[:3])}"
            f"{'; ...' if len(lines) > 3 else ''}): its trials guide the sampler and stand in no table"]


def _is_in(key: str, places: Any) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _fitting(name: str, config: StudyConfig, other: optuna.Study) -> list[FrozenTrial]:
    """Trials of `other` as trials of this study, whose metrics it must have, in the same directions."""
    there = dict(zip(other.metric_names or [], other.directions))
    for metric, direction in config.metrics.items():
        if metric not in there or there[metric].name.lower() != direction:
            raise UserError(f"warm_start: study '{name}' does not {direction} {metric}; expected one with the metrics "
                            "of this study")
    finished = other.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    refusals = [study_checks.misfit(config, trial.params) for trial in finished]
    fitting = [trial for trial, refusal in zip(finished, refusals) if refusal is None]
    if not fitting:
        reason = f"(trial {finished[0].number}: {refusals[0]})" if finished else "(it has none)"
        raise UserError(f"warm_start: of study '{name}' no finished trial fits the space {reason}; widen the space, or "
                        "leave out warm_start")
    names = list(there)
    return [_moved(name, config, trial, [trial.values[names.index(metric)] for metric in config.metrics])
            for trial in fitting]


def _moved(name: str, config: StudyConfig, trial: FrozenTrial, values: list[float]) -> FrozenTrial:
    arms = {ARM: optuna.distributions.CategoricalDistribution(tuple(config.arms))} if config.arms else {}
    known = arms | {key: dimension.distribution() for key, dimension in config.space.items()}
    kept = {key: value for key, value in trial.constraints.items() if key in config.constraints}
    return create_trial(values=values, params=dict(trial.params), constraints=kept,
                        distributions={key: known[key] for key in trial.params},
                        user_attrs={FROM: f"{name} {trial.number}"})
