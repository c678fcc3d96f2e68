"""Parts and their configs: the folder is the registry, the file's name is the part's name.

A *part* is one file in one of the folders schedules, times, processes, objectives, samplers, denoisers, mixers,
conditioning, kernels, attention_kernels, optimizers and lr_schedules. It holds one dataclass named
``<Something>Config`` and, beside it, the class ``<Something>`` that the config builds. Adding a file adds the variant;
nothing else is edited.

A config is written in YAML as a tree of plain values. `merge` puts trees together, `from_tree` turns a tree into typed
dataclasses (OmegaConf converts and checks the leaves), `to_tree` turns dataclasses into a tree again.
"""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lm.errors import UserError, unknown

ROOT = Path(__file__).parent
WORDS = {int: ("whole number", "3"), float: ("number", "0.5"), bool: ("truth value", "true"), str: ("text", "NAME")}
"""What a value of each type of leaf is called, and one as it is typed."""
GIVE = "; give it a value, or leave the key out"


def part(folder: str, default: str | None = None) -> Any:
    """A dataclass field that holds the config of one variant of `folder`; without a default it may be ``auto``."""
    if default is None:
        return field(default="auto", metadata={"folder": folder})
    return field(
        default_factory=lambda: config_class(folder, default)(), metadata={"folder": folder, "default": default}
    )


def choice(default: str, *others: str) -> Any:
    """A dataclass field that holds one of a few words; the first is the default."""
    return field(default=default, metadata={"choices": (default, *others)})


def variants(folder: str) -> list[str]:
    """Names of the variants in `folder`, read from the file system without importing any of them."""
    return sorted(p.stem for p in (ROOT / folder).glob("*.py") if p.stem not in ("__init__", "base"))


@cache
def config_class(folder: str, name: str) -> type:
    """The config dataclass of variant `name` of `folder`. Raises `UserError` for a name that has no file."""
    if name not in variants(folder):
        raise unknown(f"{folder}: no variant", name, variants(folder))
    module = import_module(f"diffusion_lm.{folder}.{name}")
    found = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and is_dataclass(c) and c.__module__ == module.__name__ and c.__name__.endswith("Config")
    ]
    assert len(found) == 1, f"{module.__name__} must hold exactly one ...Config dataclass, has {found}"
    return found[0]


def part_class(config: Any) -> type:
    """The class that `config` configures: it stands beside it, without the ending ``Config``."""
    return getattr(sys.modules[type(config).__module__], type(config).__name__.removesuffix("Config"))


def build(config: Any, *sizes: Any, **more: Any) -> Any:
    """The part that `config` describes, given its run-time sizes."""
    return part_class(config)(config, *sizes, **more)


def name_of(config: Any) -> str:
    """The variant's name, which is its file's name."""
    return type(config).__module__.rpartition(".")[2]


def merge(old: Any, new: Any, *, root: bool = True) -> Any:
    """`new` over `old`, both plain trees.

    Naming another variant of a part (``denoiser: mamba``) starts from that variant's defaults: keys that were set for
    the variant before it are dropped.
    """
    if not root and isinstance(new, str) and isinstance(old, Mapping) and "name" in old:
        return dict(old) if old["name"] == new else {"name": new}
    if not root and isinstance(old, str) and isinstance(new, Mapping):
        old = {"name": old}
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if not root and "name" in new and new["name"] != old.get("name"):
        return dict(new)
    return {**old, **{key: merge(old[key], value, root=False) if key in old else value for key, value in new.items()}}


def from_tree(cls: type, tree: Any, where: str = "") -> Any:
    """An instance of dataclass `cls` with the values of `tree`. `where` is the dotted place of `tree`, for messages."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where or 'config'}: got {tree!r}, expected a mapping of keys to values")
    known = {f.name: f for f in fields(cls)}
    types = get_type_hints(cls)
    values = {}
    for key, value in flat(cls, tree, where).items():
        place = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise unknown(f"{place}: unknown key", str(key), known)
        metadata = known[key].metadata
        if "folder" in metadata:
            values[key] = _part_from_tree(metadata, value, place)
        elif is_dataclass(types[key]):
            values[key] = from_tree(types[key], value, place)
        else:
            values[key] = _leaf(types[key], value, place)
        if "choices" in metadata and values[key] not in metadata["choices"]:
            raise unknown(f"{place}: no choice", str(value), metadata["choices"])
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where + ': ' if where else ''}{error}") from None


def _part_from_tree(metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    if is_dataclass(value):
        return value
    tree = {"name": value} if isinstance(value, str) else value
    if not isinstance(tree, Mapping):
        raise UserError(f"{place}: got {value!r}, expected a variant's name or its keys")
    name = tree.get("name", metadata.get("default", "auto"))
    if name == "auto" and "default" not in metadata:
        if set(tree) - {"name"}:
            raise UserError(
                f"{place}: got keys {sorted(set(tree) - {'name'})} for 'auto'; expected the variant's name "
                f"beside them, one of {', '.join(variants(metadata['folder']))}"
            )
        return "auto"
    if name not in variants(metadata["folder"]):
        raise unknown(f"{place}: no variant", name, variants(metadata["folder"]))
    rest = {key: inner for key, inner in tree.items() if key != "name"}
    return from_tree(config_class(metadata["folder"], name), rest, place)


def _leaf(kind: Any, value: Any, place: str) -> Any:
    """`value` as `kind`, converted by OmegaConf's structured configs."""
    try:
        node = OmegaConf.structured(_holder(kind))
        OmegaConf.update(node, "value", value)
        typed = OmegaConf.to_container(node)["value"]
    except OmegaConfBaseException:
        raise UserError(f"{place}: got {value!r}, expected {_words(kind)}{GIVE if value is None else ''}") from None
    return tuple(typed) if isinstance(typed, list) and getattr(kind, "__origin__", None) is tuple else typed


