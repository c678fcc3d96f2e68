"""A run whose documents do not see each other: what it reports, and with whom it is not compared."""

import json

import pytest

ISOLATED = ("data.isolate_documents=true",)


@pytest.fixture
def isolated(world):
    return world.run("isolated", *ISOLATED)


def test_its_numbers_are_of_a_kind_of_their_own(world, isolated, evaluate):
    found = evaluate(isolated)
    assert found["kind"]["over"] == "continuous time, document ends given"
    assert found["manifest"]["documents_isolated"]
    result = json.loads((world.folder / isolated / "result.json").read_text())
    assert result["kind"]["over"] == "continuous time, document ends given"
    assert result["metrics"]["val/nll"] == pytest.approx(found["val/nll"], rel=1e-5)


def test_other_data_is_one_stream_of_text(isolated, evaluate):
    found = evaluate(isolated, "--data", "other_shards", "--out", "elsewhere")
    assert found["kind"]["over"] == "continuous time"
    assert not found["manifest"]["documents_isolated"]


def test_it_is_not_compared_with_a_run_that_is_not_told_where_documents_end(world, isolated, refused, evaluate):
    line = refused(world.run("plain"), isolated)
    assert "documents differ (False and True)" in line and "give --data for a text that both are scored on" in line
    both = evaluate(world.run("plain"), isolated, "--data", "other_shards", "--out", "both")
    assert both["manifest"]["difference"]["comparable"]
