"""Stands in for `diffusion_lm.experiment`: the same functions over a plain dict, without importing torch."""

from pathlib import Path

import yaml

from diffusion_lm.errors import UserError, unknown
from diffusion_lm.kind import Kind

DEFAULTS = {"denoiser": "transformer", "objective": "masked", "lr": 0.001, "width": 64, "seed": 0, "steps": 5,
            "pause": 0.0, "fault": "none", "corpus": "c0ffee"}


def load(path_or_name, overrides=()):
    if str(path_or_name).endswith("missing"):
        raise UserError(f"experiment '{path_or_name}': no such file")
    config = dict(DEFAULTS)
    if str(path_or_name).endswith(".yaml"):
        config |= yaml.safe_load(Path(path_or_name).read_text())
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in DEFAULTS:
            raise unknown("unknown key", key, DEFAULTS)
        config[key] = yaml.safe_load(value)
    if (config["denoiser"], config["objective"]) == ("dimba", "masked"):
        raise UserError("denoiser 'dimba' has no meaning under 'masked'")
    return config


def save(config, path):
    Path(path).write_text(yaml.safe_dump(config))


def reported(config):
    return ("val/mse",) if config["objective"] == "literal" else ("val/nll", "val/bpb", "val/ppl_bound")


def kind(config):
    return Kind("gaussian" if config["objective"] == "gaussian" else "masked", "continuous time")


def describe(config):
    if config["width"] % 8:
        raise UserError(f"width: got {config['width']}, expected a multiple of 8")
    return {"parameters, non-embedding": 300 * config["width"], "tokens planned": 1000 * config["steps"]}


def check_data(config):
    if config["corpus"].startswith("/") and not Path(config["corpus"]).exists():
        raise UserError(f"{config['corpus']}: no such folder of shards")


def to_dict(config):
    return dict(config)


def default_values(tree):
    return dict(DEFAULTS)
