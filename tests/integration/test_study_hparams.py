"""TensorBoard's table of hyper-parameters in a study: what the study varies and the final numbers, nothing else."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from diffusion_lm.experiment import load
from diffusion_lm.training.events import Events
from diffusion_lm.training.hparams import FILE, columns, flat_hparams


@pytest.fixture
def table(tmp_path):
    """The columns and the row that a run in a trial's folder with this hparams.json has in TensorBoard."""

    def read(varied):
        (tmp_path / FILE).write_text(json.dumps(varied))
        events = Events(tmp_path, resumed_at=0)
        events.log_hyperparams(flat_hparams(load("quickstart"), tmp_path), columns(("val/nll", "val/bpb")))
        events.save()
        read.events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
        found = {tag: plugin_data_pb2.HParamsPluginData.FromString(data)
                 for tag, data in read.events.PluginTagToContent("hparams").items()}
        experiment = found["_hparams_/experiment"].experiment
        row = found["_hparams_/session_start_info"].session_start_info.hparams
        return ([info.name for info in experiment.hparam_infos], [info.name.tag for info in experiment.metric_infos],
                {name: value.string_value or value.number_value for name, value in row.items()})

    return read


def test_only_what_the_study_varies_is_shown(table):
    names, metrics, row = table({"arm": "mamba", "training.lr": 0.002, "training.compile": False, "seed": 3})
    assert names == ["arm", "lr", "compile", "seed"]
    assert row == {"arm": "mamba", "lr": 0.002, "compile": "false", "seed": 3}
    assert metrics == ["val/nll", "val/bpb", "throughput/tokens_per_second"]


def test_keys_that_would_be_one_keep_their_full_names(table):
    _, _, row = table({"denoiser.n_layers": 2, "denoiser.mixer.n_layers": 3, "seed": 0})
    assert row == {"denoiser.n_layers": 2, "denoiser.mixer.n_layers": 3, "seed": 0}


def test_a_key_that_does_not_apply_is_a_column_and_empty(table):
    """TensorBoard takes the columns of all runs from the first that it finds."""
    names, _, row = table({"arm": "transformer", "denoiser.d_state": None, "seed": 0})
    assert sorted(names) == ["arm", "d_state", "seed"] and row == {"arm": "transformer", "seed": 0}


def test_the_charts_of_the_page_custom_scalars(table):
    table({"seed": 0})
    (config,) = table.events.Tensors("custom_scalars__config__")
    runs, levels = layout_pb2.Layout.FromString(config.tensor_proto.string_val[0]).category
    assert runs.chart[0].multiline.tag == ["val/nll$"]
    shown = {tag for chart in levels.chart for tag in chart.multiline.tag}
    assert shown == {f"val_cross_entropy_by_noise_level/{band / 20:.2f}$" for band in range(1, 20, 2)}
