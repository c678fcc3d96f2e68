"""What a worker refuses in one line before it begins a trial: a changed experiment, data that is not there."""

import dataclasses
import subprocess

from data_prep.build import Settings, shard
from sweeps.definition import experiments as experiment_files
from sweeps.definition import facts, planner
from sweeps.records import trial_files
from sweeps.records.claim import Claims
from sweeps.records.owner import Owner


def states(records):
    return [record.state for record in records]


def test_an_experiment_edited_while_a_worker_runs_begins_no_other_trial(write_study, start, work, records_of, folder_of,
                                                                        eventually, tmp_path):
    experiment = tmp_path / "e.yaml"
    experiment.write_text("{lr: 0.001, steps: 20, pause: 0.05}")
    path = write_study(experiment=str(experiment), arms={"a": {}, "b": {"width": 32}})
    (worker,) = start(path)
    eventually((folder_of(path).path / "0000-a" / "lives.txt").exists)
    experiment.write_text("{lr: 0.002, steps: 20, pause: 0.05}")
    said, _ = worker.communicate(timeout=30)
    assert worker.returncode == 2 and "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"error: study 's': the experiment '{experiment}' changed since the study started (a.lr: 0.001 -> 0.002; b.lr: "
        "0.001 -> 0.002); restore it, or start a study with another name")
    assert states(records_of(path)) == ["complete", "waiting"]
    experiment.write_text("{lr: 0.001, steps: 20, pause: 0}")
    assert work(path)[0] == [2], "another key"
    experiment.write_text("{lr: 0.001, steps: 20, pause: 0.05}")
    assert work(path)[0] == [0]
    assert [trial_files.config(record.folder)["lr"] for record in records_of(path)] == [0.001, 0.001]


def test_a_trial_that_died_before_its_configuration_is_not_given_another(write_study, work, records_of, folder_of,
                                                                        experiments, tmp_path):
    experiment = tmp_path / "e.yaml"
    experiment.write_text("{steps: 2, lr: 0.001}")
    path = write_study(experiment=str(experiment))
    folder = folder_of(path)
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = dataclasses.replace(Owner.current(), pid=ended.pid, started="1")
    Claims(folder, planner.plan(folder, experiments), gone).fresh()
    experiment.write_text("{steps: 2, lr: 0.002}")
    codes, said = work(path)
    assert codes == [2] and "changed since the study started" in said
    (record,) = records_of(path)
    assert record.state == "running" and not (record.folder / "config.yaml").exists()
    experiment.write_text("{steps: 2, lr: 0.001}")
    assert work(path)[0] == [0] and states(records_of(path)) == ["complete"]


def test_data_that_is_not_there_costs_no_trial(write_study, work, records_of, tmp_path):
    corpus = tmp_path / "shards"
    path = write_study(arms={"a": {}, "b": {"corpus": str(corpus)}}, overrides={"steps": 2}, seeds=[0, 1])
    codes, said = work(path, 2)
    assert codes == [2, 2] and "Traceback" not in said
    assert [line for line in said.splitlines() if line] == [f"error: arm b: {corpus}: no such folder of shards"] * 2
    assert states(records_of(path)) == ["waiting"] * 4
    corpus.mkdir()
    assert work(path)[0] == [0]
    assert states(records_of(path)) == ["complete"] * 4


def test_planning_remarks_on_data_that_is_not_there(write_study, folder_of, experiments, tmp_path):
    corpus = tmp_path / "shards"
    folder = folder_of(write_study(arms={"a": {}, "b": {"corpus": str(corpus)}}, space={"lr": [0.1, 0.2]}))
    said = f"no worker begins a trial yet: arm b, lr=0.1: {corpus}: no such folder of shards"
    assert [line for line in facts.lines(folder, experiments) if "worker" in line] == [said], "once, not for every cell"
    corpus.mkdir()
    assert [line for line in facts.lines(folder, experiments) if "worker" in line] == []


def test_real_shards_are_looked_at_as_training_does(write_study, folder_of, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{number} once upon a time"}}\n' for number in range(40)))
    shards = tmp_path / "shards"
    shard(Settings(source=str(tmp_path / "text.jsonl"), out=shards, length=32, val_fraction=0.3))
    arms = {"good": {}, "long": {"data.length": 64}, "none": {"data.path": f"{tmp_path}/none"}}
    overrides = {"data": {"path": str(shards), "length": 32}}
    config = folder_of(write_study(experiment="quickstart", arms=arms, overrides=overrides)).config
    long, none = experiment_files.data_refusals(config, experiment_files.Core())
    assert long.startswith(f"arm long: {shards}: shards made with length=32, the experiment says data.length=64; set ")
    assert none.startswith(f"arm none: {tmp_path}/none: no such folder of shards; make it: python -m data_prep shard ")
    next(path for path in shards.rglob("*") if path.name.endswith(".tar") and "train" in path.name).unlink()
    cut, *_ = experiment_files.data_refusals(config, experiment_files.Core())
    assert cut.startswith("arm good: ") and "train" in cut
