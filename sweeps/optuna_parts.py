"""Samplers and pruners: classes of Optuna, named in the study, built here with what Optuna itself accepts."""

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from diffusion_lm.errors import UserError, unknown
from sweeps.study import StudyConfig

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

# Neither is safe with several workers: they visit cells twice and take failed cells for done.
REFUSED = ("GridSampler", "BruteForceSampler")
# A low-discrepancy sequence is one sequence only if every worker draws from it with the same seed.
ONE_SEED = ("QMCSampler",)


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
    arguments = dict(part.arguments)
    if "seed" in inspect.signature(kind).parameters and part.name not in ONE_SEED:
        arguments["seed"] = _seed(config.name, arguments.get("seed", 0), number)
    return _build("sampler", kind, arguments)


def pruner(config: StudyConfig) -> "BasePruner":
    """The study's pruner. Raises `UserError`."""
    import optuna

    return _build("pruner", _class(optuna.pruners, "Pruner", config.pruner.name), config.pruner.arguments)


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"{what}: {kind.__name__}: {error}") from None
