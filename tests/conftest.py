"""In CI a test that skips is a failure, unless what it misses is a GPU.

Locally a missing component (mamba-ssm, SLURM) skips its tests. In CI every component but a GPU is installed, so a
skip there means that something is no longer tested. The reason of an allowed skip contains the word GPU or CUDA.
A module that skips itself as a whole fails even where its tests' markers would leave it out: markers are read only
after the import, so call `importorskip` inside the test or a fixture.
"""

import os
import re

import pytest

ALLOWED = re.compile(r"\b(GPU|CUDA)\b", re.IGNORECASE)


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip for another reason than a missing GPU into a failure; leave xfail alone."""
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI", "").lower() in ("", "0", "false"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not ALLOWED.search(reason):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: a skip in CI, where only a missing GPU may skip a test; got: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    forbid_skip(report)
    return report
