"""Whether a worker begins another trial: the job's time, and what the study may spend."""

import statistics

import optuna
from optuna.trial import TrialState

from sweeps.cluster import slurm
from sweeps.definition import limits
from sweeps.records import history
from sweeps.records.folder import StudyFolder

MARGIN = 1.2  # a new trial takes this times the median of those that finished, at most, for the job's time to do


def over_budget(folder: StudyFolder, study: optuna.Study) -> str | None:
    """Which limit of the study's budget was reached, in words; None while there is room."""
    budget = folder.config.budget
    return budget.reached(limits.spent(history.records(folder, study))) if budget.to_dict() else None


def too_little_time(study: optuna.Study) -> str | None:
    """Why a new trial would not end within this job, in words; None if it may, or if no job is long enough for one.

    Trials can be continued, so that this saves no work: it saves a stop, a wait in the queue and a start in the middle
    of a trial. Without SLURM, without a limit, and before the first trial has finished, there is always time.
    """
    task = slurm.task()
    times = [trial.user_attrs["seconds"] for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
             if trial.user_attrs.get("seconds")]
    if task is None or not times or (found := slurm.time_left(task)) is None:
        return None
    left, limit = found
    needed = MARGIN * statistics.median(times)
    if left >= needed or needed > limit:
        return None
    return f"{left:,.0f} s left, and a trial takes about {statistics.median(times):,.0f} s"
