"""The claim of ladders: what its bundle keeps, and the tables made from it."""

import json
import sys

import pytest

from results import bundles, ladder, make
from test_ladder import climb, rung
from titer.findings.ladder import REACH, LadderRecord, find_break, find_worst
from titer.findings.records import plain
from titer.runs.sweep import Cell


def record(*hits: int | None, **others) -> dict:
    rungs = [rung("ask", 0, 0, "prompts"), *climb(*hits)]
    breaks = {access: find_break(rungs, access) for access in REACH}
    made = LadderRecord(
        ladder="mine", sha256="0", rungs=rungs, breaks=breaks, worst=find_worst(rungs), **others
    )
    return plain(made.model_dump(by_alias=True, mode="json"))


CLAIM = {
    "recipe": "lab-ladder",
    "ladder": "v1",
    "grids": [["data.world=1,4,7"]],
    "seeds": [0],
    "only": ["sft", "booster"],
}
FOUND = {
    ("sft", 1): record(0, 99, 99),
    ("sft", 4): record(99, 99, 99),
    ("sft", 7): record(0, 90, None),
    ("booster", 1): record(0, 0, 99),
    ("booster", 4): record(0, 0, None),
    ("booster", 7): None,
}


@pytest.fixture
def bundle(monkeypatch, tmp_path) -> dict:
    """A claim whose ladders are known; one of them failed."""

    def run(point: ladder.Point) -> dict:
        world = int(point.cell.settings[0].partition("=")[2])
        found = FOUND[point.pipeline, world]
        return ladder.extract(found) if found else {"error": "no room"}

    monkeypatch.setattr(ladder, "climb", run)
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    (tmp_path / "claims.yaml").write_text(json.dumps({"toy": CLAIM}))
    monkeypatch.setattr("sys.argv", ["make.py"])
    assert make.main() == 1  # a cell is missing
    return json.loads((tmp_path / "toy.json").read_text())


def test_a_bundle_has_a_record_for_every_model_and_says_which_is_missing(bundle):
    assert [cell["status"] for cell in bundle["cells"]] == ["done", "done", "missing"]
    assert bundle["cells"][2]["error"] == "booster: no room"
    assert list(bundle["cells"][2]["ladders"]) == ["sft"]
    assert "record" not in bundle["cells"][0]["ladders"]["sft"]["rungs"][1]


def test_the_table_has_the_mean_over_worlds_and_what_is_missing(bundle):
    lines = {line[0]: line[1:] for line in ladder.table("toy")}
    assert lines["rung"] == ["access", "passes", "SFT", "Booster"]
    sft, booster = lines["b"][2:]
    assert sft.startswith("96.0 [83.1, 100.0]")  # t over 99, 99 and 90
    assert booster == "0.0"  # alike: nothing is known of how worlds differ
    assert lines["c"][2:] == ["99.0 (1 of 3 missing)", "99.0 (1 of 2 missing)"]
    assert lines["*cost to break by weights*"][2:] == ["b, a, b", "c, none shown"]


def test_the_worst_case_stands_by_world(bundle):
    lines = ladder.worst("toy")
    assert [line[1] for line in lines[1:]] == [
        *(f"data.world={world}" for world in (1, 4, 7)),
        *(f"data.world={world}" for world in (1, 4)),
    ]
    assert lines[1][:3] == ["SFT", "data.world=1", "b"]


def test_a_point_is_a_command_of_its_own_over_the_shared_store():
    cell = Cell(("data.world=4",), 2)
    point = ladder.Point("toy", "lab-ladder", "v1", "sft+antidote", cell)
    assert point.command[:4] == [sys.executable, "-m", "titer", "attack"]
    told = " ".join(point.command)
    assert "--pipeline sft+antidote" in told
    assert "--seed 2" in told
    assert told.endswith("--set data.world=4 --json")
    assert point.folder.name == f"{cell.name}-sft-antidote"
