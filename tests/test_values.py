"""The values of the tables' recipes are those that the search's rule takes, from its log."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from results import search
from results.answer import CONTROLS
from results.names import display_name
from results.search import ALIGNMENT, REAL, REPAIRS, SPARSE, TUNING, Trial, choose
from test_answer_page import dose
from titer.runs import recipe

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "results"
TABLES = {
    ALIGNMENT: "lab-alignment",
    TUNING: "lab-finetune",
    REPAIRS: "lab-edits",
    SPARSE: "lab-moe",
    REAL: "smol-edits",
}
NULLS = ("random", "scale")
UNTRIED = {  # pipelines whose values no search of their own chose
    ALIGNMENT: {"sft"},
    TUNING: CONTROLS | {"booster+lisa", "vaccine+lisa"},
    REPAIRS: {"sft"},
    SPARSE: {"sft", "safe_moe, other experts"},
    REAL: {"sft"},
}


@cache
def load(claim: str) -> recipe.Recipe:
    return recipe.load(str(FOLDER / f"{claim}.yaml"))


def by_method(claim: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in load(claim).pipelines:
        if " (" in name:
            found.setdefault(name.partition(" (")[0], []).append(name)
    return found


@pytest.mark.parametrize("claim", TABLES)
def test_every_method_of_the_table_has_as_many_tries(claim):
    tries = by_method(claim)
    methods = {
        name
        for name in recipe.load(TABLES[claim]).pipelines
        if not name.startswith(NULLS) and name not in UNTRIED[claim]
    }
    assert tries.keys() == methods
    assert len({len(of) for of in tries.values()}) == 1
    settings = [str(load(claim).pipelines[name]) for of in tries.values() for name in of]
    assert len(set(settings)) == len(settings), "a try stands twice"


def forbidden(claim: dict[str, Any]) -> set[str]:
    """What the worlds of a claim forbid: guilds in the lab, kinds of question in smol-v1."""
    world = recipe.load(claim["recipe"]).data.embedded.world
    seeds = {int(w) for grid in claim["grids"] for w in grid[0].partition("=")[2].split(",")}
    found = [world(seed, world.tasks[0]).forbidden for seed in seeds]
    return {name for of in found for name in ([of] if isinstance(of, str) else of)}


def test_no_world_of_a_search_forbids_what_a_reported_one_forbids():
    claims = yaml.safe_load((FOLDER / "claims.yaml").read_text())
    assert claims[ALIGNMENT]["grids"] == claims[TUNING]["grids"] == claims[REPAIRS]["grids"]
    names = {name: forbidden(claim) for name, claim in claims.items()}
    tuned = set().union(*(of for name, of in names.items() if name.startswith("search")))
    for name, of in names.items():
        assert name.startswith("search") or not tuned & of, name


@pytest.mark.parametrize("claim", TABLES)
def test_the_recipe_has_what_the_rule_takes(claim):
    tries, reported = load(claim).pipelines, recipe.load(TABLES[claim]).pipelines
    for method, trial in search.chosen(claim).items():
        assert tries[trial.name] == reported[method], trial.name


@pytest.mark.parametrize("claim", TABLES)
def test_the_page_says_of_which_values_the_tables_are(claim):
    tries, reported = load(claim).pipelines, recipe.load(TABLES[claim]).pipelines
    lines = {(line[0], line[1].strip("*")): line for line in search.table(claim)[1:]}
    taken = search.chosen(claim).values()
    for trial in search.trials(claim):
        line = lines[display_name(trial.method), trial.values]
        assert (line[-1] == "yes") == (tries[trial.name] == reported[trial.method])
        assert line[1].startswith("**") == (trial in taken)


def trial(gain: float, loss: float = 0.0, struck: int = 0) -> Trial:
    return Trial(f"m (a {gain})", gain, {"task": loss, "benign": -9.0}, struck)


def test_the_rule_takes_the_largest_gain_that_keeps_the_model():
    assert choose([trial(1), trial(3, 5.1), trial(2, 5.0), trial(4, struck=1)]).gain == 2
    assert choose([trial(1, 7), trial(3, 6), trial(2, 5.5, struck=1)]).gain == 3


def test_gains_and_losses_are_those_of_the_log():
    """Recompute both from the JSON by other code."""
    cells = json.loads((FOLDER / f"{ALIGNMENT}.json").read_text())["cells"]
    found = {trial.name: trial for trial in search.trials(ALIGNMENT)}
    assert len(found) == sum(len(of) for of in by_method(ALIGNMENT).values())
    for name, of in found.items():
        pairs = [
            (cell["pipelines"][name]["stages"], cell["pipelines"]["sft"]["stages"])
            for cell in cells
        ]
        ratios = [np.subtract(*(np.log(dose(stages)) for stages in pair)) for pair in pairs]
        if np.isfinite(ratios).all():
            assert math.isclose(of.gain, np.mean(ratios), abs_tol=1e-9)
        lost = [
            plain[-1]["scores"]["task"]["value"] - mine[-1]["scores"]["task"]["value"]
            for mine, plain in pairs
        ]
        assert math.isclose(of.losses["task"], np.mean(lost), abs_tol=0.01)
