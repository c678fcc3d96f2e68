"""A run folder: config.yaml, checkpoints/last.ckpt, report.jsonl, result.json, samples.txt, TensorBoard events.

One process at a time holds the folder, by a lock that the operating system drops when the process ends in any way.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from diffusion_lm.config import differences
from diffusion_lm.errors import UserError
from diffusion_lm.experiment import ExperimentConfig, load, save, to_dict
from diffusion_lm.files import write_json

MAY_CHANGE = (
    "devices", "num_nodes", "strategy", "compile", "compile_backend", "checkpoint_activations",
)  # fmt: skip
"""Keys of `training` that say how a run is computed and not what: it goes on with other values of them."""
DATA_MAY_CHANGE = ("num_workers", "on_damage", "cache", "cache_gb")
"""Keys of `data` for which that holds: how it is read, and what becomes of damage that turns up."""
BATCH = ("batch_size", "micro_batch")
"""Keys of `training` that may change besides, where a run goes on from a checkpoint: by whole factors."""
FINISHED, PRUNED, INTERRUPTED = "finished", "pruned", "interrupted"


def changes(old: ExperimentConfig, new: ExperimentConfig, resumed: bool = False) -> list[str]:
    """Lines ``key: old -> new`` for what makes another run of it, or, of a run that is `resumed`, cannot be changed."""
    free = {f"training.{name}" for name in (*MAY_CHANGE, *(BATCH if resumed else ()))}
    free |= {f"data.{name}" for name in DATA_MAY_CHANGE}
    return [line for line in differences(to_dict(old), to_dict(new)) if line.partition(":")[0] not in free]


class Run:
    """The files of one run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config_file = self.folder / "config.yaml"
        self.checkpoint = self.folder / "checkpoints" / "last.ckpt"
        self.report_file = self.folder / "report.jsonl"
        self.result_file = self.folder / "result.json"
        self.failure_file = self.folder / "failure.json"
        self.stop_file = self.folder / "STOP"

    def saved_config(self) -> ExperimentConfig | None:
        """The config the run was started with."""
        return load(self.config_file, trained=True) if self.config_file.is_file() else None

    def check(self, saved: ExperimentConfig | None, config: ExperimentConfig) -> None:
        """Refuse a study's folder, and to go on here with another config than the saved one."""
        if (self.folder / "study.yaml").exists():
            raise UserError(f"{self.folder} is the folder of a study; give the run another with run=DIR")
        changed = changes(saved, config, resumed=self.unfinished()) if saved else []
        if changed:
            raise UserError(
                f"{self.folder} was started with another config ({'; '.join(changed)}); give run=NEW for another "
                "folder, or repeat the command with the values it was started with"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, for all of a run's devices. Raises `UserError` when another process does."""
        if rank_zero_only.rank:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot write to the run folder ({error.strerror}); give another with run=DIR"
            ) from None
        try:
            # not flock: a process that reads data would inherit that, and hold it for seconds after we are killed
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.folder} is in use by another process; wait for it, or give another folder with run=DIR"
            ) from None
        else:
            yield
        finally:
            os.close(handle)

    def unfinished(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.checkpoint.is_file() and (self.result() or {}).get("status") != FINISHED

    def save_config(self, config: ExperimentConfig) -> None:
        """Write config.yaml."""
        save(config, self.config_file)

    def result(self) -> dict[str, Any] | None:
        """What the run came to, if it ended or stopped."""
        return json.loads(self.result_file.read_text()) if self.result_file.is_file() else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Replace result.json."""
        write_json(self.result_file, result)

    def append_report(self, line: dict[str, Any]) -> None:
        """Add one validation; a cut last line, left by a killed process, is closed first."""
        text = self.report_file.read_bytes() if self.report_file.exists() else b""
        with open(self.report_file, "ab") as file:
            if text and not text.endswith(b"\n"):
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def reports(self) -> dict[int, dict[str, Any]]:
        """The validations by step; the last line of a step counts, and lines cut by a kill are passed over."""
        found = {}
        for text in self.report_file.read_text().splitlines() if self.report_file.exists() else []:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            found[line["step"]] = line
        return found
