"""The experiments that trials train: read, changed and written through `diffusion_lm.experiment`.

That module imports torch, so it is imported when the first experiment is read, not before.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from diffusion_lm.files import write_json
from diffusion_lm.kind import Kind
from sweeps.definition import alike, design
from sweeps.definition.study import StudyConfig
from sweeps.records.folder import StudyFolder
from sweeps.records.trial_files import CONFIG, SPEED

PRUNERS_OF_ONE_TRIAL = ("NopPruner", "ThresholdPruner", "PatientPruner")
"""Those that compare no trial with another (PatientPruner without a pruner inside)."""


class Experiments(Protocol):
    """What is needed of `diffusion_lm.experiment`; tests hand in something that does not import torch."""

    def load(self, path_or_name: str, overrides: Sequence[str] = ()) -> Any: ...

    def save(self, config: Any, path: str | Path) -> None: ...

    def to_dict(self, config: Any) -> dict[str, Any]: ...

    def default_values(self, tree: Mapping[str, Any]) -> dict[str, Any]: ...

    def reported(self, config: Any) -> Sequence[str]: ...

    def kind(self, config: Any) -> Kind: ...

    def describe(self, config: Any) -> dict[str, Any]: ...

    def check_data(self, config: Any) -> None: ...


class Core:
    """`diffusion_lm.experiment`, imported on first use, and what `diffusion_lm describe` says."""

    def __init__(self) -> None:
        self.described: dict[str, dict[str, Any]] = {}

    def describe(self, config: Any) -> dict[str, Any]:
        """Sizes and cost; builds the model without memory, so that sizes that do not fit together are refused."""
        from diffusion_lm.commands.describe import describe

        key = json.dumps({**self.to_dict(config), "seed": 0}, default=str)
        if key not in self.described:
            self.described[key] = describe(config)
        return self.described[key]

    def check_data(self, config: Any) -> None:
        """Raise `UserError` for shards that are not there, or not as the experiment says: what training refuses."""
        from diffusion_lm.data.datamodule import open_split
        from diffusion_lm.data.info import data_facts
        from diffusion_lm.data.manifest import SPLITS

        data_facts(config.data)
        for split in SPLITS:
            open_split(config.data, split)

    def __getattr__(self, name: str) -> Any:
        from diffusion_lm import experiment

        return getattr(experiment, name)


def try_all(config: StudyConfig, experiments: Experiments, *, build: bool = False) -> dict[str, Any]:
    """Read the experiment of every arm with every choice and every end of a range, once; `build` its model too, once
    for each that differs, without memory.

    Returns the experiment of each arm, for `refuse_changes`. Raises `UserError` for the first that is refused.
    """
    references: dict[str, Any] = {}
    kinds: set[Kind] = set()
    built: set[str] = set()
    tried: list[tuple[Mapping[str, Any], Any]] = []
    for params in design.probes(config):
        overrides = design.overrides(config, params, config.seeds[0] if config.seeds else None)
        try:
            loaded = experiments.load(config.experiment, overrides)
            _check_metrics(config, experiments.reported(loaded))
            tree = _plain(experiments.to_dict(loaded))
            if build and (model := _of_model(tree)) not in built and has_tokenizer(tree):
                built.add(model)
                experiments.describe(loaded)
        except ValueError as error:
            raise UserError(_placed(params, error)) from None
        references.setdefault(params.get(design.ARM, ""), tree)
        tried.append((params, tree))
        kinds.add(experiments.kind(loaded))
    alike.refuse_equal_choices(config, tried)
    if len(kinds) > 1 and config.pruner.name not in PRUNERS_OF_ONE_TRIAL:
        said = "; ".join(sorted(map(str, kinds)))
        raise UserError(f"pruner: {config.pruner.name} stops trials by the numbers of others, and these are of "
                        f"different kinds ({said}); expected arms of one kind, or pruner NopPruner")
    return references


def data_refusals(config: StudyConfig, experiments: Experiments) -> list[str]:
    """Why trials could not read their data, in one line for each data that differs; none if they could."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for params in design.probes(config):
        loaded = experiments.load(config.experiment, design.overrides(config, params, None))
        tree = _plain(experiments.to_dict(loaded))
        data = json.dumps(tree.get("data", tree))
        if data in seen:
            continue
        seen.add(data)
        try:
            experiments.check_data(loaded)
        except UserError as error:
            found.setdefault(str(error), _placed(params, error))
    return list(found.values())


