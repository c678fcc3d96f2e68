"""What optuna-dashboard lacks for ablations, put into the study: a note, plots over seeds, files to look at.

A trial's note and files are written before Optuna is told of its end, for afterwards it takes no more. Its files lie in
the study's ``artifacts/``, which the dashboard is started with (``--artifact-dir``).
"""

import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from diffusion_lm.files import atomic_path
from sweeps.records import trial_files

if TYPE_CHECKING:
    from sweeps.analysis.comparison import Comparison
    from sweeps.records.claim import Claim
    from sweeps.records.folder import StudyFolder

ARTIFACTS = "artifacts"
TRIAL_FILES = (trial_files.CONFIG, "samples.txt")
STUDY_FILES = ("*.png", "report.html", "report.csv", "study.yaml")
TEXT = {".yaml": "text/plain", ".log": "text/plain"}
LOG_LINES = 20


def publish(folder: "StudyFolder", study: optuna.Study, comparisons: "Sequence[Comparison]", note: str) -> None:
    """The study's note, the plots that the dashboard does not have, and what the report drew, as artifacts.

    Called again, it replaces them.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object

    from sweeps.watch import figures

    save_note(study, note)
    for name, figure in figures.make(folder.config, comparisons).items():
        save_plotly_graph_object(study, figure, graph_object_id=name)
    _attach(folder.path, study, (path for pattern in STUDY_FILES for path in sorted(folder.path.glob(pattern))))


def describe_trial(claim: "Claim", reason: str | None = None) -> None:
    """The note and the files of a trial that is about to end; `reason`: why, where it gave no result."""
    from optuna_dashboard import save_note

    save_note(claim.trial, trial_note(claim, reason))
    names = TRIAL_FILES if reason is None else (*TRIAL_FILES, trial_files.LOG)
    _attach(claim.folder.parent, claim.trial, (claim.folder / name for name in names))


def trial_note(claim: "Claim", reason: str | None = None) -> str:
    """What a person asks of a trial, in Markdown: what it is, where it is, how to repeat it, why it failed."""
    attributes = claim.trial.user_attrs
    what = [f"**{attributes.get('cell', 'trial')}**"]
    if attributes.get("seed") is not None:
        what.append(f"seed {attributes['seed']}")
    if claim.life:
        what.append(f"restarted {claim.life} times" if claim.life > 1 else "restarted once")
    config = shlex.quote(str(claim.folder / trial_files.CONFIG))
    parts = [", ".join(what), f"Folder: `{claim.folder}`",
             f"To repeat it in a new folder NEW:\n\n    python -m diffusion_lm train {config} run=NEW"]
    if reason is not None:
        lines = "\n".join(f"    {line}" for line in _last_lines(claim.folder / trial_files.LOG))
        parts += [f"**No result**: {reason}", f"The end of its log:\n\n{lines}" if lines else "Its log is empty."]
    return "\n\n".join(parts)


def _last_lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    except FileNotFoundError:
        return []


def _attach(study_folder: Path, target: optuna.Study | optuna.Trial, paths: Iterable[Path]) -> None:
    """Files of the study or trial in the dashboard; one of the same name is replaced."""
    from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact

    place = study_folder / ARTIFACTS
    place.mkdir(exist_ok=True)
    known = {found.filename: found.artifact_id for found in get_all_artifact_meta(target)}
    for path in paths:
        if not path.is_file():
            continue
        if path.name in known:
            with atomic_path(place / known[path.name]) as temporary:
                shutil.copyfile(path, temporary)
        else:
            upload_artifact(artifact_store=FileSystemArtifactStore(str(place)), file_path=str(path),
                            study_or_trial=target, mimetype=TEXT.get(path.suffix))
