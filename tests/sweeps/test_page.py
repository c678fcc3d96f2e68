"""The report's files, and the page in a real browser: what it says, that it sorts, that nothing in it runs."""

import csv
import json
import math
import statistics
from types import SimpleNamespace

import pytest

from sweeps.analysis import report, sections

EVIL = 'one <script>document.title = "owned"</script> & <img src=x onerror=alert(1)> | two'
BOUNDS = {"transformer": [2.31, 2.35], "mamba": [2.11, 2.19], "hybrid": [2.02, 2.20], "exact": [1.5, 1.7]}
SPEEDS = {"transformer": 1500.0, "mamba": 900.0, "hybrid": 12000.0, "exact": 700.0}


def numbers(params, seed):
    arm = params["arm"]
    if arm == "broken":
        return {"fail": f"exit status 1: {EVIL}"}
    kind = {"process": "masked", "over": "exact" if arm == "exact" else "continuous time", "depends_on": {}}
    return {"val/nll": BOUNDS[arm][seed], "speed": SPEEDS[arm], "result": {"kind": kind, "sample": EVIL}}


@pytest.fixture
def reported(write_study, trained):
    path = write_study(arms={name: {} for name in [*BOUNDS, "broken"]}, seeds=[0, 1], baseline="transformer")
    folder = trained(path, numbers)
    report.show(folder)
    return folder


def half_width(values):
    """Of two values, by hand: t of one degree of freedom is a Cauchy variable, standard error |a - b| / 2."""
    return math.tan(math.pi * (0.975 - 0.5)) * abs(values[0] - values[1]) / 2


@pytest.fixture
def table():
    """The cells of a table on the page, by its heading."""

    def read(driver, heading):
        return driver.execute_script("""
            const section = [...document.querySelectorAll("section")].find(
                found => found.querySelector("h2").textContent.startsWith(arguments[0]));
            return [...section.querySelectorAll("table tr")].map(row => [...row.cells].map(cell => cell.textContent));
            """, heading)

    return read


