"""run STUDY: a worker."""

import argparse

from sweeps.commands.base import add_code, add_storage, add_study, study_folder

HELP = "plan, then work on the study's trials until none is left"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_study(parser)
    add_storage(parser)
    add_code(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan, work, and write the report if this worker ended the study."""
    from sweeps.cluster import launch, slurm, snapshot
    from sweeps.work import child

    child.hold()
    folder = study_folder(arguments)
    launch.Allocation.current()
    snapshot.enter(folder.path, folder.path.parent, arguments.code)
    from sweeps.analysis import report
    from sweeps.definition import experiments, planner
    from sweeps.work import patience, worker

    core = experiments.Core()
    held = child.Held()
    try:
        study = patience.Patience(held)(lambda: planner.plan(folder, core))
    except patience.GaveUp as error:
        print(f"error: {error}", flush=True)
        task = slurm.task()
        if held.signal is not None and task is not None:
            slurm.requeue(task)
        return child.INTERRUPTED
    snapshot.record(folder.path, arguments.code)
    snapshot.enter(folder.path, folder.path.parent, arguments.code)  # a faster worker's, if that is another
    code = worker.Worker(folder, study, core).run()
    if code not in (child.INTERRUPTED, child.CTRL_C):  # the study is not over, or its storage does not answer
        report.close(folder)
    return code
