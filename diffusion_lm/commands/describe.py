"""describe EXPERIMENT: its parts, sizes and cost, without training anything and without reading its data."""

import argparse
import json
import shlex

import torch

from diffusion_lm.config import build, name_of, part_class
from diffusion_lm.data.datamodule import accumulation_steps
from diffusion_lm.data.tokenizers.base import vocabulary_size
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, load, with_overrides
from diffusion_lm.lightning_module import build_model
from diffusion_lm.model import (
    embedding_parameters,
    model_flops_per_token,
    model_parameters,
    training_flops_per_token,
)
from diffusion_lm.sizing import TOLERANCE, parse_size, sized

TOKENS_PER_PARAMETER = 20


def run(arguments: argparse.Namespace) -> int:
    """Print the description, or the sizes that match; exit status 0."""
    overrides = [text for text in arguments.overrides if not text.startswith("run=")]
    if arguments.match:  # solved for, near to mlp_expansion
        overrides.append("denoiser.mlp_width=0")
    config = load(arguments.experiment, overrides)
    if arguments.match:
        return _run_match(config, arguments)
    if arguments.arms or arguments.d_model or arguments.match_by != "parameters":
        raise UserError("describe: got --arms, --d-model or --match-by without a size; expected --match SIZE with them")
    facts = describe(config)
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    return 0


def describe(config: ExperimentConfig) -> dict[str, str | int]:
    """Parts, parameters, floating-point operations per token and tokens planned."""
    vocabulary = vocabulary_size(config.data.tokenizer)
    training = config.training
    accumulation_steps(training.batch_size, training.rows_per_pass(), training.devices * training.num_nodes)
    with torch.device("meta"):  # no memory; sizes that do not fit together are refused here as in training
        build_model(config, vocabulary)
    process = build(config.process, build(config.schedule), vocabulary)
    readout = part_class(config.objective).readout
    total = model_parameters(config.model, config.denoiser, process, readout)
    embedding = embedding_parameters(config.model, process, readout)
    sizes = (config.model, config.denoiser, process, config.data.length, readout, config.block_size)
    forward, training_flops = round(model_flops_per_token(*sizes)), round(training_flops_per_token(*sizes))
    tokens = training.steps * training.batch_size * config.data.length
    return {
        "name": config.name,
        **{
            part: name_of(getattr(config, part))
            for part in ("denoiser", "objective", "process", "schedule", "times", "sampler")
        },
        "conditioning": name_of(config.denoiser.conditioning),
        "mixers": " ".join(name_of(mixer) for mixer in config.denoiser.mixers()),
        "d_model": config.model.d_model,
        "sequence length": config.data.length,
        **({"block size": config.block_size, "cache": config.denoiser.cache()} if config.block_size else {}),
        "vocabulary": vocabulary,
        "parameters": total,
        "parameters, embedding": embedding,
        "parameters, non-embedding": total - embedding,
        "FLOPs per token, forward": forward,
        "FLOPs per token, training": training_flops,
        "tokens planned": tokens,
        "FLOPs planned": training_flops * tokens,
    }


def match(
    config: ExperimentConfig, size: int, names: tuple[str, ...] = (), by: str = "parameters", d_model: int = 0
) -> list[dict]:
    """For each arm its sizes, counted as by `describe`, and the overrides that make them."""
    found = []
    for arm in sized(config, size, names, by, d_model):
        facts = describe(with_overrides(config, arm.overrides))
        counted = facts["parameters, non-embedding"]
        found.append(
            {
                "arm": facts["denoiser"],
                "d_model": facts["d_model"],
                "n_layers": arm.denoiser.n_layers,
                "mlp_width": arm.denoiser.mlp_width,
                "mlp_expansion": arm.denoiser.mlp_width / facts["d_model"],
                "parameters, non-embedding": counted,
                "parameters": facts["parameters"],
                "FLOPs per token, forward": facts["FLOPs per token, forward"],
                "tokens": TOKENS_PER_PARAMETER * counted,
                "overrides": arm.overrides,
            }
        )
    return found


def _run_match(config: ExperimentConfig, arguments: argparse.Namespace) -> int:
    names = tuple(name.strip() for name in (arguments.arms or "").split(",") if name.strip())
    if arguments.match_by == "flops" and len(names) < 2:
        raise UserError(f"--match-by flops: got {len(names)} --arms, expected two at least; the first has the size")
    size = parse_size(arguments.match)
    arms = match(config, size, names, arguments.match_by, arguments.d_model)
    if arguments.json:
        print(json.dumps({"size": size, "counts": "non-embedding parameters", "by": arguments.match_by, "arms": arms}))
        return 0
    shared = {"parameters": f"every arm, within {TOLERANCE:.2%}", "flops": "the first arm; the others have its FLOPs"}
    print(f"{size:,} parameters without token table and head: {shared[arguments.match_by]}")
    columns = [key for key in arms[0] if key != "overrides"]
    print("  ".join(f"{name:>{max(12, len(name))}}" for name in columns))
    for arm in arms:
        print("  ".join(f"{_shown(arm[name]):>{max(12, len(name))}}" for name in columns))
    for arm in arms:
        print(f"{arm['arm']}: {shlex.join(arm['overrides'])}")
    return 0


def _shown(value: int | float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else value
