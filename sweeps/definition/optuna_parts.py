"""Samplers and pruners: classes of Optuna, named in the study, built here with what Optuna itself accepts."""

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diffusion_lm.errors import UserError, unknown
from sweeps.definition.study import StudyConfig

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

# Neither is safe with several workers: they visit cells twice and take failed cells for done.
REFUSED = ("GridSampler", "BruteForceSampler")
# A low-discrepancy sequence is one sequence only if every worker draws from it with the same seed.
ONE_SEED = ("QMCSampler",)
# Their model is of the parameters that all trials have; they draw the others independently of what was seen.
ONE_SPACE = ("GPSampler", "CmaEsSampler")
# Arguments of pruners that follow from training, where the study leaves them out: resources are training steps.
FROM_TRAINING = {
    "HyperbandPruner": {"min_resource": "val_every", "max_resource": "steps"},
    "SuccessiveHalvingPruner": {"min_resource": "val_every"},
}

# What arguments of plain types may be. Optuna looks at most of them when it uses them, which is within a trial.
KINDS = {"bool": (bool, "true or false"), "int": (int, "a whole number"), "float": ((int, float), "a number"),
         "str": (str, "text"), "None": (type(None), "null")}


def sampler(config: StudyConfig, number: int) -> "BaseSampler":
    """The sampler for trial `number`.

    Its seed depends on study and trial and never on the worker: two workers with one seed would draw the same values.
    Raises `UserError` for a name or an argument that Optuna does not know.
    """
    import optuna

    part = config.sampler
    if part.name in REFUSED:
        raise UserError(f"sampler: {part.name} repeats cells when several workers ask; list `choices` and leave out "
                        "`trials`: the whole design is then visited exactly once")
    kind = _class(optuna.samplers, "Sampler", part.name)
    arguments = _grouped(config, dict(part.arguments))
    if "seed" in inspect.signature(kind).parameters and part.name not in ONE_SEED:
        arguments["seed"] = _seed(config.name, arguments.get("seed", 0), number)
    return _build("sampler", kind, arguments)


def _grouped(config: StudyConfig, arguments: dict[str, Any]) -> dict[str, Any]:
    """The sampler's arguments, so that multivariate TPE (Optuna's default with one metric) learns parameters that only
    some trials have: it then models each group of parameters that occur together."""
    multivariate = arguments.get("multivariate", len(config.metrics) == 1)
    if config.conditional and config.sampler.name == "TPESampler" and multivariate:
        return {"group": True, **arguments}
    return arguments


def pruner(config: StudyConfig, training: Mapping[str, int] | None = None) -> "BasePruner":
    """The study's pruner; `training` has the steps of a trial and how often it validates. Raises `UserError`."""
    import optuna

    part = config.pruner
    known = {name: (training or {}).get(source) for name, source in FROM_TRAINING.get(part.name, {}).items()}
    arguments = {name: value for name, value in known.items() if value} | dict(part.arguments)
    return _build("pruner", _class(optuna.pruners, "Pruner", part.name), arguments)


def check_pruning(config: StudyConfig, references: Mapping[str, Any]) -> None:
    """Raise `UserError` if no trial could be pruned: it reports once, when it is over."""
    for arm, tree in references.items():
        training = tree.get("training", {})
        if config.pruner.name != "NopPruner" and 0 < training.get("steps", 0) <= training.get("val_every", 0):
            raise UserError(f"pruner: {config.pruner.name}, but {arm or 'the experiment'} reports at its end alone "
                            f"(training.steps {training['steps']}, training.val_every {training['val_every']}); "
                            "expected a smaller training.val_every, or no pruner")


def remarks(config: StudyConfig) -> list[str]:
    """What a person should know of the sampler and the pruner, beside what is refused."""
    found = []
    if config.sampler.name in ONE_SPACE and config.conditional and not config.factorial:
        found.append(f"sampler: {config.sampler.name} models only what all trials have, and draws parameters with "
                     "`when` at random; TPESampler models these too")
    if config.factorial and config.pruner.name not in ("NopPruner", "ThresholdPruner"):
        found.append(f"pruner: {config.pruner.name} ends runs of a design early, so that means over seeds are of those "
                     "that were left; ThresholdPruner ends only what diverged")
    return found


def _misfit(value: Any, annotation: Any) -> str | None:
    """What is expected in the place of `value`; None if nothing is wrong, or if the annotation names other types."""
    kinds = str(annotation).split(" | ")
    if not set(kinds) <= set(KINDS) or any(
            isinstance(value, KINDS[kind][0]) and (kind == "bool" or not isinstance(value, bool)) for kind in kinds):
        return None
    return " or ".join(KINDS[kind][1] for kind in kinds)


def _seed(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def _class(module: ModuleType, ending: str, name: str) -> type:
    classes = [key for key in module.__all__ if key.endswith(ending) and not inspect.isabstract(getattr(module, key))]
    if name not in classes:
        raise unknown(f"{ending.lower()}: no class", name, set(classes) - set(REFUSED))
    return getattr(module, name)


def _build(what: str, kind: type, arguments: Mapping[str, Any]) -> Any:
    known = inspect.signature(kind).parameters
    for key in arguments:
        if key not in known:
            raise unknown(f"{what}: {kind.__name__} has no argument", key, known)
        expected = _misfit(arguments[key], known[key].annotation)
        if expected:
            raise UserError(f"{what}: {kind.__name__}: {key}: got {arguments[key]!r}, expected {expected}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{what}: {kind.__name__}: {error}") from None
