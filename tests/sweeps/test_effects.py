"""Main effects, interactions, shares of variance: against textbook designs; importance of a known function."""

from itertools import product

import numpy as np
import pytest

from sweeps.analysis import comparison, effects, search, sections
from sweeps.records import storage

BATTERY = {
    ("1", 15): [130, 155, 74, 180], ("1", 70): [34, 40, 80, 75], ("1", 125): [20, 70, 82, 58],
    ("2", 15): [150, 188, 159, 126], ("2", 70): [136, 122, 106, 115], ("2", 125): [25, 70, 58, 45],
    ("3", 15): [138, 110, 168, 160], ("3", 70): [174, 120, 150, 139], ("3", 125): [96, 104, 82, 60]}
"""Life of batteries by plate material and temperature: Montgomery, Design and Analysis of Experiments, table 5.1."""
TOTAL = 77646.97


@pytest.fixture
def analysed(write_study, trained, records_of):
    """The effects in a study that was trained to the end with the given numbers."""

    def run(numbers, **keys):
        path = write_study(**keys)
        folder = trained(path, numbers)
        (table,) = comparison.compare(folder.config, records_of(path))
        return effects.of_design(folder.config, table)

    return run


def test_two_factors_of_the_textbook(analysed):
    """Its table 5.5: sums of squares 10,683.72 and 39,118.72, interaction 9,613.78; error 18,230.75 with 27 degrees of
    freedom when replicates are no blocks (here each replicate has a seed of its own, so a block is one of four)."""
    corpus = {"hash": "c0ffee", "name": "hours, no nats", "log_vocabulary": 100.0}
    (found,) = analysed(lambda params, seed: {"val/nll": BATTERY[params["arm"], params["lr"]][seed],
                                              "result": {"corpus": corpus}},
                        arms={name: {} for name in "123"}, space={"lr": [15, 70, 125]}, seeds=[0, 1, 2, 3])
    shares = {effect.factor: effect.share * TOTAL for effect in found.main}
    assert shares == pytest.approx({"lr": 39118.72, "arm": 10683.72}, abs=0.01)
    assert [effect.factor for effect in found.main] == ["lr", "arm"], "the largest first"
    (both,) = found.interactions
    assert both.share * TOTAL == pytest.approx(9613.78, abs=0.01)
    assert both.means[both.levels[0].index("3")][both.levels[1].index(70)] == np.mean(BATTERY["3", 70])
    levels = {level.value: level for level in found.main[0].levels}
    assert list(levels) == [15, 70, 125], "in the order of the study"
    assert levels[15].mean == pytest.approx(144.8333, abs=1e-4) and levels[15].trials == 12
    # Error by hand: what cell means and seed means leave, (9 - 1) x (4 - 1) degrees of freedom; t of 24 is 2.0639.
    table = np.array(list(BATTERY.values()), dtype=float)
    left = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    assert levels[15].half_width == pytest.approx(2.0639 * np.sqrt((left**2).sum() / 24 / 12), rel=1e-4)
    assert found.error == effects.REPLICATES


FILTRATION = [45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96]
"""Montgomery, table 6.10: filtration rate by A, B, C, D in standard order (A changes fastest), no replicates."""
KEYS = ("lr", "width", "steps", "pause")


def test_half_fraction_of_the_textbook():
    """Its example 8.1, the half with I = ABCD: effects A 19.0, B 1.5, C 14.0, D 16.5; AC + BD is -18.5."""
    runs = {tuple(levels): value for levels, value in
            zip((row[::-1] for row in product((-1, 1), repeat=4)), FILTRATION)}
    points = [effects.Point(value, dict(zip(KEYS, levels)), None) for levels, value in runs.items()
              if np.prod(levels) == 1]
    assert len(points) == 8
    found = effects._effects(None, points, list(KEYS))
    sizes = {effect.factor: effect.levels[-1].mean - effect.levels[0].mean for effect in found.main}
    assert {name: abs(size) for name, size in sizes.items()} == pytest.approx(
        {"lr": 19.0, "width": 1.5, "steps": 14.0, "pause": 16.5})
    shares = {pair.factors: pair.share for pair in found.interactions}
    assert shares["lr", "steps"] == pytest.approx(shares["width", "pause"]), "they are one column of the design"
    total = sum((point.value - 70.75) ** 2 for point in points)
    assert shares["lr", "steps"] * total == pytest.approx(2 * 18.5**2), "N effect^2 / 4"


def test_a_failed_trial_does_not_bend_the_means(analysed):
    """An additive function: without adjustment the mean of the level that lost a good trial would be too high."""
    def numbers(params, seed):
        if params == {"arm": "mamba", "width": 128} and seed == 0:
            return {"fail": "lost"}
        return {"val/nll": 2.0 + 0.5 * (params["arm"] == "mamba") - 0.1 * (params["width"] == 128) + 0.01 * seed}

    (found,) = analysed(numbers, arms={"transformer": {}, "mamba": {}}, space={"width": [64, 128]}, seeds=[0, 1])
    means = {effect.factor: [level.mean for level in effect.levels] for effect in found.main}
    assert means["arm"] == pytest.approx([1.955, 2.455]) and means["width"] == pytest.approx([2.255, 2.155])


