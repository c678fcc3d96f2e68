"""An experiment: the root config, which reads like a table of contents, and how it is loaded, checked and saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffusion_lm.backends import backend_folder, choose_backend
from diffusion_lm.block_pairings import check_blocks, refuse_one_block
from diffusion_lm.blockwise import objective_of, over
from diffusion_lm.config import (
    build,
    config_class,
    default_tree,
    flat,
    from_tree,
    merge,
    name_of,
    part,
    part_class,
    to_tree,
    variants,
)
from diffusion_lm.data.info import TokenDataConfig
from diffusion_lm.denoisers.base import how_to_be_causal
from diffusion_lm.errors import UserError, did_you_mean
from diffusion_lm.files import write_text
from diffusion_lm.kind import Kind
from diffusion_lm.model import ModelConfig
from diffusion_lm.objectives.base import TrainingNoise
from diffusion_lm.prompts import PromptConfig
from diffusion_lm.training.config import EvaluationConfig, TrainingConfig
from diffusion_lm.unused import refuse_unused

EXPERIMENTS = Path("experiments")
ROOT = Path(__file__).resolve().parent.parent
COPIED = ROOT / "code.json"
"""There in a copy of the code that a study goes on with (sweeps/cluster/snapshot.py): its commit and time."""
PLACES = (ROOT, Path()) if COPIED.is_file() else (Path(), ROOT)
"""Where experiments are looked for: the working folder may change under a copy."""
BOUND = ("val/nll", "val/nll_se", "val/ppl_bound", "val/bpb")
"""What is reported of a bound."""
GENERATED = ("gen/common_3grams", "gen/entropy", "gen/calls")
REFERENCE = "gen/reference_3grams"
"""What is reported of texts drawn at the end (`evaluation.samples`); the last of texts with a prompt."""
LOWEST_START, HIGHEST_END = 0.9, 0.1
"""Where alpha may begin and end at the least in the training of a discrete process."""
EXPORTED = "experiment.yaml"
"""The experiment of a folder of weights."""


@dataclass(kw_only=True, slots=True)
class ExperimentConfig:
    """Everything that decides what a run computes."""

    name: str = "experiment"
    """Names the run folder runs/NAME; by default the experiment file's name."""
    seed: int = 0
    """Of the initial weights, the order of the data and the noise of training."""
    data: TokenDataConfig = field(default_factory=TokenDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    denoiser: Any = part("denoisers", "transformer")
    objective: Any = part("objectives", "masked")
    process: Any = part("processes")
    """auto: the objective's own."""
    schedule: Any = part("schedules")
    """auto: the objective's own."""
    times: Any = part("times", "stratified")
    """How the times of training are drawn."""
    sampler: Any = part("samplers", "ancestral")
    block_size: int = 0
    """Tokens of a block: blocks come left to right, diffusion works inside them. 0: the text is one block."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        objective = part_class(self.objective)
        if self.process == "auto":
            self.process = config_class("processes", objective.processes[0])()
        if self.schedule == "auto":
            self.schedule = config_class("schedules", objective.default_schedule)()
        _check_pairings(self)
        _check_drawn(self)
        if self.block_size:
            check_blocks(self)
        build(self.times).check(self.training.batch_size * (self.data.length // (self.block_size or self.data.length)))
        if not self.name or Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ValueError(
                f"name: got '{self.name}', expected a name, which may have folders: runs/NAME is the run's"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: got {self.seed}, expected 0 to {2**32 - 1}")


def _check_pairings(config: ExperimentConfig) -> None:
    """Refuse parts that have no meaning together."""
    objective, sampler = part_class(config.objective), part_class(config.sampler)
    process = name_of(config.process)
    if process not in objective.processes:
        raise ValueError(
            f"objective '{name_of(config.objective)}' has no meaning for process '{process}': it is a bound of "
            f"{' or '.join(objective.processes)}"
        )
    if process not in sampler.processes:
        raise ValueError(
            f"sampler '{name_of(config.sampler)}' cannot sample process '{process}': its step is made for "
            f"{' or '.join(sampler.processes)}; set sampler={' or '.join(_samplers_of(process))}"
        )
    if part_class(config.schedule).learned and not objective.trains_schedule(config.objective):
        raise ValueError(
            f"schedule '{name_of(config.schedule)}' has no meaning here: it is trained by the Gaussian bound alone; "
            "expected objective gaussian with cross_entropy 0, or a fixed schedule"
        )
    if config.prompt.leak and not (part_class(config.denoiser).encodes_prompts and objective.shows_answer):
        raise ValueError(
            f"prompt.leak: got true for denoiser '{name_of(config.denoiser)}' and objective "
            f"'{name_of(config.objective)}'; expected a prompt encoder (dimba) and a Gaussian objective, or false"
        )
    if config.data.isolate_documents and config.denoiser.conditioning.positions:
        raise ValueError(
            f"data.isolate_documents: got true with conditioning '{name_of(config.denoiser.conditioning)}', whose "
            "position in the sequence belongs to no document; expected adaln, film, additive or none"
        )
    if objective.causal:
        _check_causal(config)
    config.model.check_readout(objective.readout)
    if config.model.self_conditioning and part_class(config.process).discrete:
        raise ValueError(
            f"model.self_conditioning: got {config.model.self_conditioning} with process '{process}', whose states "
            "are ids; expected 0, or a process of embedded tokens (objective=gaussian)"
        )


def _check_drawn(config: ExperimentConfig) -> None:
    """Refuse guidance of texts that have no prompt."""
    if config.evaluation.samples and config.sampler.guidance and not config.evaluation.prompt:
        raise ValueError(
            f"sampler.guidance: got {config.sampler.guidance}, but the {config.evaluation.samples} texts of "
            "evaluation.samples have no prompt to be guided by; set evaluation.prompt, for example to 0.5"
        )


def _check_causal(config: ExperimentConfig) -> None:
    """Refuse a denoiser that a next-token model cannot have."""
    if not config.denoiser.is_causal():
        raise ValueError(
            f"objective '{name_of(config.objective)}' needs a causal denoiser, and '{name_of(config.denoiser)}' sees "
            f"later positions; {how_to_be_causal(config.denoiser)}"
        )
    if config.denoiser.conditioning.positions:
        raise ValueError(
            f"objective '{name_of(config.objective)}': got conditioning '{name_of(config.denoiser.conditioning)}', "
            "which puts the noise level into the sequence; that is always 0 here, and a text that goes on from a cache "
            "has no place for it; expected adaln, film, additive or none"
        )


def _samplers_of(process: str) -> list[str]:
    return [name for name in variants("samplers") if process in part_class(config_class("samplers", name)()).processes]


def load(source: str | Path, overrides: Sequence[str] = (), *, trained: bool = False) -> ExperimentConfig:
    """The experiment in YAML file `source` (or the one of that name under experiments/) with ``key=value`` overrides.

    Raises `UserError` in one line for a file, key, variant or value that is not there or makes no sense. `trained`: the
    config of a run that exists; what is only not worth training is let be, for earlier versions let it be.
    """
    path = find(source)
    tree = read_tree(path)
    for override in _in_order(overrides):
        tree = merge(tree, _override(override))
    tree.setdefault("name", _name(path))
    config = from_tree(ExperimentConfig, tree)
    if not trained:
        refuse_unused(config)
        refuse_one_block(config)
        _check_mlp(config)
        _check_range(config)
        _check_times(config)
    return config


def _check_mlp(config: ExperimentConfig) -> None:
    """Refuse MLPs that a small expansion rounds away. A run that was trained without them is still read."""
    try:
        config.denoiser.check_mlp(config.model.d_model)
    except ValueError as error:
        raise UserError(f"denoiser: {error}") from None


def _check_range(config: ExperimentConfig) -> None:
    """Refuse a schedule under which most noise levels of a discrete process's bound would never be trained on.

    A Gaussian process cuts the schedule to a log-SNR range of its own.
    """
    schedule, name = build(config.schedule), name_of(config.schedule)
    if part_class(config.process).discrete and (schedule.alpha_0 < LOWEST_START or schedule.alpha_1 > HIGHEST_END):
        keys = ", ".join(f"schedule.{f.name}" for f in fields(config.schedule))
        raise UserError(
            f"schedule '{name}': got an alpha from {schedule.alpha_0:.3g} to {schedule.alpha_1:.3g}, but process "
            f"'{name_of(config.process)}' is evaluated from 1 to 0 and learns nothing outside; expected it to begin at "
            f"{LOWEST_START} or above and to end at {HIGHEST_END} or below; change {keys}, or take another schedule "
            f"(schedule={part_class(config.objective).default_schedule})"
        )


def _check_times(config: ExperimentConfig) -> None:
    """Refuse times of training at which an objective has nothing to learn."""
    noise = TrainingNoise(config.seed, config.training.batch_size, build(config.times))
    try:
        process = build(config.process, build(config.schedule), 2)
        objective_of(
            config.objective, process, config.prompt, noise, config.block_size, config.data.length
        ).check()
    except ValueError as error:
        raise UserError(f"{config.name}: {error}") from None


def _name(path: Path) -> str:
    """The file's path below the last folder called experiments, without its ending; elsewhere the file's name."""
    parts = path.resolve().with_suffix("").parts
    if EXPERIMENTS.name not in parts[:-1]:
        return parts[-1]
    start = len(parts) - parts[::-1].index(EXPERIMENTS.name)
    return "/".join(parts[start:])


def with_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """Another config with ``key=value`` overrides, checked like a file."""
    tree = to_dict(config)
    for override in _in_order(overrides):
        tree = merge(tree, _override(override))
    return from_tree(ExperimentConfig, tree)


def find(source: str | Path) -> Path:
    """The file of an experiment given by path, by a folder of weights, or by name under experiments/ here or in the
    project."""
    given = Path(source)
    paths = [ROOT / given, given] if COPIED.is_file() else [given]
    places = [*paths, given / EXPORTED, *(root / EXPERIMENTS / f"{source}.yaml" for root in PLACES)]
    for place in places:
        if place.is_file():
            return place
    names = [
        str(p.relative_to(root / EXPERIMENTS).with_suffix(""))
        for root in PLACES
        for p in (root / EXPERIMENTS).rglob("*.yaml")
    ]
    raise UserError(
        f"experiment '{source}': no such file, and no such name under experiments/"
        f"{did_you_mean(str(source), names)}; expected a YAML file or one of {', '.join(sorted(set(names))) or 'none'}"
    )


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The plain tree of a YAML file, over that of the file its `base:` names (relative to it, or by name)."""
    if path.resolve() in seen:
        raise UserError(f"{path}: base leads back to itself")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: got {type(tree).__name__}, expected a mapping of keys to values")
    base = tree.pop("base", None)
    if base is None:
        return flat(ExperimentConfig, tree)
    relative = path.parent / str(base)
    below = read_tree(relative if relative.is_file() else find(base), (*seen, path.resolve()))
    below.pop("name", None)
    return merge(below, flat(ExperimentConfig, tree))


def _in_order(overrides: Sequence[str]) -> list[str]:
    """A part's name before its keys, whatever order they were typed in: naming a part starts from its defaults."""

    def depth(text: str) -> int:
        return text.partition("=")[0].removesuffix(".name").count(".")

    return sorted(overrides, key=depth)


def _override(text: str) -> dict[str, Any]:
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise UserError(f"override '{text}': expected key=value")
    try:
        return flat(ExperimentConfig, OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=True))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"override '{text}': {' '.join(str(error).split())}") from None


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """The config as a plain tree, parts with their names."""
    return to_tree(config)


