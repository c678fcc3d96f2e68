"""``python -m sweeps run`` with the stand-ins: one worker process on STUDY.yaml in ROOT; the report on demand."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import fake_experiment  # noqa: E402

from sweeps import patience, planner, progress, report, study, worker  # noqa: E402
from sweeps.folder import StudyFolder  # noqa: E402


def main(path, root, *more):
    folder = StudyFolder(study.load(path), root)
    planned = planner.plan(folder, fake_experiment)
    command = (sys.executable, str(HERE / "fake_train.py"))
    code = worker.Worker(folder, planned, fake_experiment, train_command=command).run()
    if "report" in more:
        report.close(folder)
    return code


if __name__ == "__main__":
    worker.POLL, worker.DISK_PAUSE = 0.05, 0.1
    patience.FIRST, patience.LIMIT = 0.05, float(os.environ.get("PATIENCE", patience.LIMIT))
    progress.REPORT_EVERY = float(os.environ.get("REPORT_EVERY", progress.REPORT_EVERY))
    sys.exit(main(*sys.argv[1:]))