def test_a_finished_trial_that_diverged_is_left_out_with_a_remark(write_study, trained, records_of):
    """As studies have it whose workers told it as finished: its 8.8e31 would be the whole sum of squares."""
    def numbers(params, seed):
        if params == {"arm": "mamba", "width": 128} and seed == 0:
            return {"val/nll": 8.8e31}
        return {"val/nll": 2.0 + 0.5 * (params["arm"] == "mamba") - 0.1 * (params["width"] == 128) + 0.01 * seed}

    path = write_study(arms={"transformer": {}, "mamba": {}}, space={"width": [64, 128]}, seeds=[0, 1])
    folder = trained(path, numbers)
    report = sections.gather(folder, storage.load(folder))
    (found,) = effects.of_design(folder.config, report.comparisons[0])
    means = {effect.factor: [level.mean for level in effect.levels] for effect in found.main}
    assert means["arm"] == pytest.approx([1.955, 2.455]) and means["width"] == pytest.approx([2.255, 2.155])
    (factors,) = (section for section in report.sections if section.title == "Factors")
    assert factors.paragraphs[-1] == ("trial 3 is left out: val/nll is 8.8e+31, more than 10 times log V = 5.5 (a "
                                      "uniform guess): it diverged.")


def test_aliased_effects_are_not_told_apart():
    points = [effects.Point(float(value), {"a": level, "b": level * 10}, None)
              for value, level in ((1, 0), (2, 1), (1.1, 0), (2.1, 1))]
    found = effects._effects(None, points, ["a", "b"])
    assert found.main == [] and found.interactions == []


def test_a_conditional_factor_is_read_where_it_is():
    """Only Mamba has a state size; its effect does not touch the transformers, nor theirs it."""
    points = [effects.Point(3.0 + 0.1 * lr, {"arm": "transformer", "lr": lr}, None) for lr in (1, 2)]
    points += [effects.Point(2.0 + 0.1 * lr - 0.01 * state, {"arm": "mamba", "lr": lr, "d_state": state}, None)
               for lr in (1, 2) for state in (16, 64)]
    found = {effect.factor: effect for effect in effects._effects(None, points, ["arm", "lr", "d_state"]).main}
    assert found["d_state"].conditional and not found["arm"].conditional
    assert [level.mean for level in found["d_state"].levels] == pytest.approx([1.99, 1.51])
    assert [level.trials for level in found["d_state"].levels] == [2, 2]
    assert [level.mean for level in found["arm"].levels] == pytest.approx([3.15, 1.75])


def test_kinds_are_not_pooled(analysed):
    """The exact arms and those of a bound are two analyses; a factor that only parts the kinds is none."""
    def numbers(params, seed):
        exact = params["arm"] == "transformer"
        kind = {"process": "masked", "over": "exact" if exact else "continuous time", "depends_on": {}}
        return {"val/nll": 1.0 + params["width"] / 64 + 50 * params["lr"] + 5 * exact, "result": {"kind": kind}}

    found = analysed(numbers, arms={"transformer": {}, "mamba": {}, "hybrid": {}},
                     space={"width": [64, 128], "lr": [0.001, 0.002]})
    assert [str(one.kind) for one in found] == ["masked, exact", "masked, continuous time"]
    assert [{effect.factor for effect in one.main} for one in found] == [{"width", "lr"}, {"arm", "width", "lr"}]
    assert found[0].main[0].levels[0].mean == pytest.approx(7.075)


def test_one_factor_is_left_to_the_table(analysed):
    assert analysed(lambda params, seed: {"val/nll": 1.0}, arms={"transformer": {}, "mamba": {}}) == []


def test_importance_and_best_so_far(write_study, trained, records_of):
    """The objective is the learning rate alone; the width is noise."""
    path = write_study(space={"lr": {"low": 0.0, "high": 1.0}, "width": [32, 64, 128]}, trials=24,
                       sampler={"name": "RandomSampler"})
    folder = trained(path, lambda params, seed: {"val/nll": 1 + (params["lr"] - 0.3) ** 2})
    records = records_of(path)
    (found,) = search.searches(folder.config, records)
    values = [1 + (record.trial.params["lr"] - 0.3) ** 2 for record in records]
    assert found.best == pytest.approx(list(np.minimum.accumulate(values)))
    assert list(found.importances) == ["lr", "width"] and found.importances["lr"] > 0.8
    assert search.importances(folder.config, records[:9]) == {}, "nine trials say nothing"
