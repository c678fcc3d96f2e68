"""`times=` from the command line to the run's own config; what is refused."""

import yaml


def test_trains_on_a_clipped_range_and_records_it(place):
    times = "times={name: importance, low: 0.2, high: 0.9}"
    assert "run: finished at step 4" in place.train("run", "training.steps=4", times, "schedule=half_cosine").out
    tree = yaml.safe_load((place.folder / "run" / "config.yaml").read_text())
    assert tree["times"] == {"name": "importance", "low": 0.2, "high": 0.9, "power": 1.0, "t_min": 0.001}
    assert tree["schedule"] == {"name": "half_cosine", "eps": 0.001}
    place.train("plain", "training.steps=4", "schedule=half_cosine")
    losses = [place.curves(run)["train/loss"] for run in ("run", "plain")]
    assert set(losses[0].values()).isdisjoint(losses[1].values())


def test_describe_names_the_time_sampler(place):
    assert place.json("describe", "tiny.yaml", "times=antithetic")["times"] == "antithetic"
    assert place.json("describe", "tiny.yaml")["times"] == "stratified"


def test_an_odd_batch_in_pairs_is_refused_before_anything_is_written(place):
    line = place.refused("train", "tiny.yaml", "run=odd", "times=antithetic", "training.batch_size=7")
    assert "times 'antithetic': got a global batch of 7, expected an even number" in line


def test_an_unknown_time_sampler_is_refused_with_the_nearest_name(place):
    line = place.refused("train", "tiny.yaml", "run=odd", "times=importanc")
    assert "times: no variant 'importanc'; expected one of antithetic, clipped, importance, stratified" in line
    assert "did you mean 'importance'?" in line