def _placed(params: Mapping[str, Any], error: Exception) -> str:
    """An error with the cell that it is of."""
    place = ", ".join(f"{key} {value}" if key == design.ARM else f"{key}={value}" for key, value in params.items())
    return f"{place}: {error}" if place else str(error)


def _of_model(tree: Mapping[str, Any]) -> str:
    """What of an experiment decides the sizes that have to fit together."""
    other = {"name", "seed", "evaluation", "sampler", "prompt"}
    training = {key: tree.get("training", {}).get(key) for key in ("batch_size", "micro_batch", "devices", "num_nodes")}
    return json.dumps([{key: value for key, value in tree.items() if key not in other | {"training"}}, training])


def has_tokenizer(tree: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is known: a tokenizer's file may be made after the study is planned."""
    name = str(tree.get("data", {}).get("tokenizer", ""))
    return not name.endswith(".json") or Path(name).exists()


def _check_metrics(config: StudyConfig, reported: Sequence[str]) -> None:
    """Refuse to train what has no number to compare."""
    for name in config.metrics:
        if name not in (*reported, SPEED):
            raise UserError(f"{name}: is not reported (no bound?); expected metrics of {', '.join(reported)}; leave "
                            "the arm out, or compare by another metric")


def save_references(folder: StudyFolder, references: Mapping[str, Any]) -> None:
    """Keep what the arms' experiments say when the study starts."""
    write_json(folder.references, references)


def references(folder: StudyFolder) -> dict[str, Any]:
    """What `save_references` kept."""
    return json.loads(folder.references.read_text())


def refuse_changes(folder: StudyFolder, experiments: Experiments) -> None:
    """Raise `UserError` if an experiment file or a default changed since the study started.

    Trials of one study must differ in what the study varies and in nothing else. A key that did not exist then and has
    its default now is no change.
    """
    then = references(folder)
    now = _of_arms(folder.config, experiments)
    defaults = {arm: _plain(experiments.default_values(tree)) for arm, tree in now.items()}
    lines = differences(then, _without_new(now, then, defaults))
    if lines:
        raise UserError(f"study '{folder.config.name}': the experiment '{folder.config.experiment}' changed since the "
                        f"study started ({'; '.join(lines[:3])}); restore it, or start a study with another name")


def _of_arms(config: StudyConfig, experiments: Experiments) -> dict[str, Any]:
    """The experiment of each arm as it is now, in the cell that `try_all` took for it."""
    found: dict[str, Any] = {}
    for params in design.probes(config):
        if (arm := params.get(design.ARM, "")) not in found:
            loaded = experiments.load(config.experiment,
                                      design.overrides(config, params, config.seeds[0] if config.seeds else None))
            found[arm] = _plain(experiments.to_dict(loaded))
    return found


def write_trial(config: StudyConfig, folder: Path, params: Mapping[str, Any], seed: int | None,
                experiments: Experiments) -> None:
    """Write ``config.yaml`` in the trial's `folder`: the experiment with the trial's values merged in."""
    loaded = experiments.load(config.experiment, design.overrides(config, params, seed))
    folder.mkdir(parents=True, exist_ok=True)
    experiments.save(loaded, folder / CONFIG)


def _without_new(now: Mapping[str, Any], then: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """`now` without the keys that `then` does not have and that are as in `usual`."""
    found = {}
    for key, value in now.items():
        if isinstance(value, Mapping) and isinstance(then.get(key), Mapping):
            found[key] = _without_new(value, then[key], usual.get(key, {}))
        elif key in then or key not in usual or value != usual[key]:
            found[key] = value
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