def default_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What `tree`, a plain experiment, would say with every key at its default, the variants of its parts being as they
    are; keys that have none are left out. `auto` stands as it was chosen: what is chosen is no setting."""
    return default_tree(ExperimentConfig, tree)


def kind(config: ExperimentConfig) -> Kind:
    """Of the number that a run of it reports."""
    return Kind(
        name_of(config.process), over(config.objective, config.process, config.block_size)
    ).given_ends(config.data.isolate_documents)


def reported(config: ExperimentConfig) -> tuple[str, ...]:
    """Names of the numbers by which runs of it can be compared, as its validations report them."""
    objective = part_class(config.objective)
    names = BOUND if objective.reports_bound else objective.headline
    drawn = GENERATED if config.evaluation.samples else ()
    return (*names, *drawn, *([REFERENCE] if drawn and config.evaluation.prompt else []))


def save(config: ExperimentConfig, path: str | Path) -> None:
    """Write the config as YAML, all or nothing; `load` reads it back unchanged."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_dict(config))))


def with_kernels(config: Any, device: str, *, anew: bool = False) -> Any:
    """A part's config with every kernel ``auto`` in it replaced by the one for `device`; refuses a missing one.

    `anew` chooses for this device whatever the config says: a trained model can be used where its kernel is missing.
    """
    changes = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            changes[f.name] = with_kernels(value, device, anew=anew)
        elif folder := backend_folder(f):
            changes[f.name] = choose_backend(folder, "auto" if anew else value, device)
    return replace(config, **changes) if changes else config
