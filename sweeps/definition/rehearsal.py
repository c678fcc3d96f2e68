"""Before a study is written: its sampler and its pruner at work on trials that exist in memory alone.

Optuna looks at most arguments when it first uses them: a wrong one would end the workers, in the middle of a trial.
"""

import math
import warnings
from collections.abc import Mapping

import optuna

from diffusion_lm.errors import UserError
from sweeps.definition import design, optuna_parts
from sweeps.definition.study import StudyConfig

STARTUP = {"n_startup_trials": 10, "population_size": 50}
"""Arguments of samplers and pruners that say how many trials they let pass first, and Optuna's largest defaults."""
MOST = 200
"""More trials than these are not rehearsed: a sampler that starts later has its first draws checked alone."""


def rehearse(config: StudyConfig, training: Mapping[str, int]) -> None:
    """Draw, report and end trials until sampler and pruner are past their start. `training` is as for
    `optuna_parts.pruner`. Raises `UserError` with what Optuna said against their arguments."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(directions=list(config.metrics.values()), pruner=optuna_parts.pruner(
                config, training), sampler=optuna_parts.sampler(config, 0))
            for number in range(_trials(config)):
                _trial(config, study, number, training.get("val_every", 1))
    finally:
        optuna.logging.set_verbosity(before)


def _trials(config: StudyConfig) -> int:
    asked = [part.arguments.get(name) for part in (config.sampler, config.pruner) for name in STARTUP]
    default = STARTUP["population_size" if config.sampler.name.startswith("NSGA") else "n_startup_trials"]
    return min(config.size, MOST, 2 + max([default, *(number for number in asked if isinstance(number, int))]))


def _reports(config: StudyConfig) -> int:
    patience = config.pruner.arguments.get("patience")
    return min(MOST, 3 + patience) if isinstance(patience, int) else 3


def _trial(config: StudyConfig, study: optuna.Study, number: int, step: int) -> None:
    try:
        trial = study.ask()
        design.suggest(config, trial)
    except Exception as error:
        raise _refused("sampler", config.sampler.name, error) from error
    value, worse = 1 + math.sin(number), {"minimize": 1, "maximize": -1}[config.metrics[config.objective]]
    if len(config.metrics) == 1:
        try:
            for count in range(_reports(config)):
                trial.report(value + worse * count, (count + 1) * step)
                trial.should_prune()
        except Exception as error:
            raise _refused("pruner", config.pruner.name, error) from error
    try:
        study.tell(trial, [value] * len(config.metrics))
    except Exception as error:
        raise _refused("sampler", config.sampler.name, error) from error


def _refused(what: str, name: str, error: Exception) -> UserError:
    return UserError(f"{what}: {name}: does not work as given ({type(error).__name__}: "
                     f"{' '.join(str(error).split())}); see Optuna's reference of {name}")
