"""A run folder tells how to repeat its run; experiments inherit and are overridden."""

import shutil

import pytest
import yaml

from diffusion_lm.experiment import load, save, to_dict, with_overrides


def test_repeated_from_its_own_config(shared):
    """The same losses, validations, weights and samples, bit for bit, in another folder."""
    import torch

    done = shared.command("train", "run/config.yaml", "run=again")
    assert done.code == 0, done.err
    once, twice = shared.curves("run"), shared.curves("again")
    for curves in (once, twice):
        del curves["throughput/tokens_per_second"]
    assert once == twice
    assert shared.result("run")["sample"] == shared.result("again")["sample"]
    a, b = shared.checkpoint("run"), shared.checkpoint("again")
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    assert (shared.folder / "run/config.yaml").read_text() == (shared.folder / "again/config.yaml").read_text()


def test_another_seed_is_another_run(shared):
    shared.train("seeded", "seed=1")
    assert set(shared.curves("seeded")["train/loss"].values()).isdisjoint(shared.curves("run")["train/loss"].values())


def test_its_own_config_is_the_run(shared):
    done = shared.command("train", "run/config.yaml")
    assert done.code == 0 and done.out.startswith("run is finished: step 12")


def test_a_config_put_into_a_folder_is_trained_there(place):
    """As the sweep's worker does; `auto` may still stand in it."""
    (place.folder / "trial").mkdir()
    tree = yaml.safe_load((place.folder / "tiny.yaml").read_text())
    tree["training"] |= {"steps": 3, "precision": "auto", "accelerator": "auto"}
    (place.folder / "trial" / "config.yaml").write_text(yaml.safe_dump(tree))
    for _ in range(2):
        done = place.command("train", "trial/config.yaml")
        assert done.code == 0, done.err
    assert "trial is finished: step 3" in done.out


def test_nothing_is_left_to_auto(place):
    """What `auto` chose stands in config.yaml, which reads back as it was written."""
    mamba = "denoiser={name: mamba, n_layers: 1, mixer: {inner: {head_dim: 16, kernel: auto}}}"
    chosen = ["training.precision=auto", "training.accelerator=auto", "process=auto", "schedule=auto", mamba]
    place.train("run", "training.steps=1", *chosen)
    path = place.folder / "run" / "config.yaml"
    text = path.read_text()
    tree = yaml.safe_load(text)
    # the strategy goes by the number of devices, which may change when the run goes on
    assert text.count("auto") == 1 and tree["training"]["strategy"] == "auto"
    assert tree["process"]["name"] == "masked" and tree["schedule"]["name"] == "log_linear"
    assert tree["training"]["precision"] in ("float32", "bfloat16")
    assert tree["training"]["accelerator"] in ("cpu", "cuda")
    assert tree["denoiser"]["mixer"]["inner"]["kernel"] == "torch"
    config = load(path)
    assert to_dict(config) == tree
    save(config, place.folder / "copy.yaml")
    assert (place.folder / "copy.yaml").read_text() == text
    # in the same command `auto` stands for what was chosen then
    assert "run is finished" in place.train("run", "training.steps=1", *chosen).out


@pytest.fixture
def files(tmp_path):
    """Write experiments; returns a function that loads one."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return lambda name, *overrides: load(tmp_path / f"{name}.yaml", overrides)

    return write


def test_base(files):
    read = files(
        low="seed: 1\ntraining: {steps: 5, lr: 0.1}\ndenoiser: {name: mamba, n_layers: 2}",
        middle="base: low.yaml\ntraining: {lr: 0.2}",
        high="base: middle.yaml\nseed: 3\ndenoiser: {n_layers: 3}",
    )
    high = read("high", "training.steps=7")
    assert (high.name, high.seed, high.training.steps, high.training.lr) == ("high", 3, 7, 0.2)
    assert to_dict(high)["denoiser"]["name"] == "mamba" and high.denoiser.n_layers == 3
    middle = read("middle")
    assert (middle.name, middle.seed, middle.training.steps, middle.denoiser.n_layers) == ("middle", 1, 5, 2)


def test_base_by_the_name_of_an_experiment(files):
    one = files(mine="base: quickstart\ntraining: {steps: 9}")("mine")
    quickstart = load("quickstart")
    assert one.training.steps == 9 and one.name == "mine"
    assert one.model == quickstart.model and one.data == quickstart.data


@pytest.mark.parametrize("spelling", ["denoiser=mamba", "denoiser.name=mamba", "denoiser={name: mamba}"])
def test_another_variant_drops_the_keys_of_the_one_before(files, spelling):
    read = files(one="denoiser: {name: hybrid, n_layers: 2, pattern: MA, mlp_expansion: 1.5}")
    assert read("one").denoiser.pattern == "MA"
    other = to_dict(read("one", spelling))["denoiser"]
    assert other == to_dict(load_default("mamba"))["denoiser"]
    assert "pattern" not in other and other["n_layers"] != 2


def load_default(denoiser):
    return with_overrides(load("quickstart"), ["denoiser=transformer", f"denoiser={denoiser}"])


def test_naming_the_same_variant_keeps_its_keys(files):
    read = files(one="denoiser: {name: hybrid, n_layers: 2, pattern: MA}")
    for spelling in ("denoiser=hybrid", "denoiser.name=hybrid"):
        assert read("one", spelling).denoiser.pattern == "MA"


def test_the_last_override_wins(files):
    read = files(one="seed: 1")
    assert read("one", "seed=2", "seed=3").seed == 3
    # a part's name comes first, wherever it was typed
    assert read("one", "denoiser.n_layers=9", "denoiser=mamba").denoiser.n_layers == 9
    assert read("one", "denoiser=mamba", "denoiser.n_layers=9").denoiser.n_layers == 9


def test_a_run_folder_may_move(shared, tmp_path):
    shutil.copytree(shared.folder / "run", shared.folder / "moved")
    assert shared.train("moved").out.startswith("moved is finished")
    assert shared.json("evaluate", "moved")["val/nll"] == shared.json("evaluate", "run")["val/nll"]
