"""Prompt sets by name, the look-alikes that titer brings, and the check of commercial use."""

import json

import pytest

from titer.config import validate
from titer.data import catalog
from titer.data.sources import Source, SourceReader, locate
from titer.judges.refusal import by_rule
from titer.methods import Kind
from titer.runs.roles import Data


def test_a_short_name_stands_for_one_repository():
    short = [each.short for each in catalog.REPOSITORIES if each.short]
    assert len(set(short)) == len(short) >= 8
    assert catalog.repository("advbench") is catalog.repository("walledai/AdvBench")
    with pytest.raises(ValueError, match="walledai/AdvBench"):  # there is no network here
        locate("advbench", None)


def test_the_look_alikes_are_read_by_their_name():
    reader = SourceReader()
    rows = reader.rows("lookalike", Source(catalog.LOOKALIKES), Kind.PROMPTS)
    assert len({row.prompt for row in rows}) == len(rows) == 44
    assert all(len(row.prompt.split()) < 25 for row in rows)
    assert not any(by_rule(row.response, "titer-1") for row in rows)  # each has an answer
    assert reader.facts["lookalike"]["rows"] == 44


def test_a_file_of_that_name_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xstest").write_text(json.dumps({"prompt": "mine"}) + "\n")
    assert locate("xstest", None).folder.read_text().startswith('{"prompt": "mine"')


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"harmful": "PKU-Alignment/BeaverTails"}, "CC BY-NC 4.0, which forbids"),
        ({"harmful": "beavertails"}, "which forbids commercial use"),
        ({"harm_test": "hex-phi"}, "not known to allow"),
        ({"task": "some/where"}, r"data.task='some/where' has a licence that is not known"),
    ],
)
def test_what_may_not_be_used_is_refused(given, error):
    validate(Data, given)
    with pytest.raises(ValueError, match=error):
        validate(Data, given | {"commercial": True})


def test_what_may_be_used_is_not(tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    given = {"harm_test": "advbench", "lookalike": "lookalikes", "test": str(mine)}
    validate(Data, given | {"commercial": True})
    validate(Data, {"world": 0, "commercial": True})
