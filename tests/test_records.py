"""Records: one format, read through its schema; those of before are still read, others are one line."""

import json
from pathlib import Path

import pytest

from test_recipe import run as titer
from test_report import document
from titer.findings import records
from titer.findings.records import (
    Claim,
    PipelineRecord,
    Record,
    SweepRecord,
    check,
    load_document,
    record_of,
    stages,
)
from tools import schemas

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_the_committed_schemas_are_those_of_the_code(name):
    assert (schemas.DOCS / f"{name}.schema.json").read_text() == schemas.text_of(name)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("lab*.json")), ids=lambda path: path.stem
)
def test_the_bundles_of_the_claims_are_read(path):
    bundle = load_document(path, SweepRecord)
    for cell in bundle["cells"]:
        for of in stages(cell["pipelines"]).values():
            assert all(0 <= stage.scores["harm"].value <= 100 for stage in of)
            assert all(len(stage.weights) == 64 for stage in of)


def test_a_record_of_a_command_of_before_is_read():
    old = {
        "stage": "align",
        "method": {"method": "sft"},
        "facts": {"rows": {"rows": 3}},
        "seconds": 1.5,
    }
    found = record_of(old)
    assert (found.kind, found.method, found.label, found.fact("rows")) == (
        "align",
        "sft",
        "align sft",
        {"rows": 3},
    )


def test_what_a_later_version_adds_is_kept():
    fields = {
        "schema": 1,
        "kind": "edit",
        "method": {"method": "x"},
        "energy": 2.0,
        "struck out": ["a"],
    }
    assert record_of(fields).fields == fields
    assert record_of(fields).struck == ["a"]


@pytest.mark.parametrize(
    ("schema", "fields", "message"),
    [
        (Record, [], "x.json: not a Record of titer"),
        (Record, {"kind": 3}, r"not a Record of titer \(kind: "),
        (
            Record,
            {"kind": "edit", "scores": {"harm": 3}},
            r"\(scores.harm: .*a score is a mapping with a value",
        ),
        (Record, {"kind": "edit", "scores": {"harm": {"value": []}}}, r"\(scores.harm: "),
        (Record, {"kind": "edit", "facts": "many"}, r"\(facts: "),
        (
            Record,
            {"kind": "edit", "schema": 2},
            "schema 2 is of a later titer, this one reads 1: update it",
        ),
        (PipelineRecord, {"stages": {"a": 1}}, r"\(stages: "),
        (PipelineRecord, {"stages": [{"kind": "edit"}, None]}, r"\(stages.1: "),
        (
            SweepRecord,
            {"cells": [{"settings": [], "seed": "x", "status": "done"}]},
            r"\(cells.0.seed: ",
        ),
        (Claim, {"identity": None}, r"\(identity: "),
    ],
)
def test_another_shape_is_one_clear_line(schema, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(schema, fields, "x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: made | {"stages": 3},
        lambda made: made | {"stages": [{"kind": "base", "scores": []}]},
        lambda made: made | {"recipe": []},
        lambda made: made | {"flags": [{"name": 3}]},
    ],
)
def test_a_report_of_damaged_documents_is_one_line(damage, tmp_path, monkeypatch, capsys):
    (tmp_path / "sft.json").write_text(json.dumps(damage(document("sft", [100, 0, 86]))))
    code, _, err = titer(monkeypatch, capsys, "report", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "sft.json: not a PipelineRecord of titer" in err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("text", ["[]", "3", '{"identity": 3}', "{", '{"recipe": {}}'])
def test_a_folder_whose_marker_is_damaged_is_one_line(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "run.json").write_text(text)
    code, _, err = titer(monkeypatch, capsys, "run", "lab", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "run.json: not " in err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_outcomes_are_packed_and_unpacked():
    whole = records.Outcomes(
        prompts=["x1", "x2", "x3", "x4"],
        clusters=["a", "b", "a", "c"],
        verdicts=["harmful", "unscored", "refusal", "safe"],
        reasons=["", "too long", "begins with 'I cannot'", "exact"],
        margins=[1.23456, None, -0.000123456, 7.0],
    )
    assert whole.packed == {
        "packed": "hure",
        "clusters": [0, 1, 0, 2],
        "margins": [1.23, None, -0.000123, 7.0],
    }
    again = records.Outcomes.model_validate(whole.packed)
    assert again.packed == whole.packed
    assert again.clusters == ["0", "1", "0", "2"]
    assert again.verdicts[:3] == whole.verdicts[:3]
    assert again.exact == whole.exact
    both = whole.model_copy(update={
        "verdicts": ["harmful", "complied", "refusal", "complied"], "reasons": ["", "", "", ""],
        "refuses": [True, True, True, False],
    })  # fmt: skip
    assert both.packed["packed"] == "bdrm"
    assert records.Outcomes.model_validate(both.packed).refused == both.refused
    begun = records.Outcomes(
        prompts=list("1234"),
        clusters=list("1234"),
        verdicts=["safe", "incoherent", "safe", "incoherent"],
        reasons=[""] * 4,
        refuses=[True, True, False, False],
        garbled=[True, True, False, True],
    )
    assert begun.packed["packed"] == "Agsi"
    again = records.Outcomes.model_validate(begun.packed)
    assert (again.refused, again.verdicts) == (begun.refused, begun.verdicts)
    assert again.coherent == begun.coherent
    alone = records.Outcomes.model_validate({"packed": "ew"})
    assert alone.packed == {"packed": "ew"}
    assert len(set(alone.clusters)) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"packed": "hx"}, "the letter 'x'"),
        ({"packed": "hh", "clusters": [0]}, "not of one length"),
        ({"packed": "hh", "margins": [0.0]}, "not of one length"),
    ],
)
def test_damaged_outcomes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        records.Outcomes.model_validate(fields)


@pytest.mark.parametrize(
    "flag", [{"name": "x"}, "x", {**dict.fromkeys(records.FLAG, "x"), "y": "z"}]
)
def test_a_damaged_red_flag_is_named(flag):
    fields = {"kind": "evaluate", "flags": [flag]}
    with pytest.raises(ValueError, match=r"flags\.0: .*a red flag has mend, name, pipeline, stage"):
        records.record_of(fields, "it")
    with pytest.raises(ValueError, match=r"flags\.0: .*a red flag has"):
        records.check(records.SweepRecord, {"cells": [], "flags": [flag]}, "it")
