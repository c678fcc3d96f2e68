"""The hyper-parameters that TensorBoard's table shows: what tells runs apart. It shows five unless asked for more."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from diffusion_lm.config import name_of
from diffusion_lm.experiment import ExperimentConfig

FILE = "hparams.json"
"""Beside a trial's config.yaml: what its study varies, and the seed. Flat; null where a key does not apply."""
SPEED = "throughput/tokens_per_second"


def flat_hparams(config: ExperimentConfig, folder: Path) -> dict[str, str | int | float | None]:
    """A flat row of plain values: what the study of the run in `folder` varies, else what tells most runs apart."""
    chosen = folder / FILE
    if chosen.is_file():
        varied = json.loads(chosen.read_text())
        short = {key: key.rpartition(".")[2] for key in varied}
        count = Counter(short.values())
        return {short[key] if count[short[key]] == 1 else key: _plain(value) for key, value in varied.items()}
    return {
        "denoiser": name_of(config.denoiser),
        "objective": name_of(config.objective),
        "schedule": name_of(config.schedule),
        "conditioning": name_of(config.denoiser.conditioning),
        "optimizer": name_of(config.training.optimizer),
        "lr": config.training.lr,
        "seed": config.seed,
    }


def columns(headline: Iterable[str]) -> tuple[str, ...]:
    """The final numbers beside the row: the objective's own, and the speed."""
    return (*headline, SPEED)


def _plain(value: object) -> str | int | float | None:
    """TensorBoard's table holds numbers and text. Its words for a truth value are those of YAML here."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
