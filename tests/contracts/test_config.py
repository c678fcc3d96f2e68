"""Every config of every part: it can be written as a tree and read back, and what is wrong is said in one line."""

from dataclasses import MISSING, fields, is_dataclass

import pytest

from diffusion_lm.config import (
    build,
    config_class,
    defaults,
    differences,
    from_tree,
    merge,
    name_of,
    part_class,
    to_tree,
    variants,
)
from diffusion_lm.errors import UserError

FOLDERS = ("schedules", "processes", "objectives", "samplers", "denoisers", "mixers", "kernels", "conditioning",
           "optimizers", "lr_schedules")  # fmt: skip
ALL = [(folder, name) for folder in FOLDERS for name in variants(folder)]


def other(value):
    """Another value of the same type that is still likely to make sense."""
    if isinstance(value, tuple):
        return tuple(map(other, value))
    return not value if isinstance(value, bool) else value * 2 or 64 if isinstance(value, int) else value / 2 or 0.5


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_every_variant_has_a_config_class_and_a_part(folder, name):
    config = config_class(folder, name)()
    assert name_of(config) == name
    assert isinstance(part_class(config), type)
    assert part_class(config).__doc__
    assert all(f.kw_only for f in fields(config))
    assert "__slots__" in vars(type(config))
    assert all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(config))


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_to_a_tree_and_back(folder, name):
    cls = config_class(folder, name)
    assert from_tree(cls, to_tree(cls())) == cls()
    for key, value in defaults(cls).items():
        if is_dataclass(value) or isinstance(value, str) or value == ():
            continue
        try:
            changed = cls(**{key: other(value)})
        except ValueError:
            continue
        old, new = (list(v) if isinstance(v, tuple) else v for v in (value, other(value)))
        assert to_tree(changed)[key] == new
        assert from_tree(cls, to_tree(changed)) == changed
        assert differences(to_tree(cls()), to_tree(changed)) == [f"{key}: {old} -> {new}"]


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_a_tree_is_made_of_plain_values(folder, name):
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        return (
            value is None or type(value) in (int, float, bool, str) or (type(value) is list and all(map(plain, value)))
        )

    assert plain(to_tree(config_class(folder, name)()))


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_an_unknown_key_is_named_with_the_known_ones(folder, name):
    cls = config_class(folder, name)
    known = sorted(f.name for f in fields(cls))
    with pytest.raises(UserError) as error:
        from_tree(cls, {"nonsense": 1}, "here")
    assert str(error.value).startswith(f"here.nonsense: unknown key 'nonsense'; expected one of {', '.join(known)}")


@pytest.mark.parametrize(("folder", "name"), ALL)
def test_a_value_of_the_wrong_type_is_told(folder, name):
    cls = config_class(folder, name)
    for key, value in defaults(cls).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            with pytest.raises(UserError, match=f"^here.{key}: got 'many', expected {type(value).__name__} "):
                from_tree(cls, {key: "many"}, "here")
        if is_dataclass(value):
            with pytest.raises(
                UserError, match=f"^here.{key}: no variant 'many'; expected one of {name_of(value)[0]}?"
            ):
                from_tree(cls, {key: "many"}, "here")
            with pytest.raises(UserError, match=f"^here.{key}: got 3, expected a variant's name or its keys"):
                from_tree(cls, {key: 3}, "here")


def test_the_folder_is_the_registry():
    assert "__init__" not in variants("mixers")
    assert "base" not in variants("mixers")
    assert {"attention", "mamba2", "bidirectional"} <= set(variants("mixers"))
    with pytest.raises(UserError, match=r"^mixers: no variant 'mamba22'; expected one of .*; did you mean 'mamba2'"):
        config_class("mixers", "mamba22")


def test_a_misspelt_key_gets_a_suggestion():
    with pytest.raises(UserError, match=r"^d_stat: unknown key 'd_stat'; .*; did you mean 'd_state'\?$"):
        from_tree(config_class("mixers", "mamba2"), {"d_stat": 3})


def test_a_tree_that_is_no_mapping_is_told():
    with pytest.raises(UserError, match=r"^config: got \[1\], expected a mapping of keys to values$"):
        from_tree(config_class("mixers", "mamba2"), [1])


def test_what_a_config_refuses_is_told_with_its_place():
    with pytest.raises(UserError, match=r"^denoiser: n_layers: got 0, expected at least 1$"):
        from_tree(config_class("denoisers", "mamba"), {"n_layers": 0}, "denoiser")
    with pytest.raises(UserError, match=r"^denoiser.mixer: inner: got attention, which sees both directions already"):
        from_tree(config_class("denoisers", "mamba"), {"mixer": {"inner": "attention"}}, "denoiser")


def test_parts_inside_parts_are_read_by_name_by_keys_or_both():
    cls = config_class("denoisers", "mamba")
    assert from_tree(cls, {"mixer": "mamba2"}).mixer == config_class("mixers", "mamba2")()
    with pytest.raises(UserError, match="mixer: got 'attention', a mixer of attention; expected mamba"):
        from_tree(cls, {"mixer": "attention"})
    named = from_tree(cls, {"mixer": {"name": "mamba2", "d_state": 16}}).mixer
    assert named == config_class("mixers", "mamba2")(d_state=16)
    deep = from_tree(cls, {"mixer": {"inner": {"d_state": 16}}}).mixer
    assert name_of(deep) == "bidirectional"
    assert deep.inner == config_class("mixers", "mamba2")(d_state=16)


def test_numbers_written_as_text_are_converted():
    assert from_tree(config_class("mixers", "mamba2"), {"d_state": "16"}).d_state == 16
    config = from_tree(config_class("schedules", "log_linear"), {"eps": 0})
    assert config.eps == 0.0
    assert isinstance(config.eps, float)


def test_configs_build_parts_of_their_own_class():
    for name in variants("schedules"):
        config = config_class("schedules", name)()
        assert type(build(config)) is part_class(config)


def test_merge_is_deep_and_another_variant_starts_afresh():
    old = {"seed": 1, "denoiser": {"name": "mamba", "n_layers": 3, "mixer": {"name": "mamba2", "d_state": 8}}}
    assert merge(old, {"denoiser": {"n_layers": 5}})["denoiser"] == {**old["denoiser"], "n_layers": 5}
    assert merge(old, {"denoiser": {"mixer": {"d_state": 9}}})["denoiser"]["mixer"] == {"name": "mamba2", "d_state": 9}
    assert merge(old, {"denoiser": "transformer"}) == {"seed": 1, "denoiser": {"name": "transformer"}}
    assert merge(old, {"denoiser": {"name": "dimba", "n_layers": 2}})["denoiser"] == {"name": "dimba", "n_layers": 2}
    assert merge(old, {"denoiser": "mamba"}) == old
    assert merge({"denoiser": "mamba"}, {"denoiser": {"n_layers": 2}})["denoiser"] == {"name": "mamba", "n_layers": 2}
    assert old["denoiser"]["n_layers"] == 3


def test_naming_a_variant_by_key_or_by_word_is_the_same():
    """Over keys of a part whose name was left to the default, too."""
    old = {"denoiser": {"n_layers": 3}}
    assert from_named(merge(old, {"denoiser": {"name": "mamba"}})) == from_named(merge(old, {"denoiser": "mamba"}))


def from_named(tree) -> dict:
    from diffusion_lm.experiment import ExperimentConfig

    return to_tree(from_tree(ExperimentConfig, tree))
