"""A study's YAML file, with those that it extends merged below it."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from diffusion_lm.errors import UserError, did_you_mean
from sweeps.definition.space import flatten

FOLDER = Path("sweeps")
EXAMPLES = 8  # studies named where one is not found
ROOT = Path(__file__).resolve().parent.parent
# How many levels below each key two files are merged; the value of any other key is replaced whole.
DEPTHS = {"overrides": 1, "arms": 2, "space": 1, "metrics": 1, "restarts": 1, "constraints": 1, "budget": 1}


def find(study: str | Path, beside: Path | None = None) -> Path:
    """The file `study`, looked for in the folder `beside` and here, or the one of that name under sweeps/ here or in
    the project. Raises `UserError`."""
    given = [beside / study, beside / f"{study}.yaml"] if beside else []
    for path in (*given, Path(study), FOLDER / f"{study}.yaml", ROOT / f"{study}.yaml"):
        if path.is_file():
            return path
    known = [str(path) for path in sorted(FOLDER.rglob("*.yaml"))]
    names = [str(Path(path).relative_to(FOLDER).with_suffix("")) for path in known]
    near = sorted(zip(known, names), key=lambda pair: -max(SequenceMatcher(None, str(study), text).ratio()
                                                           for text in pair))
    some = ", ".join(path for path, _ in near[:EXAMPLES]) or "my.yaml"
    more = f", ... ({len(known)} in {FOLDER}/)" if len(known) > EXAMPLES else ""
    raise UserError(f"study '{study}' does not exist; expected a YAML file, for example {some}{more}"
                    f"{did_you_mean(str(study), [*known, *names])}")


def default_name(path: Path) -> str:
    """The file's name without its ending; below a folder in sweeps/ the folder's name stands before it, since two
    sizes of a study must not share a run folder: ``sweeps/large/lr.yaml -> large-lr``."""
    parts = path.resolve().with_suffix("").parts
    if FOLDER.name not in parts[:-1]:
        return path.stem
    start = len(parts) - parts[::-1].index(FOLDER.name)
    return "-".join(parts[start:])


def read(path: Path, seen: tuple[Path, ...] = ()) -> Any:
    """The plain tree of a study's file. A file named by its `extends` is read first, and this one's keys are merged
    over it: overrides, arms, their overrides, space, metrics, restarts, constraints and budget by key, all others
    replaced. A ``null`` removes what the other file says. Raises `UserError`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if path.resolve() in seen:
        raise UserError(f"{path}: extends: leads back to itself ({' -> '.join(file.name for file in seen)} -> "
                        f"{path.name}); expected files that end in one without `extends`")
    try:
        # OmegaConf's reader, so that 1e-3 is a number here as it is in an experiment, and a key given twice is refused.
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or "extends" not in tree:
        return tree
    other = tree.pop("extends")
    if not isinstance(other, str):
        raise UserError(f"{path}: extends: got {other!r}, expected another study's file or its name")
    try:
        below = find(other, path.parent)
    except UserError as error:
        raise UserError(f"{path}: extends: {error}") from None
    under = read(below, (*seen, path.resolve()))
    if not isinstance(under, dict):
        raise UserError(f"{below}: got {type(under).__name__}, expected a mapping")
    under.pop("name", None)
    try:
        return extended(under, tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def extended(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The study `above` over the study `below`. Raises `UserError` for a removal of what `below` does not have."""
    _refuse_removals("", below, above)
    merged = dict(below)
    for key, value in above.items():
        depth = DEPTHS.get(key, 0)
        if depth and key != "overrides" and isinstance(value, Mapping):
            _refuse_removals(f"{key}: ", merged.get(key) or {}, value)
        if value is None:
            merged.pop(key, None)
        elif depth and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value, depth, dotted=key == "overrides")
        else:
            merged[key] = value
    return merged


def _refuse_removals(place: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> None:
    """An experiment's keys may be null; other names are not, so that a null there is meant to remove something."""
    for name, value in above.items():
        if value is None and name not in below:
            empty = ", or {} for an arm that changes nothing" if place == "arms: " else ""
            known = [str(key) for key in below]
            expected = f"expected one of {', '.join(known)}" if known else "it has no such names at all"
            raise UserError(f"{place}{name}: null removes it, but the other file has none of that name; {expected}"
                            f"{empty}{did_you_mean(str(name), known)}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], depth: int, dotted: bool) -> dict[str, Any]:
    """`dotted`: the keys are an experiment's, so ``{a: {b: 1}}`` and ``{a.b: 1}`` are one, and a value given for ``a``
    ends those below it."""
    if dotted:
        below, above = flatten(below), flatten(above)
    merged = dict(below)
    for key, value in above.items():
        if value is None and key in below:
            del merged[key]
        elif depth > 1 and isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            merged[key] = _merge(below[key], value, depth - 1, dotted=True)
        else:
            if dotted:
                merged = {name: old for name, old in merged.items() if not name.startswith(f"{key}.")}
            merged[key] = value
    return merged
