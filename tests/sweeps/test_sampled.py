"""A sampled study through worker processes: known points, conditions, constraints, a budget that ends it."""

STUDY = {"arms": {"a": {}, "b": {"denoiser": "mamba"}}, "trials": 12, "seeds": [0], "overrides": {"steps": 1},
         "constraints": {"parameters": {"max": 19_000}}, "points": [{"arm": "b", "width": 96}],
         "space": {"lr": {"low": 1e-4, "high": 1e-2, "log": True},
                   "width": {"low": 32, "high": 128, "step": 32, "when": {"arm": "b"}}}}


def test_a_sampled_study_to_the_end_of_its_budget_and_on_with_a_larger_one(write_study, work, records_of):
    path = write_study(**STUDY, budget={"trials": 3})
    codes, output = work(path)
    assert codes == [0] and "no new trial: the budget is used up (3 of 3 trials)" in output
    records = records_of(path)
    assert [(record.state, record.cell) for record in records] == [("complete", arm) for arm in "bab"]
    assert records[0].trial.params["width"] == 96
    # The stand-in has 20,000 parameters whatever it is told: 1,000 too many for 19,000.
    assert [record.trial.constraints for record in records] == [{"parameters": 1000 / 19_000}] * 3

    codes, _ = work(write_study(**STUDY, budget={"trials": 5}), 2)
    records = records_of(path)
    assert codes == [0, 0] and 5 <= len(records) <= 6, "two workers may begin at the same moment"
    assert {record.state for record in records} == {"complete"}
    assert all(("width" in record.trial.params) == (record.cell == "b") for record in records)


def test_the_report_is_written_when_the_budget_has_ended_a_design(write_study, work):
    path = write_study(arms={"a": {}, "b": {"denoiser": "mamba"}}, overrides={"steps": 1}, budget={"trials": 1})
    codes, output = work(path, 1, "report")
    assert codes == [0] and "trials are not over; see" not in output
    report = (path.parent / "runs/s/report.md").read_text()
    assert "1 of 2 trials are not over: this is not the final table." in report
