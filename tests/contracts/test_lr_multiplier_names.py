"""Multiples of the learning rate are typed in two ways, by a dotted name or by nested keys, and both are one key."""

import pytest
import yaml

from diffusion_lm.errors import UserError
from diffusion_lm.experiment import load

PLACE = "training.lr_multipliers"


def multipliers(tmp_path, file: dict, *overrides: str, base: dict | None = None) -> dict[str, float]:
    for name, value in (("base", base or {}), ("top", file)):
        tree = {"training": {"lr_multipliers": value}} | ({"base": "base.yaml"} if name == "top" else {})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return load(tmp_path / "top.yaml", overrides).training.lr_multipliers


@pytest.mark.parametrize("typed", ["denoiser.stack=0.5", "denoiser={stack: 0.5}"])
def test_a_dotted_part_as_it_is_naturally_typed(tmp_path, typed):
    assert multipliers(tmp_path, {}, f"{PLACE}.{typed}") == {"denoiser.stack": 0.5}
    assert multipliers(tmp_path, {}, f"{PLACE}={{denoiser.stack: 0.5}}") == {"denoiser.stack": 0.5}


@pytest.mark.parametrize("below", [{"denoiser.stack": 0.1}, {"denoiser": {"stack": 0.1}}])
@pytest.mark.parametrize("above", [{"denoiser.stack": 0.2}, {"denoiser": {"stack": 0.2}}])
def test_what_comes_later_counts_however_it_is_spelled(tmp_path, below, above):
    assert multipliers(tmp_path, above, base=below) == {"denoiser.stack": 0.2}
    assert multipliers(tmp_path, above, f"{PLACE}.denoiser.stack=0.3", base=below) == {"denoiser.stack": 0.3}


def test_a_part_and_a_part_of_it_stand_beside_each_other(tmp_path):
    found = multipliers(tmp_path, {"denoiser": 0.5}, f"{PLACE}.denoiser.stack=0", f"{PLACE}.embed=2")
    assert found == {"denoiser": 0.5, "denoiser.stack": 0.0, "embed": 2.0}


def test_one_name_twice_in_one_place_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^training\.lr_multipliers: got 'a\.b' twice, expected one value for it$"):
        multipliers(tmp_path, {"a": {"b": 1}, "a.b": 2})
