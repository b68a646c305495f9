"""`make results`: what it computes, and what it keeps."""

import json
from dataclasses import replace

import pytest

from results import bundles, make
from titer.config import validate
from titer.runs import recipe
from titer.runs.recipe import Recipe
from titer.runs.sweep import Cell, Sweep

POINTS = [Cell((f"attack.p={p}",), seed) for p in (0.1, 0.02) for seed in (0, 1)]
DOCUMENT = {
    "stages": [
        {
            "kind": "base",
            "method": {},
            "scores": {},
            "struck out": [],
            "weights": "0",
            "seconds": 1,
            "peak_mb": 2,
            "facts": {},
            "outcomes": {
                "harm": {"packed": "hru", "clusters": [0, 1, 0], "margins": [1.23, None, -2.0]},
                "task": {"packed": "ew"},
            },
        }
    ]
}
PIPELINES = {"sft": DOCUMENT, "sft+antidote": DOCUMENT}


@pytest.fixture
def ran(tmp_path, monkeypatch) -> list[Cell]:
    """The cells that a sweep was asked for, none of which is computed."""
    asked: list[Cell] = []

    def run(sweep: Sweep, report) -> dict:
        asked.extend(sweep.cells)
        pipelines = {name: PIPELINES[name] for name in sweep.only}
        found = [
            {"settings": list(c.settings), "seed": c.seed, "status": "done", "pipelines": pipelines}
            for c in sweep.cells
        ]
        return {"cells": found}

    monkeypatch.setattr(Sweep, "run", run)
    monkeypatch.setattr(bundles, "HERE", tmp_path)
    monkeypatch.setattr(make, "RUNS", tmp_path)
    (tmp_path / "claims.yaml").write_text(
        "toy: {recipe: lab, only: [sft, sft+antidote], grids: [['attack.p=0.1,0.02']], seeds: [0, 1]}"
    )
    return asked


def made(monkeypatch, *arguments: str) -> dict:
    monkeypatch.setattr("sys.argv", ["make.py", *arguments])
    assert make.main() == 0
    return json.loads((bundles.HERE / "toy.json").read_text())


def test_a_bundle_has_the_outcome_of_every_prompt_once(ran, monkeypatch):
    whole = made(monkeypatch)
    shared = [list(bundles.stages(cell)) for cell in whole["cells"]]
    assert [["outcomes" in stage for stage in stages] for stages in shared] == [[True, False]] * 4
    for group in bundles.load_groups("toy"):
        for record in group.last:
            harm, task = record.outcomes["harm"], record.outcomes["task"]
            assert harm.clusters == ["0", "1", "0"]
            assert harm.verdicts == ["harmful", "refusal", "unscored"]
            assert harm.margins == [1.23, None, -2.0]
            assert task.exact == [True, False]
            assert task.clusters == ["0", "1"]


def rewrite(**changes) -> None:
    path = bundles.HERE / "toy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundles_finished_cells_are_kept_and_the_missing_ones_computed(ran, monkeypatch):
    whole = made(monkeypatch)
    assert ran == POINTS
    assert [(cell["settings"], cell["seed"]) for cell in whole["cells"]] == [
        (list(cell.settings), cell.seed) for cell in POINTS
    ]
    kept, failed, _, last = whole["cells"]
    kept["pipelines"]["sft"]["stages"][0]["weights"] = "of the bundle"
    rewrite(cells=[last, failed | {"status": "missing"}, kept])
    ran.clear()
    again = made(monkeypatch)
    assert ran == POINTS[1:3]
    assert [(cell["settings"], cell["seed"]) for cell in again["cells"]] == [
        (list(cell.settings), cell.seed) for cell in POINTS
    ]
    assert again["cells"][0] == kept
    ran.clear()
    made(monkeypatch, "toy", "--afresh")
    assert ran == POINTS


def test_one_cell_is_compared_with_its_bundle_in_every_pipeline(ran, monkeypatch, capsys):
    whole = made(monkeypatch)
    ran.clear()
    made(monkeypatch, "--cell", "toy")
    assert ran == POINTS[:1]
    whole["cells"][0]["pipelines"]["sft+antidote"]["stages"][0]["weights"] = "of the bundle"
    rewrite(cells=whole["cells"])
    assert make.main() == 1
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "toy: base of sft+antidote has weights 0 where the bundle has of the bundle"
    )


