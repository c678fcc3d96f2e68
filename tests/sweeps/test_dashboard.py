"""What is put into the Optuna dashboard: notes, files, plots over seeds."""

import math
import statistics
import subprocess
import sys

import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note

from sweeps.analysis import comparison, report
from sweeps.records import history, storage
from sweeps.watch import dashboard, figures

STUDENT = {1: 12.706, 2: 4.303}  # 97.5 %, by degrees of freedom, from a printed table


@pytest.fixture
def finished(write_study, work, folder_of):
    """Two arms with three seeds each and one that fails; its folder and study."""
    arms = {"transformer": {}, "mamba": {"denoiser": "mamba", "lr": 0.003}, "broken": {"fault": "bad"}}
    path = write_study(arms=arms, seeds=[0, 1, 2], baseline="transformer", overrides={"steps": 1})
    assert work(path)[0] == [1]
    folder = folder_of(path)
    return folder, storage.load(folder)


def files(folder, target, study):
    return {found.filename: (folder.path / "artifacts" / found.artifact_id).read_text()
            for found in get_all_artifact_meta(target, storage=study._storage)}


def test_a_trial_has_a_note_and_its_files(finished):
    folder, study = finished
    notes = study._storage.get_study_system_attrs(study._study_id)
    by_trial = ["".join(str(value) for key, value in notes.items() if key.startswith(f"dashboard:{number}:note_str"))
                for number in range(3)]
    for number, cell in enumerate(("transformer", "mamba", "broken")):
        config = folder.path / f"000{number}-{cell}-seed0" / "config.yaml"
        assert f"**{cell}**, seed 0" in by_trial[number]
        assert f"python -m diffusion_lm train {config} run=NEW" in by_trial[number]
        assert files(folder, study.get_trials()[number], study)["config.yaml"] == config.read_text()
    assert "**No result**: exit status 2" in by_trial[2] and "    error: shards: no such folder" in by_trial[2]
    assert "shards: no such folder" in files(folder, study.get_trials()[2], study)["train.log"]
    assert "No result" not in by_trial[0] and "train.log" not in files(folder, study.get_trials()[0], study)


def test_published_again_files_are_replaced_and_not_added(finished):
    folder, study = finished
    (folder.path / "report.csv").write_text("old")
    dashboard.publish(folder, study, [], "first")
    before = {found.filename: found.artifact_id for found in get_all_artifact_meta(study)}
    (folder.path / "report.csv").write_text("new")
    dashboard.publish(folder, study, [], "second")
    assert {found.filename: found.artifact_id for found in get_all_artifact_meta(study)} == before
    assert files(folder, study, study)["report.csv"] == "new" and get_note(study) == "second"


def publishing(path):
    """Reports of one study at once, each in a process: all wait for the file `go`."""
    code = ("import sys, time; from pathlib import Path; from sweeps.analysis import report\n"
            "from sweeps.definition import study; from sweeps.records.folder import StudyFolder\n"
            "folder = StudyFolder(study.load(sys.argv[1]), sys.argv[2]); print('ready', flush=True)\n"
            "while not Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
            "getattr(report, sys.argv[4])(folder)")
    definition, root = path / "study.yaml", path.parent
    return lambda how: subprocess.Popen([sys.executable, "-c", code, definition, root, root / "go", how],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "show"])
def test_reports_at_once_attach_each_file_once(finished, how):
    folder, study = finished
    start = publishing(folder.path)
    processes = [start(how) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    (folder.path.parent / "go").touch()
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "the whole report: " in out, error
    names = [found.filename for found in get_all_artifact_meta(study)]
    assert "report.html" in names and len(names) == len(set(names)), names


def test_a_worker_that_ends_second_does_not_write_the_same_report_again(finished, capsys):
    folder, _ = finished
    report.close(folder)
    written = folder.path / "report.html"
    written.write_text("as it was")
    report.close(folder)
    assert written.read_text() == "as it was" and capsys.readouterr().out.count("the whole report: ") == 2
    (folder.path / "report.json").write_text("{}")  # of another state of the study
    report.close(folder)
    assert written.read_text() != "as it was"


def test_plots_over_seeds_have_the_means_and_their_intervals(finished):
    folder, study = finished
    table = comparison.compare(folder.config, history.records(folder, study))
    made = figures.make(folder.config, table)
    assert set(made) == {"means-over-seeds", "differences-to-the-baseline"}
    seeds, means = made["means-over-seeds"].data
    values = [2.0 + 0.05 * seed + 3 * math.exp(-1) for seed in range(3)]
    half = STUDENT[2] * statistics.stdev(values) / math.sqrt(3)
    place = list(means.y).index("transformer")
    assert means.x[place] == pytest.approx(statistics.fmean(values))
    assert means.error_x.array[place] == pytest.approx(half, rel=1e-3)
    assert sorted(x for x, y in zip(seeds.x, seeds.y) if y == "transformer") == pytest.approx(values)
    (points,) = made["differences-to-the-baseline"].data
    assert list(points.y) == ["mamba"] and points.x[0] == pytest.approx(-0.1 + 0.2)
