"""TensorBoard's event files of a run, continued by every process that goes on with it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams


class Events(TensorBoardLogger):
    """Scalars, texts and the row of the hyper-parameter table; step k is the state after k updates, as in report.jsonl.

    What an earlier process logged after step `resumed_at` is hidden: it is done again.
    """

    def __init__(self, folder: Path, resumed_at: int) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=resumed_at + 1)

    @property
    def experiment(self) -> Any:
        writer = super().experiment
        writer.purge_step = None  # said in the first file; one that is opened later would hide this process's own
        return writer

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Write the row; the scalars named `metrics` fill its columns when they are logged."""
        for summary in hparams(dict(params), dict.fromkeys(metrics, 0.0)):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Flush: what was logged survives a SIGKILL from here on."""
        self.experiment.flush()