def test_files_say_the_same_each_time(reported):
    with open(reported.path / "report.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10 and [line["state"] for line in lines].count("fail") == 2
    for line in lines:
        if line["state"] == "complete":
            assert float(line["val/nll"]) == BOUNDS[line["cell"]][int(line["seed"])]
            assert float(line["tokens_per_second_median"]) == SPEEDS[line["cell"]]
            assert (line["param:arm"], line["device_hours"], line["git"]) == (line["cell"], "1.0", "abc")
    found = json.loads((reported.path / "report.json").read_text())
    rows = {row["cell"]: row for row in found["corpora"][0]["rows"]}
    pairs = [ours - theirs for ours, theirs in zip(BOUNDS["hybrid"], BOUNDS["transformer"])]
    assert rows["hybrid"]["difference"] == pytest.approx(statistics.fmean(pairs))
    assert rows["hybrid"]["difference_interval"] == pytest.approx(
        [statistics.fmean(pairs) - half_width(pairs), statistics.fmean(pairs) + half_width(pairs)])
    assert rows["exact"]["difference"] is None, "another kind than the baseline's"
    text = (reported.path / "report.md").read_text()
    assert "screen: n = 2 seeds, fewer than five" in text and "\\| two |" in text
    names = ("report.md", "report.html", "report.csv", "report.json")
    first = [(reported.path / name).read_text() for name in names]
    report.show(reported)
    assert [(reported.path / name).read_text() for name in names] == first, "asked for again it is the same"


def test_a_retried_trial_replaces_the_failed_one(write_study, trained, records_of, capsys):
    from sweeps.analysis import comparison
    from sweeps.records import storage

    path = write_study(arms={"a": {}, "b": {}}, seeds=[0, 1], baseline="a")
    folder = trained(path, lambda params, seed: {"fail": "lost"} if (params["arm"], seed) == ("b", 1) else
                     {"val/nll": 2.0 - seed})
    (table,) = comparison.compare(folder.config, records_of(path))
    assert [(row.cell, row.against and row.against.n) for row in table.rows] == [("a", None), ("b", 1)]
    study = storage.load(folder)
    (failed,) = (trial for trial in study.trials if trial.state.name == "FAIL")
    study.enqueue_trial({"arm": "b"}, user_attrs={"retry_of": failed.number, "cell": "b", "seed": 1})
    trial = study.ask()
    trial.suggest_categorical("arm", ["a", "b"])
    done = next(record for record in records_of(path) if record.state == "complete" and record.seed == 1)
    place = folder.path / "0004-b-seed1"
    place.mkdir()
    (place / "result.json").write_text(json.dumps({**done.result, "metrics": {"val/nll": 0.5, "val/nll_se": 0.02}}))
    trial.set_user_attr("folder", str(place))
    study.tell(trial, [0.5])
    records = records_of(path)
    (table,) = comparison.compare(folder.config, records)
    assert [(row.cell, row.metrics["val/nll"]) for row in table.rows] == [("b", 1.25), ("a", 1.5)]
    assert table.rows[0].against.n == 2 and comparison.not_completed(records) == []
    capsys.readouterr()
    report.show(folder)
    said = capsys.readouterr().out
    assert "asked again as trial 4" in said and "not over" not in said


@pytest.mark.slow
def test_the_page_in_a_browser(reported, browser, table):
    driver = browser.open((reported.path / "report.html").as_uri())
    header, *lines = table(driver, "The arms on corpus fake")
    bound, speed = header.index("bound (nats/token)"), header.index("tokens/s")
    rows = {line[0]: line for line in lines}
    for arm, values in BOUNDS.items():
        exact = " exact" if arm == "exact" else ""
        assert rows[arm][bound] == f"{statistics.fmean(values):.3f}{exact}"
        assert rows[arm][speed] == f"{SPEEDS[arm]:,.0f}"
    pairs = [ours - theirs for ours, theirs in zip(BOUNDS["mamba"], BOUNDS["transformer"])]
    middle, half = statistics.fmean(pairs), half_width(pairs)
    assert rows["mamba"][header.index("minus transformer [95 %]")] == (
        f"{middle:+.3f} [{middle - half:+.3f}, {middle + half:+.3f}] (2)")
    assert "masked, continuous time" in rows["mamba"] and rows["unigram entropy"][bound] == "3.100"
    failures = table(driver, "What failed, and why")
    assert [line[1] for line in failures[1:]] == ["broken", "broken"] and failures[1][-1].endswith(EVIL)
    assert driver.title == reported.config.name and EVIL in driver.find_element("tag name", "body").text
    assert not driver.find_elements("tag name", "img"), "what is in a sample is text"
    assert len(driver.find_elements("css selector", "figure svg")) == 5
    assert "screen: n = 2 seeds" in driver.find_element("tag name", "body").text
    _sorting(driver, table)
    assert browser.errors() == []


def _sorting(driver, table):
    """A click sorts inside each kind."""
    def click(name):
        for button in driver.find_elements("css selector", "section:first-of-type th button"):
            if button.text.removesuffix(" ▲").removesuffix(" ▼") == name:
                driver.execute_script("arguments[0].click()", button)
        return [line[0] for line in table(driver, "The arms on corpus fake")[1:5]]

    kinds = [line[0] for line in table(driver, "The arms on corpus fake")[1:5]]
    assert kinds == ["hybrid", "mamba", "transformer", "exact"]
    # By number: as text 12,000 would come before 900.
    assert click("tokens/s") == ["mamba", "transformer", "hybrid", "exact"]
    assert click("tokens/s") == ["hybrid", "transformer", "mamba", "exact"]
    assert click("kind")[-1] == "exact" and click("kind")[0] == "exact", "a kind stays together"
    assert table(driver, "The arms on corpus fake")[-1][0] == "uniform (log V)", "references stay at the foot"


def test_every_end_of_a_life_is_listed():
    """A trial that went on after a lost node, one that failed for good after two lives, one that was pruned."""
    def record(number, state, **notes):
        return SimpleNamespace(number=number, state=state, cell="a", seed=number, result={"status": "finished"},
                               note={"node": "n1", **notes}.get)

    lost = {"class": "node", "life": 0, "reason": "killed by signal 9", "step": 20}
    records = [record(0, "complete", failures=[lost], retry_of=None),
               record(1, "fail", failures=[{**lost, "node": "n7"}, {"class": "code", "life": 1, "reason": "exit 1"}],
                      failure="code", reason="code, 1 times: exit status 1"),
               record(2, "pruned", reason="a file STOP in its folder")]
    found = sections._failures(sections.Report(None, records, []))
    assert [line[:1] + line[3:] for line in found.table.rows] == [
        ["0", "node", "0", "n1", "went on", "killed by signal 9"],
        ["1", "node", "0", "n7", "went on", "killed by signal 9"],
        ["1", "code", "1", "n1", "fail", "code, 1 times: exit status 1"],
        ["2", "–", "–", "n1", "pruned", "a file STOP in its folder"]]
