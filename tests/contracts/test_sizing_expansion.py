"""`describe --match` near to an expansion: what it prints trains, and a width that was solved before is let be."""

import pytest
import yaml

from diffusion_lm.__main__ import main
from diffusion_lm.commands.describe import match
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import load

SIZE = 10**6


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "near.yaml"
    path.write_text(yaml.safe_dump({"denoiser": {"name": "mamba", "mlp_expansion": 3.3125}}))
    return path


def test_the_overrides_of_a_file_with_an_expansion_are_accepted(file):
    arms = match(load(file), SIZE, ("mamba", "transformer"))
    for arm in arms:
        config = load(file, arm["overrides"])
        assert config.denoiser.mlp_width == arm["mlp_width"]


def test_a_width_in_the_file_does_not_stand_in_the_way(file, capsys):
    """The expansion is the aim; the width is solved for, whatever it was."""
    assert main(["describe", str(file), "--match", "1M"]) == 0
    wanted = capsys.readouterr().out
    assert main(["describe", str(file), "denoiser.mlp_width=512", "--match", "1M"]) == 0
    assert capsys.readouterr().out == wanted
    with pytest.raises(UserError, match=r"^denoiser\.mlp_expansion: got 3\.3125, which has no effect here: "):
        load(file, ["denoiser.mlp_width=512"])