def _words(kind: Any) -> str:
    """What a value of that type looks like."""
    if kind in WORDS:
        word, example = WORDS[kind]
        return f"{kind.__name__} (a {word}, like {example})"
    origin, inner = get_origin(kind), get_args(kind)
    word, example = WORDS[inner[1] if origin is dict else inner[0]]
    if origin is dict:
        return f"a mapping of names to {word}s, like {{NAME: {example}}}"
    count = "" if inner[-1] is ... else f"{len(inner)} "
    return f"a list of {count}{word}s, like [{', '.join([example] * len(inner))}]"


def flat(cls: type, tree: Any, where: str = "") -> Any:
    """`tree` with mappings that stand in a key of `cls` from names to values made flat: {a: {b: 1}} is {a.b: 1}.

    What `key.a.b=1` on a command line becomes; before trees are put together, so that both spellings are one key.
    """
    if not isinstance(tree, Mapping):
        return tree
    types, found = get_type_hints(cls), {}
    for key, value in tree.items():
        kind, place = types.get(key), f"{where}.{key}" if where else str(key)
        if get_origin(kind) is dict and isinstance(value, Mapping):
            value = _dotted(value, place)
        found[key] = flat(kind, value, place) if is_dataclass(kind) else value
    return found


def _dotted(tree: Mapping[Any, Any], place: str, above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        new = _dotted(value, place, f"{name}.") if isinstance(value, Mapping) else {name: value}
        if twice := found.keys() & new:
            raise UserError(f"{place}: got '{min(twice)}' twice, expected one value for it")
        found |= new
    return found


@cache
def _holder(kind: Any) -> type:
    from dataclasses import make_dataclass

    return make_dataclass("Leaf", [("value", kind, field(default="???"))])


def to_tree(config: Any) -> dict[str, Any]:
    """The plain tree of a config dataclass; parts carry their ``name`` first."""
    tree: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            tree[f.name] = {"name": name_of(value), **to_tree(value)} if "folder" in f.metadata else to_tree(value)
        else:
            tree[f.name] = list(value) if isinstance(value, tuple) else value
    return tree


def defaults(cls: type) -> dict[str, Any]:
    """Names of the fields of `cls` that have a default, with it (used by ``describe`` and the tests)."""
    return {
        f.name: f.default if f.default is not MISSING else f.default_factory()
        for f in fields(cls)
        if f.default is not MISSING or f.default_factory is not MISSING
    }


def default_tree(cls: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The plain tree of `cls` with every key at its default, parts being of the variants that `tree` names; without the
    keys that have no default, and those of a part that `tree` says nothing of."""
    found: dict[str, Any] = {}
    usual, types = defaults(cls), get_type_hints(cls)
    for f in fields(cls):
        value = tree.get(f.name)
        if "folder" in f.metadata and isinstance(value, Mapping):
            own = f.metadata.get("default", value["name"])  # without one it was chosen
            found[f.name] = {"name": own, **default_tree(config_class(f.metadata["folder"], value["name"]), value)}
        elif is_dataclass(types[f.name]) and isinstance(value, Mapping):
            found[f.name] = default_tree(types[f.name], value)
        elif f.name in usual:
            found[f.name] = list(usual[f.name]) if isinstance(usual[f.name], tuple) else usual[f.name]
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
    """Lines ``key: old -> new`` for every leaf in which two trees differ."""
    lines = []
    for key in dict.fromkeys([*old, *new]):
        place = f"{where}.{key}" if where else key
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, place)
        elif a != b:
            lines.append(f"{place}: {a} -> {b}")
    return lines