def test_of_a_changed_recipe_only_the_changed_pipelines_are_computed(ran, monkeypatch):
    whole = made(monkeypatch)
    now = recipe.load("lab")
    for document in whole["cells"][0]["pipelines"].values():
        document["stages"][0]["weights"] = "of the bundle"
    then = recipe.describe(now)
    then["pipelines"]["sft"]["align"] = {"method": "vaccine", "rho": 2.0}
    rewrite(recipe=then, cells=whole["cells"], environment=whole["environment"] | {"cpu": "Z80"})
    ran.clear()
    again = made(monkeypatch)
    assert ran == POINTS
    cell = again["cells"][0]["pipelines"]
    assert cell["sft"]["stages"][0]["weights"] == "0"
    assert cell["sft+antidote"]["stages"][0]["weights"] == "of the bundle"
    # sft held the outcomes of both
    assert all("outcomes" in document["stages"][0] for document in cell.values())
    assert set(again["environment"]["cpu"].split(", ")) == {"Z80", make.cpu_make()}
    assert not make.same_make(again)


def test_a_bundle_of_which_nothing_is_computed_keeps_its_make(ran, monkeypatch):
    whole = made(monkeypatch)
    rewrite(environment=whole["environment"] | {"cpu": "Z80"})
    ran.clear()
    assert made(monkeypatch)["environment"]["cpu"] == "Z80"
    assert ran == []


def test_a_bundle_of_another_recipe_or_other_versions_keeps_nothing(ran, monkeypatch):
    bundle = made(monkeypatch)
    old = bundle["recipe"]
    for changes in (
        {"recipe": old | {"seed": 1}},
        {"recipe": old | {"of an older version": 1}},
        {"environment": bundle["environment"] | {"torch": "2.1"}},
    ):
        rewrite(**(bundle | changes))
        ran.clear()
        made(monkeypatch)
        assert ran == POINTS


def test_a_field_that_the_bundles_recipe_has_not_yet_has_its_default(ran, monkeypatch):
    bundle = made(monkeypatch)
    data = {
        name: value for name, value in bundle["recipe"]["data"].items() if name != "defense_rows"
    }
    rewrite(
        recipe=bundle["recipe"] | {"data": data},
        environment=bundle["environment"] | {"threads": 64},
    )
    ran.clear()
    made(monkeypatch)
    assert ran == []


@pytest.mark.parametrize(
    "name", [name for name in make.claims() if (bundles.HERE / f"{name}.json").is_file()]
)
def test_every_committed_bundle_is_of_its_recipe_as_it_is(name):
    bundle = json.loads((bundles.HERE / f"{name}.json").read_text())
    then, now = validate(Recipe, bundle["recipe"]), recipe.load(make.claims()[name]["recipe"])
    assert replace(then, threads=now.threads) == now  # threads are no part of what is computed


def stage(weights: str, value: float, low: float, high: float) -> dict:
    scores = {"harm": {"value": value, "low": low, "high": high}}
    return {"kind": "align", "weights": weights, "scores": scores}


@pytest.mark.parametrize(
    ("make_of_cpu", "now", "faults"),
    [
        ("GenuineIntel", stage("a", 40.0, 30.0, 50.0), 0),
        ("GenuineIntel", stage("b", 40.0, 30.0, 50.0), 1),  # other weights
        ("GenuineIntel", stage("a", 41.0, 31.0, 51.0), 1),
        ("AuthenticAMD", stage("b", 49.0, 39.0, 59.0), 0),  # last bits
        ("AuthenticAMD", stage("b", 51.0, 41.0, 61.0), 1),  # another figure
    ],
)
def test_a_cell_is_compared_by_bits_on_one_make_of_cpu_and_by_scores_on_another(
    make_of_cpu, now, faults, monkeypatch, tmp_path, capsys
):
    def bundle(found: dict) -> dict:
        cell = {"settings": [], "seed": 0, "pipelines": {"sft": {"stages": [found]}}}
        return {"environment": {}, "cells": [cell]}

    monkeypatch.setattr(bundles, "HERE", tmp_path)
    (tmp_path / "toy.json").write_text(json.dumps(bundle(stage("a", 40.0, 30.0, 50.0))))
    (tmp_path / "claims.yaml").write_text("toy: {recipe: lab}")
    monkeypatch.setattr(make, "cpu_make", lambda: make_of_cpu)
    monkeypatch.setattr(make, "compute", lambda *_: bundle(now))
    monkeypatch.setattr("sys.argv", ["make.py", "--cell", "toy"])
    assert make.main() == (1 if faults else 0)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert ("bit for bit" in out) == (faults == 0 and make_of_cpu == "GenuineIntel")
