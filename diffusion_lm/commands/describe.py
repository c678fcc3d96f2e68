"""describe EXPERIMENT: its parts, sizes and cost, without training anything and without reading its data."""

import argparse
import json

import torch

from diffusion_lm.config import build, name_of, part_class
from diffusion_lm.data.datamodule import accumulation_steps
from diffusion_lm.data.tokenizers.base import load_tokenizer
from diffusion_lm.experiment import ExperimentConfig, load
from diffusion_lm.lightning_module import build_model
from diffusion_lm.model import (
    embedding_parameters,
    model_flops_per_token,
    model_parameters,
    training_flops_per_token,
)


def run(arguments: argparse.Namespace) -> int:
    """Print the description; exit status 0."""
    facts = describe(load(arguments.experiment, [t for t in arguments.overrides if not t.startswith("run=")]))
    if arguments.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    return 0


def describe(config: ExperimentConfig) -> dict[str, str | int]:
    """Parts, parameters, floating-point operations per token and tokens planned."""
    vocabulary = load_tokenizer(config.data.tokenizer).vocab_size
    training = config.training
    accumulation_steps(training.batch_size, training.rows_per_pass(), training.devices * training.num_nodes)
    with torch.device("meta"):  # no memory; sizes that do not fit together are refused here as in training
        build_model(config, vocabulary)
    process = build(config.process, build(config.schedule), vocabulary)
    readout = part_class(config.objective).readout
    total = model_parameters(config.model, config.denoiser, process, readout)
    embedding = embedding_parameters(config.model, process, readout)
    sizes = (config.model, config.denoiser, process, config.data.length, readout)
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
        "vocabulary": vocabulary,
        "parameters": total,
        "parameters, embedding": embedding,
        "parameters, non-embedding": total - embedding,
        "FLOPs per token, forward": forward,
        "FLOPs per token, training": training_flops,
        "tokens planned": tokens,
        "FLOPs planned": training_flops * tokens,
    }
