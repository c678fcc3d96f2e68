"""What TensorBoard shows of a run: the designed names and no others, under the steps of report.jsonl."""

import math

import pytest

TRAIN = {"train/loss", "train/cross_entropy", "train/grad_norm", "train/lr"}
VALIDATION = {"val/nll", "val/nll_se", "val/ppl_bound", "val/bpb", "throughput/tokens_per_second"}
GAUSSIAN = {"train/nll_variance", "train/recoverable_share"}
PARTS = {"val_terms/reconstruction", "val_terms/prior", "val_terms/diffusion"}


def levels(tags):
    return {tag for tag in tags if tag.startswith("val_cross_entropy_by_noise_level/")}


@pytest.mark.parametrize("objective", ["masked", "gaussian"])
def test_names_and_steps(shared, objective):
    run = {"masked": "run", "gaussian": "tensorboard-gaussian"}[objective]
    if objective == "gaussian":
        shared.train(run, "objective=gaussian", "evaluation.draws=40")
    curves = shared.curves(run)
    parts, own = (PARTS, GAUSSIAN) if objective == "gaussian" else (set(), set())
    train = TRAIN | own
    assert set(curves) - levels(curves) == train | VALIDATION | parts
    assert levels(curves) <= {f"val_cross_entropy_by_noise_level/{band / 20:.2f}" for band in range(1, 20, 2)}
    assert len(levels(curves)) == 10 if objective == "gaussian" else len(levels(curves)) >= 5
    for tag, points in curves.items():
        assert list(points) == (list(range(1, 13)) if tag in train else [4, 8, 12]), tag
        assert all(math.isfinite(value) for value in points.values()), tag
    for step, line in shared.reports(run).items():
        for tag in set(curves) - train:
            assert curves[tag][step] == pytest.approx(line[tag], rel=1e-6), tag


def test_samples_are_a_text_per_validation(shared):
    events = shared.events("run")
    texts = events.Tensors("samples/text_summary")
    assert [event.step for event in texts] == [4, 8, 12]
    last = texts[-1].tensor_proto.string_val[0].decode()
    sample = (shared.folder / "run" / "samples.txt").read_text()
    assert last.replace("\n    ", "\n").strip() == sample.strip()
    assert sample == shared.result("run")["sample"]


def test_the_row_of_hyper_parameters(shared):
    """One row, whose columns are filled by scalars that are there; no dummy metric."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = shared.events("run")
    found = {tag: data for tag, data in events.PluginTagToContent("hparams").items()}
    assert set(found) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    experiment = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/experiment"]).experiment
    columns = [info.name.tag for info in experiment.metric_infos]
    assert columns == ["val/nll", "val/bpb", "throughput/tokens_per_second"]
    assert set(columns) <= set(shared.curves("run"))
    assert shared.curves("run")["val/nll"][12] == pytest.approx(shared.result("run")["metrics"]["val/nll"])
    start = plugin_data_pb2.HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info
    row = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert row["denoiser"] == "transformer" and row["objective"] == "masked"
    assert (row["lr"], row["seed"]) == (2e-3, 0)


def test_a_run_folder_holds_what_it_should(shared):
    names = {path.name for path in (shared.folder / "run").iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert events and names - events - {"evaluation"} == {  # that is there once another test has evaluated the run
        ".lock", "config.yaml", "checkpoints", "report.jsonl", "result.json", "samples.txt",
    }  # fmt: skip
