"""docs/studies.md: every key is there, and every example is a study that can be planned."""

import re
from pathlib import Path

import pytest
import yaml

from sweeps.definition import design, limits, study, study_keys

PAGE = (Path(__file__).parents[2] / "docs/studies.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("key", [*study_keys.READERS, "extends"])
def test_every_key_has_its_section(key):
    headings = re.findall(r"^### (.*)$", PAGE, re.MULTILINE)
    assert any(f"`{key}`" in heading for heading in headings)


def test_no_section_is_of_a_key_that_does_not_exist():
    named = set(re.findall(r"`([^`]+)`", " ".join(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))))
    assert named == {*study_keys.READERS, "extends"}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_studies(text, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(text)
    config = study.load(path)
    assert len(design.rows(config)) == config.size and design.probes(config)


@pytest.mark.slow
@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_studies_of_experiments_that_exist(text, tmp_path):
    from sweeps.definition import experiments

    path = tmp_path / "example.yaml"
    path.write_text(text)
    assert experiments.try_all(study.load(path), experiments.Core(), build=True)


def test_numbers_of_the_page_are_those_of_the_code():
    sizes = {word: study.from_dict(yaml.safe_load(text)).size for text in EXAMPLES
             for word in ("replicates: 5", "when:", "runs: 8") if word in text}
    assert sizes == {"replicates: 5": 30, "when:": 3, "runs: 8": 8}
    assert [yaml.safe_load(text)["restarts"] for text in EXAMPLES if "restarts" in text] == [limits.RESTARTS]
