"""TensorBoard's event files of a run, continued by every process that goes on with it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.summary import custom_scalars, hparams

from diffusion_lm.evaluation.levels import BANDS

MIDDLES = [f"{(band + 0.5) / BANDS:.2f}" for band in range(BANDS)]
LAYOUT = {
    "runs": {
        "bound (nats per token)": ["Multiline", [r"val/nll$"]],
        "training loss": ["Multiline", [r"train/loss$"]],
        "speed (tokens per second)": ["Multiline", [r"throughput/tokens_per_second$"]],
    },
    "loss by noise level (nats per predicted token)": {
        f"noise level {middle}": ["Multiline", [rf"val_cross_entropy_by_noise_level/{middle}$"]] for middle in MIDDLES
    },
}
"""TensorBoard's page "Custom Scalars". Every run says the same, and TensorBoard shows it once."""


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
        """Write the row; the scalars named `metrics` fill its columns when they are logged.

        A parameter that is None is a column of the table, and empty in this row.
        """
        columns, *row = hparams(dict(params), dict.fromkeys(metrics, 0.0))
        empty = [name for name, value in params.items() if value is None]
        for summary in (_with_columns(columns, empty), *row, custom_scalars(LAYOUT)):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Flush: what was logged survives a SIGKILL from here on."""
        self.experiment.flush()


def _with_columns(columns: Summary, names: Iterable[str]) -> Summary:
    """`columns` and those of other runs: TensorBoard takes the columns of all runs from any one of them."""
    content = columns.value[0].metadata.plugin_data
    data = plugin_data_pb2.HParamsPluginData.FromString(content.content)
    for name in names:
        data.experiment.hparam_infos.add(name=name, type=api_pb2.DATA_TYPE_STRING)
    content.content = data.SerializeToString()
    assert columns.value[0].tag == metadata.EXPERIMENT_TAG
    return columns
