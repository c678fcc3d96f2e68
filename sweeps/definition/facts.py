"""What `plan` tells of a study: its design and what that can show, its trials, the size of each arm."""

from collections.abc import Mapping
from typing import Any

from sweeps.definition import alike, design, optuna_parts, warm_start
from sweeps.definition import experiments as experiment_files
from sweeps.definition.experiments import Experiments
from sweeps.definition.space import ARM
from sweeps.definition.study import StudyConfig
from sweeps.records.folder import StudyFolder


def lines(folder: StudyFolder, experiments: Experiments) -> list[str]:
    """For a person, after the study in `folder` was planned."""
    config = folder.config
    found = _design(config) if config.factorial else [_sampled(config)]
    if limits := config.budget.to_dict():
        found.append("budget: " + ", ".join(f"{value:,} {key}" for key, value in limits.items()))
    found += [f"constraint: {name} {' and '.join(f'{bound} {value:,}' for bound, value in bounds.items())}"
              for name, bounds in config.constraints.items()]
    if config.warm_start:
        started = warm_start.read(folder, experiment_files.references(folder))
        found += [f"warm start: {len(started.trials)} finished trials of '{config.warm_start['study']}'",
                  *started.remarks]
    missing = [f"no worker begins a trial yet: {refusal}"
               for refusal in experiment_files.data_refusals(config, experiments)]
    arms = _arms(config, experiments)
    same = alike.remarks(config, {arm: experiments.to_dict(loaded) for arm, loaded in arms.items()})
    return [*found, *same, *optuna_parts.remarks(config), *_sizes(config, arms, experiments), *missing]


def _design(config: StudyConfig) -> list[str]:
    seeds = f" x {len(config.seeds)} seeds ({', '.join(map(str, config.seeds))})" if config.seeds else ""
    if config.design:
        return [f"{config.cells} cells{seeds}", *config.design.words(config.axes)]
    factors = " x ".join(f"{len(values)} {key}" for key, values in config.axes.items())
    left_out = ", those left out whose condition does not hold" if config.conditional else ""
    return [f"complete design: {config.cells} cells{f' ({factors}{left_out})' if factors else ''}{seeds}"]


def _sampled(config: StudyConfig) -> str:
    turns = [name for name, given in (("arms", config.arms), ("seeds", config.seeds)) if given]
    known = len(config.points)
    return (f"sampled by {config.sampler.name}: {config.size} trials over {', '.join(config.space) or 'the arms'}"
            + (f"; {' and '.join(turns)} take turns" if turns else "")
            + (f"; {known} known point{'s' * (known > 1)} first" if known else ""))


def _arms(config: StudyConfig, experiments: Experiments) -> dict[str, Any]:
    """The experiment of each arm, at the first of its cells."""
    first = {params.get(ARM, ""): params for params in reversed(design.probes(config))}
    return {arm: experiments.load(config.experiment, design.overrides(config, first[arm], None))
            for arm in config.arms or [""]}


def _sizes(config: StudyConfig, arms: Mapping[str, Any], experiments: Experiments) -> list[str]:
    """Parameters and tokens of each arm."""
    found = []
    for arm, loaded in arms.items():
        if not experiment_files.has_tokenizer(experiments.to_dict(loaded)):
            return ["sizes are not known: the tokenizer's file is not there yet"]
        facts = experiments.describe(loaded)
        size, tokens = facts["parameters, non-embedding"], facts["tokens planned"]
        found.append(f"{arm or config.experiment}: {size:,} parameters without embeddings, {tokens:,} tokens")
    return found
