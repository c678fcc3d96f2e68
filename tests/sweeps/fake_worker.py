"""``python -m sweeps run`` with the stand-ins: one worker process on STUDY.yaml in ROOT; the report on demand."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import fake_experiment  # noqa: E402
from optuna.exceptions import StorageInternalError  # noqa: E402

from diffusion_lm.errors import run_command  # noqa: E402
from sweeps.analysis import report  # noqa: E402
from sweeps.definition import planner, study  # noqa: E402
from sweeps.records.folder import StudyFolder  # noqa: E402
from sweeps.work import patience, progress, worker  # noqa: E402


def fail_while(flag, storage):
    """Have the storage fail while the file `flag` is there, as a database that is started again."""
    for name in ("get_trial", "get_all_trials", "set_trial_user_attr", "set_trial_intermediate_value",
                 "set_trial_state_values"):
        inner = getattr(storage, name)

        def wrapped(*arguments, inner=inner, **options):
            if flag.exists():
                raise StorageInternalError("an exception is raised during the commit") from OSError("gone")
            return inner(*arguments, **options)

        setattr(storage, name, wrapped)


def main(path, root, *more):
    folder = StudyFolder(study.load(path), root)
    planned = planner.plan(folder, fake_experiment)
    if "OUTAGE" in os.environ:
        fail_while(Path(os.environ["OUTAGE"]), planned._storage)
    command = (sys.executable, str(HERE / "fake_train.py"))
    code = worker.Worker(folder, planned, fake_experiment, train_command=command).run()
    if "report" in more:
        report.close(folder)
    return code


if __name__ == "__main__":
    worker.POLL, worker.DISK_PAUSE = 0.05, 0.1
    patience.FIRST, patience.LIMIT = 0.05, float(os.environ.get("PATIENCE", patience.LIMIT))
    progress.REPORT_EVERY = float(os.environ.get("REPORT_EVERY", progress.REPORT_EVERY))
    sys.exit(run_command(lambda argv: main(*argv), sys.argv[1:]))
