"""A study's run folder: ``ROOT/NAME`` with the definition, Optuna's journal, claims and one folder per trial."""

import errno
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion_lm.errors import UserError
from sweeps.definition.study import StudyConfig

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def training_of(references: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Of the arms' experiments the most training `steps` and the most between validations, `val_every`."""
    found = [tree.get("training", {}) for tree in references.values()]
    kept = {key: [tree[key] for tree in found if key in tree] for key in ("steps", "val_every")}
    return {key: max(values) for key, values in kept.items() if values}


class StudyFolder:
    """Paths of one study, and its lock. `storage` is where a study that is not started yet is asked to be kept."""

    def __init__(self, config: StudyConfig, root: str | Path = "runs", storage: str | None = None):
        self.config, self.storage = config, storage
        self.path = Path(root) / config.name

    @property
    def definition(self) -> Path:
        """The study as it was when it started."""
        return self.path / "study.yaml"

    @property
    def references(self) -> Path:
        """The experiment of each arm as it was when the study started."""
        return self.path / "experiments.json"

    @property
    def training(self) -> dict[str, int]:
        """Of the arms' experiments the most training `steps` and the most between validations, `val_every`; empty as
        long as the study is not started."""
        return training_of(json.loads(self.references.read_text())) if self.references.is_file() else {}

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / "study.journal"

    @property
    def storage_file(self) -> Path:
        """One line, the URL of the study's database; not there for a study in the journal."""
        return self.path / "storage"

    @property
    def started(self) -> bool:
        """Whether somebody planned the study, as far as its folder says."""
        return self.definition.is_file() and (self.journal.is_file() or self.storage_file.is_file())

    @property
    def claims(self) -> Path:
        """Who worked on which trial: one file per trial and life."""
        return self.path / "claims"

    def require(self) -> None:
        """Raise `UserError` if the study was never started."""
        if not self.started:
            raise self.not_started()

    def not_started(self) -> UserError:
        """The error for a study that nobody planned yet."""
        return UserError(f"study '{self.config.name}' was not started: no study in {self.path}; start it with "
                         "`python -m sweeps run` or `sbatch SLURM/sweep.sh`, or name the folder that has it by --root")

    @contextmanager
    def lock(self, name: str = "study.lock") -> Iterator[None]:
        """One process at a time, across nodes. The kernel frees it when its holder dies, however it dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / name, "a")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); name another folder by "
                            "--root") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise UserError(f"{self.path}: this file system has no locks ({error.strerror}); name another one by "
                                "--root (Lustre: mount with -o flock)") from None
            yield
